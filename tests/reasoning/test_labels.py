"""The circular label of the paper."""

import numpy as np

import sparselens as sl
from sparselens.reasoning import reconstruction_labels
from tests import tiny


class Echo:
    """Writes each step again, with another number in the second."""

    def reconstruct(self, traces, max_new_tokens):
        texts = [text for trace in traces for text in trace.steps.texts]
        return [text.replace("12", "13") for text in texts]


def test_labels_compare_the_last_numbers():
    traces = sl.read_traces(["3 + 4 = 7\nthen 12\nno number"], merge_last=False)
    np.testing.assert_array_equal(reconstruction_labels(traces, Echo()), [1, 0, np.nan])


def test_with_a_step_dictionary():
    labels = reconstruction_labels(sl.read_traces(["a 1\nb 2"], merge_last=False), sl.StepSAE(tiny.live()), 4)
    assert labels.shape == (2,) and set(labels) <= {0.0, 1.0}

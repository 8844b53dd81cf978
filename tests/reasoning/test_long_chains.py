"""A chain of 500 steps goes through every part."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import Trace, Traces
from tests import tiny

STEPS = [f"{i} + 1 = {i + 1}" for i in range(500)]


def chain(steps, wrong=None, problem="p"):
    text = "\n".join(steps)
    ends = np.cumsum([len(step) + 1 for step in steps]) - 1
    labels = [1.0 if wrong is None or i < wrong else 0.0 if i == wrong else None for i in range(len(steps))]
    spans = [(int(end) - len(step), int(end)) for end, step in zip(ends, steps, strict=True)]
    return Trace(problem, text, spans, labels, "Count on.", wrong is None, "made")


def test_codes_are_those_of_each_step_alone():
    ssae = sl.StepSAE(tiny.live(), max_context=16)
    trace = chain(STEPS)
    found = ssae.transform(Traces([trace]))
    assert len(found) == 500
    for i in (0, 250, 499):
        alone = ssae.transform([(trace.context(i), STEPS[i])])
        torch.testing.assert_close(found.z[i], alone.z[0])


def test_the_first_error_is_found_and_shown():
    short = [chain(STEPS[:4], 1 + n % 3 if n % 2 else None, f"q{n}") for n in range(40)]
    traces = Traces([*short, chain(STEPS, 321)])
    wrong = np.array([label == 0 for trace in traces for label in trace.labels], dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(traces.n_steps, 8)).astype(np.float32) * 0.1
    table = sl.probe_steps(traces, {"last": x + wrong[:, None]})
    scores = table.probes["last"].predict_proba(x[-500:] + wrong[-500:, None])[:, 1]
    found = sl.reasoning.first_errors(traces[40:], [scores])
    assert found.predicted == [321] and found.told.value == 1
    view = table.timeline(40, ["last"])
    assert len(view) == len(view.to_frame()) == 500 and "400 more" in view.to_html()


def test_a_model_that_cannot_read_so_much_says_so():
    m = tiny.live()
    with pytest.raises(InputError, match="the model reads"):
        sl.step_states(Traces([chain([f"{s} and so on and on" for s in STEPS] * 4)]), m)

"""Which colour a point gets."""

import numpy as np
import pandas as pd
import pytest

from sparselens.views.classes import COLOURS, GREY, classes_of


@pytest.mark.parametrize(
    ("values", "codes", "names"),
    [
        (list("aabbc"), [0, 0, 1, 1, 2], ["a", "b", "c"]),
        ([2, 1, -1, 1], [1, 0, 2, 0], ["1", "2", "none"]),
        ([True, False], [1, 0], ["False", "True"]),
        ([1, "a", None], [0, 1, 2], ["1", "a", "none"]),
        (pd.Categorical(list("xyx")), [0, 1, 0], ["x", "y"]),
        ([None, None], [0, 0], ["none"]),
        ([0.5, 0.25], [1, 0], ["0.25", "0.5"]),
    ],
)
def test_few_values_stay_as_they_are(values, codes, names):
    found = classes_of(values)
    assert found.codes.tolist() == codes
    assert found.names == names
    assert found.colours == [GREY if name == "none" else COLOURS[i] for i, name in enumerate(names)]


def test_rare_labels_share_a_colour():
    labels = np.repeat(np.arange(12), np.arange(20, 32))
    found = classes_of(labels)
    assert found.names == ["5", "6", "7", "8", "9", "10", "11", "others"]
    assert (found.codes == 7).sum() == (labels < 5).sum()
    assert found.colours[-1] == GREY


def test_numbers_fall_into_steps_of_equal_counts():
    values = np.r_[np.random.default_rng(0).permutation(700) / 7, np.nan]
    found = classes_of(values)
    assert np.bincount(found.codes).tolist() == [100] * 7 + [1]
    assert found.names[0] == "0 to 14.3"
    assert found.names[-1] == "none"
    assert (np.diff(found.codes[np.argsort(values[:-1])]) >= 0).all()

"""Which tokens are sparse: by place in the row, whatever the padding, and by phase."""

import pytest
import torch

from sparselens.activation.window import Window, checked_prefix
from sparselens.errors import InputError
from sparselens.models.engine import Pass

X = torch.zeros(2, 6, 4)
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def tokens(window, mask=None, past=0, x=X, positions=None):
    found = window.tokens(x, Pass(mask=mask, past=past, step=int(past > 0), positions=positions))
    return found if isinstance(found, bool) else found.int().tolist()


@pytest.mark.parametrize("prefix", [0, 0.0])
def test_without_prefix_all_tokens_are_sparse(prefix):
    assert tokens(Window(prefix), LEFT) is True


def test_the_prefix_counts_real_tokens_of_each_row():
    assert tokens(Window(3), LEFT) == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]]
    assert tokens(Window(3), LEFT.flip(1)) == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert tokens(Window(6), LEFT) is False


def test_a_share_of_the_row_rounds_up():
    assert tokens(Window(0.5), LEFT) == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert tokens(Window(0.01), LEFT) == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]


def test_decoding_goes_on_counting_after_the_cache():
    x, mask = X[:, :1], torch.ones(2, 1, dtype=torch.bool)
    positions = torch.tensor([[2], [4]])  # two tokens of padding in the first row's cache
    assert tokens(Window(4), mask, 4, x, positions) == [[0], [1]]
    assert tokens(Window(3), mask, 4, x) is True
    assert tokens(Window(5), mask, 4, x) is False
    assert tokens(Window(0.9), mask, 4, x) is True  # a share is of the prompt


@pytest.mark.parametrize(("phase", "prompt", "after"), [("both", True, True), ("prefill", True, False),
                                                        ("decode", False, True)])
def test_phases(phase, prompt, after):
    window = Window(0, phase)
    assert tokens(window, LEFT) is prompt
    assert tokens(window, torch.ones(2, 1, dtype=torch.bool), 6, X[:, :1]) is after
    assert tokens(window, LEFT, 6) is prompt  # several tokens after a cache: a prompt again


def test_models_that_flatten_their_rows_are_followed():
    assert tokens(Window(3), LEFT, x=X.reshape(12, 4)) == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1]


def test_without_ids_every_token_counts_as_real():
    assert tokens(Window(4)) == [[0, 0, 0, 0, 1, 1]] * 2


def test_a_new_pass_is_worked_out_anew():
    window = Window(3)
    first = tokens(window, LEFT)
    assert tokens(window, ~LEFT | True) != first
    assert tokens(window, LEFT) == first


@pytest.mark.parametrize("wrong", [-1, 1.0, 1.5, -0.1, "8", None, True, float("nan")])
def test_a_prefix_that_is_neither_count_nor_share_is_refused(wrong):
    with pytest.raises(InputError, match="dense_prefix"):
        checked_prefix(wrong)


def test_an_unknown_phase_is_refused():
    with pytest.raises(InputError, match="Closest: decode"):
        Window(0, "decoding")

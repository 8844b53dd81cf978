"""Gates against brute force and the identities of the WINA specification."""

from itertools import combinations

import pytest
import torch

from sparselens.activation.gates import Threshold, TopK, channel_scores, n_kept
from sparselens.activation.linears import column_norms

IN, OUT = 9, 12


def error(weight, x, keep):
    return ((x * ~keep) @ weight.T).norm(dim=-1)


def orthogonal_columns(seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(OUT, IN, generator=generator, dtype=torch.float64)).Q
    return basis * torch.rand(IN, generator=generator, dtype=torch.float64).mul(3).add(0.1)


@pytest.mark.parametrize(
    ("sparsity", "d_in", "kept"),
    [(0.0, 10, 10), (0.5, 10, 5), (0.9, 576, 58), (0.1, 10, 9), (0.3, 10, 7), (0.99, 10, 1), (1.0, 10, 0)],
)
def test_n_kept_is_not_moved_by_float_error(sparsity, d_in, kept):
    assert n_kept(sparsity, d_in) == kept


@pytest.mark.parametrize("k", [1, 4, IN])
def test_topk_keeps_exactly_k_even_among_equals(k):
    scores = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 3.0, 2.0, 1.0]).expand(5, 4, IN)
    keep = TopK(k).keep(scores)
    assert (keep.sum(-1) == k).all()
    cut = TopK(k).cut(scores)
    assert (scores[keep].reshape(5, 4, k) >= cut).all()
    assert (scores.masked_fill(keep, -1) <= cut).all()


def test_topk_of_nothing_keeps_nothing():
    scores = torch.rand(3, IN)
    assert not TopK(0).keep(scores).any()
    assert not (scores >= TopK(0).cut(scores)).any()


def test_threshold_keeps_what_is_above_and_what_is_no_number():
    scores = torch.tensor([0.0, 0.5, 1.0, torch.nan, torch.inf])
    assert Threshold(0.5).keep(scores).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 4, 8])
def test_weighted_scores_are_optimal_for_orthogonal_columns(seed, k):
    weight = orthogonal_columns(seed)
    x = torch.randn(6, IN, dtype=torch.float64)
    wina = TopK(k).keep(channel_scores(x, column_norms(weight)))
    teal = TopK(k).keep(channel_scores(x))
    every = [torch.zeros(IN, dtype=torch.bool).index_fill(0, torch.tensor(c), True) for c in combinations(range(IN), k)]
    best = torch.stack([error(weight, x, keep) for keep in every]).min(0).values
    assert torch.allclose(error(weight, x, wina), best, rtol=1e-6)
    assert (error(weight, x, wina) <= error(weight, x, teal) + 1e-9).all()


def test_on_any_weight_the_weighted_choice_wins_on_average_but_not_always():
    weight = torch.randn(OUT, IN, dtype=torch.float64) * torch.rand(IN, dtype=torch.float64).mul(2).add(0.1)
    x = torch.randn(2000, IN, dtype=torch.float64)
    wina, teal = (error(weight, x, TopK(4).keep(channel_scores(x, s))) for s in (column_norms(weight), None))
    assert wina.mean() < 0.95 * teal.mean()
    assert 0 < (wina > teal).double().mean() < 0.3


def test_equal_norms_make_the_scores_agree():
    weight = orthogonal_columns(0)
    weight /= weight.norm(dim=0)
    x = torch.randn(50, IN, dtype=torch.float64)
    norms = column_norms(weight)
    assert torch.equal(TopK(4).keep(channel_scores(x, norms)), TopK(4).keep(channel_scores(x)))


def test_only_the_weighted_choice_survives_a_rescaling_of_the_channels():
    weight, x = torch.randn(OUT, IN), torch.randn(50, IN)
    scale = torch.rand(IN).mul(4).add(0.1)
    for weighted in (True, False):
        before, after = (
            TopK(4).keep(channel_scores(v, column_norms(w) if weighted else None))
            for w, v in ((weight, x), (weight * scale, x / scale))
        )
        assert torch.equal(before, after) is weighted


def test_scores_do_not_overflow_in_half_precision():
    x = torch.tensor([60000.0, 50000.0, 1.0, -65000.0], dtype=torch.float16)
    scores = channel_scores(x, torch.tensor([3.0, 4.0, 1.0, 2.0]))
    assert torch.isfinite(scores).all()
    assert TopK(1).keep(scores).tolist() == [False, True, False, False]
    norms = column_norms(torch.full((100, 2), 60000.0, dtype=torch.float16))
    assert torch.allclose(norms, torch.tensor(600000.0), rtol=1e-3)

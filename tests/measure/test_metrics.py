"""Every metric against numbers that can be worked out by hand."""

import math

import pytest
import torch

from sparselens.errors import InputError
from sparselens.measure import (
    ce_loss,
    ce_recovered,
    cosine,
    dead_share,
    dense_share,
    explained_variance,
    fvu,
    kl,
    l0,
    top1_agreement,
)
from sparselens.measure.metrics import ActiveSum, ce_per_token
from sparselens.sae import Latents


def test_fvu_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])  # variance sum 8 around (2, 0)
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1)
    assert fvu(x, torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]])) == pytest.approx(2 / 8)
    assert explained_variance(x, torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]])) == pytest.approx(0.75)
    assert math.isnan(fvu(x[:1], x[:1]))


def test_cosine_by_hand():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    assert cosine(x, torch.tensor([[5.0, 0.0], [0.0, 2.0], [-3.0, -4.0]])) == pytest.approx((1 + 0 - 1) / 3)
    assert cosine(x, torch.zeros_like(x)) == 0


def test_l0_dead_dense_count_what_is_not_zero():
    dense = torch.zeros(20, 4)
    dense[:, 0] = -1.0  # signed: active
    dense[:2, 1] = 3.0  # 10 % of the tokens is not more than 10 %
    dense[:3, 2] = 3.0
    assert l0(dense) == pytest.approx(25 / 20)
    assert dead_share(dense) == 0.25
    assert dense_share(dense) == 0.5
    assert dense_share(dense, above=0.5) == 0.25
    total = ActiveSum(4)
    total.add(dense[:7])
    total.add(dense[7:])
    assert (l0(total), dead_share(total), dense_share(total)) == (l0(dense), dead_share(dense), dense_share(dense))


def test_zero_among_the_k_is_not_active():
    z = Latents(torch.tensor([[2.0, 0.0], [1.0, -1.0]]), torch.tensor([[0, 3], [0, 1]]), 5)
    assert l0(z) == 1.5
    assert dead_share(z) == pytest.approx(3 / 5)
    assert l0(z) == l0(z.dense())


def test_ce_of_uniform_logits_is_log_of_the_vocabulary():
    ids = torch.randint(0, 7, (2, 5))
    assert ce_loss(torch.zeros(2, 5, 7), ids) == pytest.approx(math.log(7))


def test_ce_counts_a_prediction_only_where_token_and_target_are_real():
    ids = torch.tensor([[1, 2, 0, 0], [0, 1, 2, 1]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])  # right and left padding
    logits = torch.full((2, 4, 3), float("nan"))  # anything read by mistake shows
    logits[0, 0] = torch.log(torch.tensor([0.25, 0.25, 0.5]))
    logits[1, 1] = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    logits[1, 2] = torch.log(torch.tensor([0.0, 1.0, 0.0]) + 1e-12)
    expected = [math.log(2), math.log(4), 0.0]
    assert ce_per_token(logits, ids, mask).tolist() == pytest.approx(expected, abs=1e-6)
    assert ce_loss(logits, ids, mask) == pytest.approx(sum(expected) / 3)


def test_ce_agrees_with_torch_across_the_internal_slices():
    logits, ids = torch.randn(3, 400, 11), torch.randint(0, 11, (3, 400))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))
    assert ce_loss(logits, ids) == pytest.approx(float(expected), rel=1e-6)


def test_kl_by_hand():
    clean = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
    edited = torch.log(torch.tensor([[[0.25, 0.75], [0.9, 0.1]]]))
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl(clean, edited) == pytest.approx(first / 2, rel=1e-5)
    assert kl(clean, edited, torch.tensor([[True, False]])) == pytest.approx(first, rel=1e-5)
    assert kl(clean, clean + 3.0) == pytest.approx(0, abs=1e-7)  # a shift of all logits changes nothing
    assert kl(clean, edited) != pytest.approx(kl(edited, clean), rel=1e-3)


def test_top1_agreement_by_hand():
    clean = torch.eye(4)[None]
    edited = torch.eye(4)[[0, 1, 3, 3]][None]
    assert top1_agreement(clean, edited) == 0.75
    assert top1_agreement(clean, edited, torch.tensor([[True, False, True, False]])) == 0.5


def test_ce_recovered():
    assert ce_recovered(clean=3.0, edited=3.0, ablated=8.0) == 1
    assert ce_recovered(clean=3.0, edited=8.0, ablated=8.0) == 0
    assert ce_recovered(clean=3.0, edited=4.0, ablated=8.0) == pytest.approx(0.8)
    assert ce_recovered(clean=3.0, edited=9.0, ablated=8.0) < 0
    assert math.isnan(ce_recovered(3.0, 3.0, 3.0))


@pytest.mark.parametrize("metric", [kl, top1_agreement])
def test_nothing_to_measure_is_said(metric):
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(InputError, match="no real token"):
        metric(logits, logits, torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="no real token"):
        ce_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.long))

import math

import pytest
import torch

from sparselens.sae.latents import Latents
from sparselens.sae.stats import ActiveSum, FvuSum


def test_fvu_equals_the_closed_form_whatever_the_batches():
    x = torch.randn(101, 7, dtype=torch.float64) + 2
    x_hat = x + 0.3 * torch.randn_like(x)
    truth = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    for size in (101, 50, 3):
        fvu = FvuSum()
        for low in range(0, 101, size):
            fvu.add(x[low : low + size], x_hat[low : low + size])
        assert fvu.rows == 101
        assert fvu.value == pytest.approx(truth, rel=1e-12)


def test_fvu_survives_a_large_common_offset():
    x = torch.randn(1000, 4, dtype=torch.float64)
    fvu = FvuSum()
    for part in (x + 1e7).split(100):
        fvu.add(part, torch.zeros(len(part), 4) + 1e7)
    assert fvu.variance == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-6)


def test_fvu_of_the_mean_is_one_and_of_nothing_is_nan():
    x = torch.randn(50, 3)
    fvu = FvuSum()
    fvu.add(x, x.mean(0).expand_as(x))
    assert fvu.value == pytest.approx(1.0, abs=1e-6)
    empty = FvuSum()
    empty.add(x[:0], x[:0])
    assert math.isnan(empty.value) and math.isnan(ActiveSum(3).l0)


def test_active_sum_counts_dense_and_sparse_alike():
    dense = torch.tensor([[0.0, -2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    sparse = Latents(torch.tensor([[-2.0, 1.0], [3.0, 0.0]]), torch.tensor([[1, 3], [3, 0]]), 4)
    for z in (dense, sparse):
        active = ActiveSum(4)
        active.add(z)
        active.add(z)
        assert active.l0 == 1.5 and active.rows == 4
        assert active.fires.tolist() == [0, 2, 0, 4]
        assert active.dead_share == 0.5

import pytest
import torch

from sparselens.sae.losses import AUX, auxiliary_loss
from sparselens.sae.topk_step import Weights, topk_gradients


def weights(d_in: int, d_sae: int, dtype: torch.dtype) -> Weights:
    dec = torch.randn(d_sae, d_in, dtype=dtype)
    dec /= dec.norm(dim=1, keepdim=True)
    rest = torch.randn(d_sae, dtype=dtype) * 0.1, dec, torch.randn(d_in, dtype=dtype) * 0.3
    return Weights(dec + 0.1 * torch.randn_like(dec), *rest)


def dense_reference(w: Weights, x: torch.Tensor, k: int, dead: torch.Tensor | None) -> tuple[Weights, torch.Tensor]:
    """The same loss by plain autograd on dense codes."""
    leaves = Weights(*(tensor.clone().requires_grad_() for tensor in w))
    pre = (x - leaves.b_dec) @ leaves.enc.T + leaves.b_enc
    values, where = pre.topk(k, dim=1)
    codes = torch.zeros_like(pre).scatter(1, where, values.relu())
    error = codes @ leaves.dec + leaves.b_dec - x
    loss = squared = error.square().sum() / len(x)
    if dead is not None:
        loss = loss + AUX * auxiliary_loss(leaves, pre, error, dead)
    loss.backward()
    return Weights(*(leaf.grad for leaf in leaves)), squared.detach()


def worst(mine: Weights, truth: Weights) -> float:
    """Largest relative deviation of a gradient, in the norm."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, truth, strict=True))


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("k", [1, 4])
def test_gradients_are_those_of_dense_autograd(dtype, limit, n_dead, k):
    w, x = weights(16, 50, dtype), torch.randn(40, 16, dtype=dtype) + 0.5
    dead = torch.randperm(50)[:n_dead] if n_dead else None
    mine, seen = topk_gradients(w, x, k, dead)
    truth, squared = dense_reference(w, x, k, dead)
    assert worst(mine, truth) < limit
    assert float(seen.error) == pytest.approx(float(squared), rel=1e-5)


def test_negative_pre_activations_among_the_k_stay_silent():
    w = weights(4, 12, torch.float64)
    w.b_enc.fill_(-1.0)
    x = torch.randn(30, 4, dtype=torch.float64)
    mine, seen = topk_gradients(w, x, 8, None)
    assert worst(mine, dense_reference(w, x, 8, None)[0]) < 1e-12
    pre = (x - w.b_dec) @ w.enc.T + w.b_enc
    assert float(seen.l0) == pytest.approx(float((pre.topk(8).values > 0).sum() / 30))
    assert set(seen.fired.tolist()) == set((pre.topk(8).indices[pre.topk(8).values > 0]).tolist())


def test_the_weights_and_the_input_are_left_alone():
    w, x = weights(8, 20, torch.float32), torch.randn(10, 8)
    before = [tensor.clone() for tensor in (*w, x)]
    topk_gradients(w, x, 3, torch.tensor([1, 5]))
    assert all(torch.equal(a, b) for a, b in zip(before, (*w, x), strict=True))

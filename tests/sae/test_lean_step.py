import pytest
import torch

from sparselens.sae.lean_step import AUX, Task, Weights, auxiliary_codes, lean_gradients
from sparselens.sae.selection import flat_indices, largest_of_batch, largest_of_token


def weights(d_in: int, d_sae: int, dtype: torch.dtype, d_out: int | None = None, skip: bool = False) -> Weights:
    dec = torch.randn(d_sae, d_out or d_in, dtype=dtype)
    dec /= dec.norm(dim=1, keepdim=True)
    enc = dec + 0.1 * torch.randn_like(dec) if d_out is None else torch.randn(d_sae, d_in, dtype=dtype) / d_in**0.5
    b_enc, b_dec = torch.randn(d_sae, dtype=dtype) * 0.1, torch.randn(dec.shape[1], dtype=dtype) * 0.3
    return Weights(enc, b_enc, dec, b_dec, torch.randn(dec.shape[1], d_in, dtype=dtype) if skip else None)


def by_token(k: int, signed: bool = False):
    return lambda pre: flat_indices(largest_of_token(pre, k, signed), pre.shape[1]).flatten()


def by_batch(k: float, signed: bool = False):
    return lambda pre: largest_of_batch(pre, k, signed).sort().values


def dense_reference(
    w: Weights, x: torch.Tensor, y: torch.Tensor, task: Task, revive: torch.Tensor | None
) -> tuple[Weights, torch.Tensor]:
    """The same loss by plain autograd on dense codes."""
    tied = w.enc is w.dec
    leaves = Weights(*(None if tensor is None else tensor.clone().requires_grad_() for tensor in w))
    if tied:
        leaves = leaves._replace(enc=leaves.dec)
    pre = (x - leaves.b_dec if task.centre else x) @ leaves.enc.T + leaves.b_enc
    kept = torch.zeros(pre.numel(), dtype=torch.bool)
    kept[task.choose(pre.detach())] = True
    codes = torch.where(kept.view_as(pre), pre if task.signed else pre.relu(), 0.0)
    rest = leaves.b_dec - y if w.skip is None else leaves.b_dec - y + x @ leaves.skip.T
    errors = [codes[:, :width] @ leaves.dec[:width] + rest for width in task.prefixes or (len(w.dec),)]
    loss = sum(error.square().sum() / len(x) for error in errors) / len(errors)
    if revive is not None:
        again = auxiliary_codes(pre[:, revive], y.shape[1], task.signed)
        loss = loss + task.aux * (errors[-1].detach() + again @ leaves.dec[revive]).square().sum() / len(x)
    loss.backward()
    squared = errors[-1].detach().square().sum() / len(x)
    return Weights(*(None if leaf is None else leaf.grad for leaf in leaves)), squared


def worst(mine: Weights, truth: Weights) -> float:
    """Largest relative deviation of a gradient, in the norm."""
    pairs = [(a, b) for a, b in zip(mine, truth, strict=True) if b is not None]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n_revive", [0, 3, 20])
@pytest.mark.parametrize("dense_below", [0, 1e9])
@pytest.mark.parametrize(
    "task",
    [
        Task(by_token(1)),
        Task(by_token(4)),
        Task(by_token(4, True), signed=True),
        Task(by_batch(3.5)),
        Task(by_batch(2, True), signed=True),
        Task(by_token(4), prefixes=(5, 17, 50)),
        Task(by_batch(2, True), signed=True, prefixes=(20, 50)),
    ],
)
def test_gradients_are_those_of_dense_autograd(dtype, limit, n_revive, dense_below, task):
    w, x = weights(16, 50, dtype), torch.randn(40, 16, dtype=dtype) + 0.5
    revive = torch.randperm(50)[:n_revive] if n_revive else None
    task = task._replace(dense_below=dense_below)
    mine, seen = lean_gradients(w, x, x, task, revive)
    truth, squared = dense_reference(w, x, x, task, revive)
    assert worst(mine, truth) < limit
    assert float(seen.error) == pytest.approx(float(squared), rel=1e-5)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dense_below", [0, 1e9])
def test_gradients_of_a_transcoder(skip, dense_below):
    w, x, y = weights(16, 50, torch.float64, 9, skip), torch.randn(40, 16).double(), torch.randn(40, 9).double()
    task, revive = Task(by_token(4), centre=False, dense_below=dense_below), torch.tensor([3, 8])
    assert worst(lean_gradients(w, x, y, task, revive)[0], dense_reference(w, x, y, task, revive)[0]) < 1e-12


@pytest.mark.parametrize("dense_below", [0, 1e9])
def test_gradients_of_tied_weights(dense_below):
    w, x = weights(16, 50, torch.float64), torch.randn(40, 16).double()
    w, task = w._replace(enc=w.dec), Task(by_token(4), dense_below=dense_below)
    mine, truth = lean_gradients(w, x, x, task)[0], dense_reference(w, x, x, task, None)[0]
    assert worst(mine._replace(enc=mine.dec), truth) < 1e-12


def test_negative_pre_activations_among_the_k_stay_silent():
    w = weights(4, 12, torch.float64)
    w.b_enc.fill_(-1.0)
    x = torch.randn(30, 4, dtype=torch.float64)
    mine, seen = lean_gradients(w, x, x, Task(by_token(8)))
    assert worst(mine, dense_reference(w, x, x, Task(by_token(8)), None)[0]) < 1e-12
    top = ((x - w.b_dec) @ w.enc.T + w.b_enc).topk(8)
    assert float(seen.l0) == pytest.approx(float((top.values > 0).sum() / 30))
    assert torch.equal(seen.fires, torch.bincount(top.indices[top.values > 0], minlength=12))


def test_products_in_half_choose_and_full_ones_count():
    w, x = weights(64, 300, torch.float32), torch.randn(200, 64)
    full, seen = lean_gradients(w, x, x, Task(by_token(8)))
    half, also = lean_gradients(w, x, x, Task(by_token(8), half=True))
    assert 0 < worst(half, full) < 0.2  # some choices at the margin differ
    assert float(also.error) == pytest.approx(float(seen.error), rel=1e-3)
    everything = Task(by_token(300), half=True)
    truth = lean_gradients(w, x, x, everything._replace(half=False))[0]
    assert worst(lean_gradients(w, x, x, everything)[0], truth) < 1e-4  # nothing left to choose: the same


def test_the_weights_and_the_input_are_left_alone():
    w, x = weights(8, 20, torch.float32), torch.randn(10, 8)
    before = [tensor.clone() for tensor in (*w[:4], x)]
    lean_gradients(w, x, x, Task(by_token(3)), torch.tensor([1, 5]))
    assert all(torch.equal(a, b) for a, b in zip(before, (*w[:4], x), strict=True))


def test_the_auxiliary_weight_scales_what_it_adds():
    w, x, revive = weights(8, 20, torch.float64), torch.randn(10, 8).double(), torch.tensor([1, 5])
    none, once, twice = (
        lean_gradients(w, x, x, Task(by_token(3), aux=weight), revive)[0].dec for weight in (0.0, AUX, 2 * AUX)
    )
    torch.testing.assert_close(twice - none, 2 * (once - none))
    assert (once - none).abs().sum() > 0

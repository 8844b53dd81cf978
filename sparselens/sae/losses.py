"""Training losses that go through plain autograd: ReLU + L1, JumpReLU, BatchTopK. One function each.

All work on inputs scaled to norm sqrt(d_in) on average, and aim at `k` active latents per token.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sparselens.sae.topk_step import AUX, StepResult, Weights

# Half of this, on either side of a threshold, is where JumpReLU's threshold feels the pre-activations.
BANDWIDTH = 0.2
# How fast the L1 weight follows the number of active latents, per step, in log units.
_L1_RATE = 0.02


def dense_gradients(
    architecture: str,
    w: Weights,
    x: Float[Tensor, "batch d_in"],
    k: int | float,
    extra: dict[str, Tensor],
    dead: Int[Tensor, " n_dead"] | None = None,
) -> tuple[Weights, StepResult]:
    """Gradients of the loss of `architecture` by autograd, and what the step saw.

    Args:
        architecture: "relu", "jumprelu" or "batchtopk".
        w: the parameters.
        x: activations `[batch, d_in]`, scaled.
        k: the number of active latents per token to aim at.
        extra: the architecture's own tensors, see `initial_extra`. A `threshold` of jumprelu gets its gradient in
            `.grad`; the other tensors are updated in place.
        dead: latents that batchtopk trains on what is left over.
    """
    leaves = Weights(*(tensor.detach().requires_grad_() for tensor in w))
    centred = x - leaves.b_dec
    pre = functional.linear(centred, leaves.enc, leaves.b_enc)
    codes, penalty = _CODES[architecture](pre, k, extra)
    error = codes @ leaves.dec + leaves.b_dec - x
    squared = error.square().sum() / len(x)
    loss = squared + x.shape[1] * penalty  # scaled inputs have a squared norm of about d_in
    if dead is not None and len(dead) and architecture == "batchtopk":
        loss = loss + AUX * auxiliary_loss(leaves, pre, error, dead)
    loss.backward()
    active = (codes > 0).detach()
    grads = Weights(*(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves))
    return grads, StepResult(active.any(0).nonzero().flatten(), active.sum() / len(x), squared.detach())


def initial_extra(architecture: str, w: Weights, x: Float[Tensor, "batch d_in"], k: int | float) -> dict[str, Tensor]:
    """The tensors an architecture keeps beside its weights, started on some scaled activations.

    jumprelu: `threshold [d_sae]`, where k latents per token start out active; batchtopk: `threshold []`, followed
    while training; relu: `log_l1 []`, the weight of the L1 penalty, steered to k active latents.
    """
    if architecture == "relu":
        return {"log_l1": torch.tensor(1 / x.shape[1], device=x.device).log()}
    pre = functional.linear(x - w.b_dec, w.enc, w.b_enc).relu()
    kept = max(1, round(k * len(x)))
    floor = pre.flatten().topk(min(kept, pre.numel()), sorted=False).values.min()
    if architecture == "batchtopk":
        return {"threshold": floor}
    return {"threshold": floor.expand(pre.shape[1]).clone().requires_grad_()}


def auxiliary_loss(w: Weights, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """`mean ||(x - x_hat) - aux_hat||^2`, with aux_hat from the dead latents alone and x_hat held fixed."""
    keep = min(len(dead), max(1, w.dec.shape[1] // 2))
    values, where = pre[:, dead].topk(keep, dim=1, sorted=False)
    codes = torch.zeros_like(pre[:, dead]).scatter(1, where, values.relu())
    return (error.detach() + codes @ w.dec[dead]).square().sum() / len(pre)


class Jump(torch.autograd.Function):
    """`pre * [pre > threshold]`; the threshold's gradient is estimated from pre-activations near it."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).to(grad.dtype)
        return grad * (pre > threshold), (-threshold / BANDWIDTH * (near * grad).sum(0))


class Step(torch.autograd.Function):
    """`[pre > threshold]`, counted by the L0 penalty; a gradient for the threshold alone, estimated as in `Jump`."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).to(grad.dtype)
        return None, -(near * grad).sum(0) / BANDWIDTH


def _relu(pre: Tensor, k: int | float, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """ReLU with an L1 penalty (decoder rows have norm 1), its weight steered so that k latents are active."""
    codes = pre.relu()
    l0 = (codes > 0).detach().sum() / len(pre)
    extra["log_l1"] += _L1_RATE * (l0 / k - 1).clamp(-1, 1)
    return codes, extra["log_l1"].exp() * codes.sum() / len(pre)


def _jumprelu(pre: Tensor, k: int | float, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """JumpReLU with a quadratic penalty around the target number of active latents (Rajamanoharan et al., 2024)."""
    l0 = Step.apply(pre, extra["threshold"]).sum() / len(pre)
    return Jump.apply(pre, extra["threshold"]).relu(), (l0 / k - 1) ** 2


def _batchtopk(pre: Tensor, k: int | float, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The k * batch largest positive codes of the batch; the threshold used later follows the smallest of them."""
    positive = pre.relu()
    values, where = positive.flatten().topk(round(k * len(pre)), sorted=False)
    extra["threshold"].lerp_(values.detach().min(), 0.01)
    return torch.zeros_like(positive).flatten().scatter(0, where, values).view_as(pre), pre.new_zeros(())


_CODES = {"relu": _relu, "jumprelu": _jumprelu, "batchtopk": _batchtopk}

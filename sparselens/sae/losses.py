"""How the architectures without a fixed k are trained: ReLU + L1, JumpReLU, gated, BatchTopK. One rule each.

All work in training units (inputs of norm sqrt(d) on average) and aim at `t.k` active latents per token.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.sae.latents import Latents
from sparselens.sae.rules import Rule, Step
from sparselens.sae.selection import largest_of_batch

if TYPE_CHECKING:
    from sparselens.sae.trainer import SAETrainer

# Half of this, on either side of a threshold, is where JumpReLU's threshold feels the pre-activations.
BANDWIDTH = 0.2
# How fast the L1 weight follows the number of active latents, per step, in log units.
_L1_RATE = 0.02
# How fast the threshold for use follows the smallest code that survives a batch, per step.
FOLLOW = 0.01


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


class Above(torch.autograd.Function):
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


def steered_l1(t: "SAETrainer", s: Step, sizes: Tensor) -> Tensor:
    """An L1 penalty on `sizes [n, d_sae]` (decoder rows have norm 1), its weight steered so that k codes are active."""
    l0 = t.mean((s.codes != 0).detach().sum() / len(s.x))
    t.extra["log_l1"] += _L1_RATE * (l0 / t.k - 1).clamp(-1, 1)
    return s.y.shape[1] * t.extra["log_l1"].exp() * sizes.sum() / len(s.x)


@dataclass(frozen=True)
class SteeredL1(Rule):
    """ReLU with an L1 penalty that is steered to k active latents."""

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        t.remember("log_l1", torch.tensor(1 / x.shape[1], device=x.device).log())

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        return s.pre.relu()

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        return steered_l1(t, s, s.codes)


@dataclass(frozen=True)
class GatedL1(SteeredL1):
    """Gated: the L1 penalty is on the gate, which also has to reconstruct by itself, with the decoder held fixed
    (Rajamanoharan et al., 2024a)."""

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        return s.model.activation(s.pre)

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        part: Any = s.model.activation
        gate = (s.pre + part.b_gate).relu()
        alone = gate @ s.model.W_dec.detach() + s.model.b_dec.detach()
        return steered_l1(t, s, gate) + (s.y - alone).square().sum() / len(s.x)


@dataclass(frozen=True)
class TargetL0(Rule):
    """JumpReLU with a quadratic penalty around k active latents (Rajamanoharan et al., 2024b)."""

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        threshold: Any = t.model.activation.threshold
        if not threshold.any():  # a fresh one: k latents per token start out active
            threshold.data.fill_(smallest_survivor(t, x))

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        return Jump.apply(s.pre, s.model.activation.threshold).relu()

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        l0 = Above.apply(s.pre, s.model.activation.threshold).sum() / len(s.x)
        l0 = l0 + (t.mean(l0) - l0).detach()  # the penalty is about the whole batch, of which this process has a share
        return s.y.shape[1] * (l0 / t.k - 1) ** 2

    @torch.no_grad()
    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        threshold: Any = t.model.activation.threshold
        threshold.clamp_(min=0)


@dataclass(frozen=True)
class PerBatch(Rule):
    """The k * n largest of a batch of n tokens; the threshold for use follows the smallest of them.

    Under `torchrun` every process chooses within its own share of the batch.
    """

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        threshold: Any = t.model.activation.threshold
        if not threshold.any():
            threshold.fill_(smallest_survivor(t, x))

    def choose(self, t: "SAETrainer", s: Step) -> Tensor:
        pre, signed = s.pre.detach(), s.model.activation.signed
        where = largest_of_batch(pre, t.k, signed).sort().values
        kept = pre.flatten()[where].float()
        smallest = t.mean((kept.abs() if signed else kept.relu()).min())
        threshold: Any = s.model.activation.threshold
        threshold.lerp_(smallest, FOLLOW)
        return where


@torch.no_grad()
def smallest_survivor(t: "SAETrainer", x: Tensor) -> float:
    """The k-th largest pre-activation per token on average, over a sample."""
    pre = t.model.linear(t.model.centred(x))
    where = largest_of_batch(pre, max(t.k, 1 / len(x)), t.model.activation.signed)
    kept = pre.flatten()[where]
    return float((kept.abs() if t.model.activation.signed else kept.relu()).min())


def dense_codes(where: Tensor, pre: Tensor, signed: bool) -> Tensor:
    """Codes `[n, d_sae]` that survive at flat indices, with their graph."""
    values = pre.flatten()[where]
    kept = values if signed else values.relu()
    return torch.zeros_like(pre).flatten().scatter(0, where, kept).view_as(pre)


def as_dense(codes: Latents | Tensor) -> Tensor:
    """Codes as `[n, d_sae]`."""
    return codes if isinstance(codes, Tensor) else codes.dense()

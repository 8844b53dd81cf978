"""Which input channels of a token to keep: scores in float32, and gates that cut them off."""

from dataclasses import dataclass
from math import floor

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GATES = ("topk", "threshold")


def n_kept(sparsity: float, d_in: int) -> int:
    """Channels that a sparsity leaves, `d_in - floor(sparsity * d_in)`, with float error rounded away."""
    return d_in - floor(sparsity * d_in + 1e-6)


def channel_scores(
    x: Float[Tensor, "*batch d_in"], scale: Float[Tensor, "d_in"] | None = None
) -> Float[Tensor, "*batch d_in"]:
    """`|x_j|`, or `|x_j| * scale_j`, in float32: a product in float16 would overflow."""
    scores = x.detach().float().abs()
    return scores if scale is None else scores * scale


@dataclass(frozen=True)
class TopK:
    """Keeps exactly the `k` channels of the highest score, of every token."""

    k: int

    def cut(self, scores: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """The lowest score that is kept, per token."""
        if self.k == 0:
            return torch.full_like(scores[..., :1], torch.inf)
        return scores.kthvalue(scores.shape[-1] - self.k + 1, dim=-1, keepdim=True).values

    def keep(self, scores: Float[Tensor, "*batch d_in"]) -> Bool[Tensor, "*batch d_in"]:
        """The channels to keep; among equals at the edge, some."""
        kept = torch.zeros_like(scores, dtype=torch.bool)
        return kept.scatter_(-1, scores.topk(self.k, dim=-1, sorted=False).indices, True)


@dataclass(frozen=True)
class Threshold:
    """Keeps the channels whose score is above `tau`; how many differs from token to token."""

    tau: float

    def cut(self, scores: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """`tau`, per token."""
        return torch.full_like(scores[..., :1], self.tau)

    def keep(self, scores: Float[Tensor, "*batch d_in"]) -> Bool[Tensor, "*batch d_in"]:
        """The channels to keep. One that is not a number is kept, so that it shows."""
        return ~(scores <= self.tau)


Gate = TopK | Threshold

"""Block-Sparse: the key blocks whose mean key fits the mean query of a block best."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Allowed, Pattern, pooled, top_blocks

FORCED = 3  # blocks kept in every row: the first, the query's own, and the one before


class BlockSparse(SparseAttention):
    """For each query block the key blocks with the largest product of means, with the first and the last two.

    Args:
        budget: share of the allowed pairs to keep: so many blocks a row, as near as can be. None for `top`.
        top: blocks in a row, without a budget; at least 3.
        block: tokens in a block. Small ones choose better, blocks of 64 are faster.
        phase, executor, prompt: as for `SparseAttention`.

    Source: The Sparse Frontier, arXiv 2504.17768.
    """

    def __init__(self, budget: float | int | None = None, *, top: int = 64, block: int = 16, **settings: Any):
        super().__init__(budget, **settings)
        self.top, self.block = checked_count("top", top, FORCED), checked_count("block", block)

    def prefill(self, layer: Layer) -> Pattern:
        block = (self.block, self.block)
        query = real_means(layer.query.float(), layer.real_queries, self.block)
        key = real_means(layer.key.float(), layer.real_keys, self.block)
        scores = query @ key.repeat_interleave(query.shape[1] // layer.n_kv, 1).transpose(2, 3)
        possible = layer.allowed.tiles(block) > 0
        scores = scores.masked_fill(forced(possible, layer.allowed, self.block), torch.inf)
        top = self.top if self.budget is None else rows_for(layer.allowed, block, self.budget)[:, None, None]
        return Pattern(top_blocks(scores, top, possible.expand(scores.shape)), block)


def real_means(x: Tensor, real: Tensor, block: int) -> Tensor:
    """Means of `[b, heads, n, d]` over blocks of tokens, those of padding left out."""
    if bool(real.all()):
        return pooled(x, block)
    weight = real[:, None, :, None].to(x.dtype)
    return pooled(x * weight, block) / pooled(weight, block).clamp(min=1e-9)


def forced(possible: Tensor, allowed: Allowed, block: int) -> Tensor:
    """The blocks kept in every row `[b|1, heads|1, nq, nk]`: the first possible, the own one and the one before."""
    blocks = torch.arange(possible.shape[-1], device=possible.device)
    own = allowed.diagonal((block, block))[:, None]
    near = (blocks == own) | (blocks == own - 1)
    first = blocks == possible.int().argmax(-1, keepdim=True)
    return (near | first) & possible


def rows_for(allowed: Allowed, block: tuple[int, int], budget: float) -> Int[Tensor, "b"]:
    """How many blocks a query block may keep, its own among them, so that the density is nearest to a budget; for each
    row of a batch.
    """
    counts = allowed.tiles(block).double()
    most = counts.shape[-1]
    if budget == 1:
        return torch.full(counts.shape[:1], most, device=counts.device)
    # which blocks will be chosen is not known yet: the own one, which causality cuts, and then the largest
    own = torch.arange(most, device=counts.device) == allowed.diagonal(block)[:, None]
    first = (counts * own).sum(-1, keepdim=True)
    best = torch.cat([first, (counts * ~own).sort(-1, descending=True).values[..., : most - 1]], -1)
    density = best.cumsum(-1).sum((1, 2)) / counts.sum((1, 2, 3))[:, None].clamp(min=1)
    return (density - budget).abs().argmin(-1) + 1


def block_density(top: int, n_blocks: int) -> float:
    """Share of the causal blocks that `top` a row keep: `(t(t+1)/2 + (n-t)t) / (n(n+1)/2)` for t of n.

    Source: the official code of The Sparse Frontier.
    """
    top = min(top, n_blocks)
    return (top * (top + 1) / 2 + (n_blocks - top) * top) / (n_blocks * (n_blocks + 1) / 2)

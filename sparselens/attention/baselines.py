"""Yardsticks: the first and last tokens, blocks by lot, and the best choice there is."""

import torch
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Pattern, top_blocks

_WANTED = 64  # queries scored at once by the oracle


class SinkWindow(SparseAttention):
    """The first tokens of a row and the last before each query: what StreamingLLM keeps.

    Args:
        budget: share of the allowed pairs to keep.
        sink: how many first tokens.
        phase, executor, prompt: as for `SparseAttention`.

    Source: Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453.
    """

    phases = ("both", "prefill", "decode")

    def __init__(self, budget: float | int = 0.125, *, sink: int = 4, **settings):
        super().__init__(budget, **settings)
        self.sink = checked_count("sink", sink, 0)

    def decode(self, layer: Layer) -> Pattern:
        may = layer.allowed.rows().expand(layer.query.shape[0], -1, -1, -1)
        before = may.int().cumsum(-1, dtype=torch.int32)  # how many allowed keys up to this one
        total = before[..., -1:]
        # queries of one row differ in what they may see: each keeps its share, so the whole keeps the budget
        count = _counts(self, total)
        first = torch.minimum(count, total.new_tensor(self.sink))
        keep = may & ((before <= first) | (before > total - (count - first)))
        return Pattern(keep.expand(-1, layer.query.shape[1], -1, -1).clone(), (1, 1))


def _counts(method: SparseAttention, total: Tensor) -> Tensor:
    """How many of `total` keys a budget leaves each query, at least one."""
    return torch.round(total * (method.budget or 1.0)).int().clamp(min=1)


class RandomBlocks(SparseAttention):
    """Key blocks by lot, and the query's own block.

    Args:
        budget: share of the allowed pairs to keep.
        block: tokens in a key block.
        seed: of the lot. It falls on layer, head, query and block, so decoding and recomputing agree.
        phase, executor, prompt: as for `SparseAttention`.
    """

    phases = ("both", "prefill", "decode")

    def __init__(self, budget: float | int = 0.125, *, block: int = 16, seed: int = 0, **settings):
        super().__init__(budget, **settings)
        self.block, self.seed = checked_count("block", block), seed

    def decode(self, layer: Layer) -> Pattern:
        tiles = layer.allowed.tiles((1, self.block)).expand(layer.query.shape[0], layer.query.shape[1], -1, -1)
        n_blocks, device = tiles.shape[-1], tiles.device
        heads, blocks = torch.arange(tiles.shape[1], device=device), torch.arange(n_blocks, device=device)
        own = layer.allowed.own[:, None, :, None]
        place = (heads[:, None, None] * 65_536 + layer.index) * 1_048_576 + own
        lot = _hashed(place * 65_536 + blocks, self.seed).expand(tiles.shape)
        lot = lot.masked_fill(blocks == own // self.block, 2.0)
        total = (tiles > 0).sum(-1)
        count = torch.round(total * (self.budget or 1.0)).int().clamp(min=1)
        return Pattern(top_blocks(lot, count, tiles > 0), (1, self.block))


def _hashed(x: Tensor, seed: int) -> Tensor:
    """A number from 0 to 1 for each whole number: the same on every device, whatever comes before it."""
    x = x * 6_364_136_223_846_793_005 + ((seed * 2 + 1) * 1_442_695_040_888_963_407 % 2**62)
    for shift, factor in ((33, -49_064_778_989_728_563), (29, -4_265_267_296_055_464_877)):
        x = (x ^ (x >> shift)) * factor
    return ((x ^ (x >> 32)) & 0xFFFFFF).float() / 0x1000000


class TopKOracle(SparseAttention):
    """The keys of the largest attention weights of each query. It needs all of them, so it saves nothing: it shows
    how good a choice of single keys can be.

    Args:
        budget: share of the allowed pairs to keep.
        phase, executor, prompt: as for `SparseAttention`.
    """

    phases = ("both", "prefill", "decode")

    def __init__(self, budget: float | int = 0.125, **settings):
        super().__init__(budget, **settings)

    def decode(self, layer: Layer) -> Pattern:
        keys, rows = layer.keys().float().transpose(2, 3), []
        for start in range(0, layer.allowed.n_q, _WANTED):
            may = layer.allowed.rows(start, min(start + _WANTED, layer.allowed.n_q))
            scores = layer.query[:, :, start : start + _WANTED].float() @ keys * layer.scale
            scores = scores.masked_fill(~may, -torch.inf)
            count = _counts(self, may.sum(-1)).long()
            best = scores.topk(int(count.max()), -1).values
            least = best.gather(-1, (count - 1).expand(scores.shape[:-1])[..., None])
            rows.append((scores >= least) & may)
        return Pattern(torch.cat(rows, 2), (1, 1))

"""SnapKV and Ada-SnapKV: which cached keys of a prompt are kept for decoding."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Pattern, top_blocks
from sparselens.errors import InputError

SINK, RECENT, KERNEL = 4, 128, 21


class SnapKV(SparseAttention):
    """After a dense prompt, keep the keys that its last queries attend to most, the same number for each key head.

    Decoding looks at the kept keys of the prompt and at all later ones. The first 4 keys of the prompt and its last
    128 (half the capacity, where that is less) are always kept.

    Args:
        budget: share of the prompt's keys to keep. None for `capacity`.
        capacity: keys kept for each key head, without a budget.
        window: last queries of the prompt that are looked at.
        phase, executor, prompt: as for `SparseAttention`.

    Source: SnapKV, arXiv 2404.14469, as in The Sparse Frontier, arXiv 2504.17768 (which needs a capacity above 132).
    """

    phases = ("decode",)

    def __init__(self, budget: float | int | None = None, *, capacity: int = 1024, window: int = 256, **settings: Any):
        super().__init__(budget, **settings)
        self.capacity, self.window = checked_count("capacity", capacity, 8), checked_count("window", window)

    def observe(self, layer: Layer) -> None:
        """Choose the keys to keep, once the prompt has been read."""
        scores = importance(layer, self.window)
        real = layer.real_keys
        n = real.sum(-1)
        capacity = torch.full_like(n, self.capacity) if self.budget is None else torch.round(self.budget * n).long()
        capacity = torch.minimum(capacity.clamp(min=1), n)
        # keys after the prompt of a row, also where other rows go on, are new ones: all are kept
        layer.state["kept"] = self.kept(scores, real, capacity) | ~real[:, None]

    def kept(
        self, scores: Float[Tensor, "b kv k"], real: Bool[Tensor, "b k"], capacity: Tensor
    ) -> Bool[Tensor, "b kv k"]:
        """The keys to keep, `capacity` for each key head of a row."""
        scores = scores.masked_fill(always(real, capacity)[:, None], torch.inf)
        return top_blocks(scores, capacity[:, None], real[:, None].expand(scores.shape))

    def decode(self, layer: Layer) -> Pattern:
        if "kept" not in layer.state:
            raise InputError(f"{type(self).__name__} chooses what to keep when it reads the prompt, and it was put on "
                             "after that. Attach it before the prompt is read, and generate from the beginning.")
        kept = layer.state["kept"].repeat_interleave(layer.query.shape[1] // layer.n_kv, 1)
        keep = F.pad(kept, (0, layer.allowed.n_k - kept.shape[-1]), value=True)
        return Pattern(keep[:, :, None], (layer.allowed.n_q, 1))


class AdaSnapKV(SnapKV):
    """SnapKV whose capacity is shared out among the key heads of a layer: each gets a floor, the rest goes to the most
    attended keys of all heads.

    Args:
        budget, capacity, window, phase, executor, prompt: as for `SnapKV`; the capacity is the mean over key heads.
        floor: share of the capacity that every key head gets.

    Source: Ada-KV, arXiv 2407.11550, as in The Sparse Frontier.
    """

    def __init__(self, budget: float | int | None = None, *, floor: float | int = 0.2, **settings: Any):
        super().__init__(budget, **settings)
        if not 0 <= floor <= 1:
            raise InputError(f"floor={floor!r} is out of range: give a share from 0 to 1.")
        self.floor = floor

    def kept(
        self, scores: Float[Tensor, "b kv k"], real: Bool[Tensor, "b k"], capacity: Tensor
    ) -> Bool[Tensor, "b kv k"]:
        own = always(real, capacity)
        scores = scores.masked_fill(own[:, None], torch.inf)
        least = torch.maximum((self.floor * capacity).long(), own.sum(-1)).minimum(capacity)
        may = real[:, None].expand(scores.shape)
        first = top_blocks(scores, least[:, None], may)
        rest = capacity * scores.shape[1] - first.sum((-1, -2))
        more = top_blocks(scores.flatten(1), rest, (may & ~first).flatten(1)).view_as(first)
        return first | more


def importance(layer: Layer, window: int) -> Float[Tensor, "b kv k"]:
    """Attention of the last queries on each key: mean over the query heads of a key head, summed over the queries,
    smoothed by a mean over 21 neighbours (zeros beyond the ends).
    """
    weights = layer.attention(*layer.last_rows(window))
    sums = weights.unflatten(1, (layer.n_kv, -1)).mean(2).sum(2)
    return F.avg_pool1d(sums, KERNEL, stride=1, padding=KERNEL // 2)


def always(real: Bool[Tensor, "b k"], capacity: Tensor) -> Bool[Tensor, "b k"]:
    """The first and last keys of a prompt, which are kept whatever they score."""
    place = real.long().cumsum(-1)
    recent = (capacity // 2).clamp(max=RECENT)[:, None]
    sink = torch.minimum(capacity[:, None] - recent, torch.full_like(recent, SINK))
    return real & ((place <= sink) | (place > place[:, -1:] - recent))

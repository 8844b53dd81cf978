"""Quest: pages of the cache that a query could attend to most, by the range of their keys."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Pattern, share_heads, top_blocks

_ROWS = 64  # queries scored at once


class Quest(SparseAttention):
    """For each query the pages of keys with the highest upper bound of a score, and the page it is in itself.

    The bound is `sum_d max(q_d min_d, q_d max_d)` over the least and largest value of each channel in the page, kept
    up to date while decoding. With `phase="prefill"` every query of a text is treated as if it were decoded.

    Args:
        budget: share of the keys to read, in whole pages. None for `tokens`.
        tokens: keys to read, without a budget.
        page: keys in a page.
        share_pages: read the same pages for all query heads of a key head, by the sum of their bounds.
        phase, executor, prompt: as for `SparseAttention`.

    Source: Quest, arXiv 2406.10774, as in The Sparse Frontier, arXiv 2504.17768.
    """

    phases = ("decode", "prefill", "both")

    def __init__(
        self,
        budget: float | int | None = None,
        *,
        tokens: int = 1024,
        page: int = 16,
        share_pages: bool = True,
        **settings: Any,
    ):
        super().__init__(budget, **settings)
        self.tokens, self.page = checked_count("tokens", tokens), checked_count("page", page)
        self.share_pages = share_pages

    def decode(self, layer: Layer) -> Pattern:
        low, high = self.ranges(layer)
        allowed, rows = layer.allowed, []
        for start in range(0, allowed.n_q, _ROWS):
            stop = min(start + _ROWS, allowed.n_q)
            scores = bounds(layer.query[:, :, start:stop].float(), low, high)
            if self.share_pages:
                scores = share_heads(scores, layer.n_kv, "sum")
            possible = allowed.part(start, stop).tiles((1, self.page)) > 0
            possible = torch.nn.functional.pad(possible, (0, scores.shape[-1] - possible.shape[-1]))
            own = allowed.own[:, None, start:stop, None] // self.page
            pages = torch.arange(scores.shape[-1], device=scores.device)
            scores = scores.masked_fill(pages == own, torch.inf)
            total = possible.sum(-1)
            count = torch.full_like(total, self.tokens // self.page + 1)
            if self.budget is not None:
                count = torch.round(self.budget * total).long().clamp(min=1)
            rows.append(top_blocks(scores, count, possible.expand(scores.shape)))
        return Pattern(torch.cat(rows, 2), (1, self.page))

    def ranges(self, layer: Layer) -> tuple[Float[Tensor, "b kv pages d"], Float[Tensor, "b kv pages d"]]:
        """Least and largest value of each channel in each page. Pages that were full before are not read again."""
        key, state = layer.key.float(), layer.state
        n_k, kept = key.shape[2], state.get("ranges")
        # the last key of the kept pages tells whether the cache is still the one they were made from
        known = 0 if kept is None else kept[0].shape[2] * self.page
        if known > n_k or (known and not torch.equal(state["last"], key[:, :, known - 1])):
            known = 0
        low, high = page_ranges(key[:, :, known:], layer.real_keys[:, known:], self.page)
        if known and kept is not None:
            low, high = torch.cat([kept[0], low], 2), torch.cat([kept[1], high], 2)
        whole = int(layer.real_keys.sum(-1).min()) // self.page
        if whole:
            state["ranges"] = low[:, :, :whole], high[:, :, :whole]
            state["last"] = key[:, :, whole * self.page - 1].clone()
        return low, high


def page_ranges(key: Tensor, real: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """Least and largest value of each channel in pages of keys `[b, kv, pages, d]`, padding left out; 0 where a page
    is all padding.
    """
    rest = -key.shape[2] % page
    there = torch.nn.functional.pad(real, (0, rest))[:, None, :, None]
    key = torch.nn.functional.pad(key, (0, 0, 0, rest))
    low, high = (
        key.masked_fill(~there, fill).unflatten(2, (-1, page)) for fill in (torch.inf, -torch.inf)
    )
    return low.amin(3).nan_to_num(posinf=0.0), high.amax(3).nan_to_num(neginf=0.0)


def bounds(
    query: Float[Tensor, "b h q d"], low: Float[Tensor, "b kv pages d"], high: Float[Tensor, "b kv pages d"]
) -> Float[Tensor, "b h q pages"]:
    """The largest product that a query could have with a key in the range of each page."""
    groups = query.shape[1] // low.shape[1]
    low, high = (x.repeat_interleave(groups, 1).transpose(2, 3) for x in (low, high))
    # positive channels meet the largest value, negative ones the least
    return query.clamp(min=0) @ high + query.clamp(max=0) @ low

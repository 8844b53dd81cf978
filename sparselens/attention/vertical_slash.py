"""Vertical-Slash: some key columns for all queries, and some distances; and FlexPrefill's sizes for it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count, nearest
from sparselens.attention.pattern import Pattern
from sparselens.errors import InputError

GRANULARITIES = ("exact", "kernel64")
SINK, BAND, KERNEL = 4, 64, 64
_STEPS = 512  # of a share that is looked for


class VerticalSlash(SparseAttention):
    """Key columns and distances that the last queries attend to most, the same number for every head.

    Args:
        budget: share of the allowed pairs to keep: as many columns as distances, by bisection on the density. None
            for `vertical` columns and `slash` distances.
        vertical, slash: how many, without a budget.
        window: last queries that are looked at.
        granularity: "exact" keeps single keys; "kernel64" what a kernel of 64 queries computes: for a block of them a
            distance becomes a stretch of 64 keys. Only the latter is faster than dense attention.
        phase, executor, prompt: as for `SparseAttention`.

    The first 4 columns and the smallest 64 distances come first. Source: MInference, arXiv 2407.02490, as in The
    Sparse Frontier, arXiv 2504.17768.
    """

    def __init__(
        self,
        budget: float | int | None = None,
        *,
        vertical: int = 512,
        slash: int = 512,
        window: int = 256,
        granularity: str = "exact",
        **settings: Any,
    ):
        super().__init__(budget, **settings)
        self.vertical, self.slash = checked_count("vertical", vertical), checked_count("slash", slash)
        self.window, self.granularity = checked_count("window", window), granularity
        if granularity not in GRANULARITIES:
            raise InputError(f"granularity={granularity!r} is unknown; valid are {', '.join(GRANULARITIES)}.")

    def prefill(self, layer: Layer) -> Pattern:
        lines = Lines(layer, self.window)
        if self.budget is None:
            return lines.pattern(self.granularity, self.vertical, self.slash)
        most = layer.allowed.n_k
        if self.budget == 1:
            return lines.pattern(self.granularity, most, most)
        density = lambda n: lines.density(self.granularity, n[:, None], n[:, None])  # noqa: E731
        count = nearest(1, most, density, self.budget, layer.query)[:, None]
        return lines.pattern(self.granularity, count, count)


class FlexPrefill(VerticalSlash):
    """Vertical-Slash with sizes of each head's own: as many columns and distances as hold a share of its attention.

    Args:
        budget: share of the allowed pairs to keep, over all heads: by bisection on `alpha`, without least sizes. None
            for `alpha` and `min_size`.
        alpha: share of the attention of the last queries that the columns, and the distances, hold.
        min_size: fewest columns and fewest distances.
        window, granularity, phase, executor, prompt: as for `VerticalSlash`.

    Only the vertical-slash branch of FlexPrefill (arXiv 2502.20766) is here, as in The Sparse Frontier.
    """

    def __init__(
        self,
        budget: float | int | None = None,
        *,
        alpha: float | int = 0.65,
        min_size: int = 512,
        window: int = 512,
        granularity: str = "exact",
        **settings: Any,
    ):
        super().__init__(budget, window=window, granularity=granularity, **settings)
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha!r} is out of range: give a share from 0 to 1.")
        self.alpha, self.min_size = alpha, checked_count("min_size", min_size)

    def prefill(self, layer: Layer) -> Pattern:
        lines = Lines(layer, self.window)
        if self.budget is None:
            return lines.pattern(self.granularity, *lines.sizes(self.alpha, self.min_size))
        most = layer.allowed.n_k
        if self.budget == 1:
            return lines.pattern(self.granularity, most, most)
        sizes = lambda step: lines.sizes(step[:, None, None] / _STEPS, 1)  # noqa: E731
        density = lambda step: lines.density(self.granularity, *sizes(step))  # noqa: E731
        return lines.pattern(self.granularity, *sizes(nearest(0, _STEPS, density, self.budget, layer.query)))


Count = int | Tensor  # for all heads, or [b, heads|1]


class Lines:
    """Columns and distances of one layer, ranked by the attention that the last queries give them.

    Attributes:
        columns, distances: attention on each key, and at each distance, `[b, heads, k]`; they sum to the number of
            queries looked at.
        column_rank, distance_rank: place of each, those always kept first, `[b, heads, k]`.
    """

    def __init__(self, layer: Layer, window: int):
        self.layer = layer
        rows, there = layer.last_rows(window)
        weights = layer.attention(rows, there)
        self.seen = there.sum(-1)
        self.columns = weights.sum(2)
        self.distances = distance_sums(weights, rows[:, 0] if there.all() else _starts(rows, there), layer)
        keys = torch.arange(layer.allowed.n_k, device=weights.device)
        real = layer.real_keys
        place = real.long().cumsum(-1) - 1
        sink = (real & (place < SINK))[:, None]
        self.column_rank = _ranks(self.columns.masked_fill(sink, torch.inf))
        # of the smallest distances the smaller comes first, so that a small budget keeps a window without gaps
        near = torch.where(keys < BAND, 2.0 + 2 * len(keys) - keys.float(), -torch.inf)
        self.distance_rank = _ranks(torch.maximum(self.distances / self.seen.clamp(min=1)[:, None, None], near))
        self.first = real.int().argmax(-1)[:, None, None]
        queries = layer.real_queries
        self.end = (queries * torch.arange(1, layer.allowed.n_q + 1, device=keys.device)).amax(-1)[:, None, None]
        self.end = self.end + layer.allowed.offset

    def sizes(self, alpha: float | int | Tensor, least: int) -> tuple[Int[Tensor, "b h"], Int[Tensor, "b h"]]:
        """Columns and distances that hold a share of the attention, of each head."""
        counts = []
        for sums in (self.columns, self.distances):
            mass = sums.sort(-1, descending=True).values.cumsum(-1) / self.seen.clamp(min=1)[:, None, None]
            counts.append((1 + (mass <= alpha).sum(-1)).clamp(min=least, max=sums.shape[-1]))
        return counts[0], counts[1]

    def chosen(self, vertical: Count, slash: Count) -> tuple[Bool[Tensor, "b h k"], Bool[Tensor, "b h k"]]:
        """Columns and distances that are kept."""
        sizes = [s[..., None] if isinstance(s, Tensor) else s for s in (vertical, slash)]
        return self.column_rank < sizes[0], self.distance_rank < sizes[1]

    def density(self, granularity: str, vertical: Count, slash: Count) -> Float[Tensor, "b"]:
        """Share of the allowed pairs that sizes keep; from the lines alone, for causal layers without windows."""
        columns, distances = self.chosen(vertical, slash)
        if granularity != "exact" or not self.layer.allowed.causal:
            kept, pairs = self.pattern(granularity, vertical, slash).pairs(self.layer.allowed)
            return kept.sum(-1) / pairs.sum(-1).clamp(min=1)
        n, start, end = columns.shape[-1], self.layer.allowed.offset, self.end
        at = torch.arange(n, device=columns.device)
        first_row = self.first.clamp(min=start)
        by_column = (end - torch.maximum(at, first_row)).clamp(min=0) * (columns & (at >= self.first))
        by_distance = (end - torch.maximum(at + self.first, first_row)).clamp(min=0) * distances
        running = F.pad(distances.int().cumsum(-1), (1, 0))  # distances smaller than an index
        upper, lower = ((edge - at).clamp(min=0, max=n).expand(columns.shape) for edge in (end, first_row))
        both = (running.gather(-1, upper) - running.gather(-1, lower)).clamp(min=0) * (columns & (at >= self.first))
        kept = (by_column.sum(-1) + by_distance.sum(-1) - both.sum(-1)).double().sum(-1)
        rows = torch.maximum(end - first_row, end.new_zeros(1))
        total = columns.shape[1] * (rows * (first_row - self.first) + rows * (rows + 1) // 2).double().sum((1, 2))
        return kept / total.clamp(min=1)

    def pattern(self, granularity: str, vertical: Count, slash: Count) -> Pattern:
        """The pattern of sizes, for all heads or for each."""
        columns, distances = self.chosen(vertical, slash)
        allowed = self.layer.allowed
        keys = torch.arange(allowed.n_k, device=columns.device)
        if granularity == "exact":
            return Pattern(by_distance(distances, allowed.n_q) | columns[:, :, None], (1, 1))
        ends = (torch.arange(-(-allowed.n_q // KERNEL), device=keys.device)[:, None] + 1) * KERNEL + allowed.offset
        running = F.pad(distances.int().cumsum(-1), (1, 0))
        upper, lower = ((ends - edge - keys).clamp(min=0, max=allowed.n_k) for edge in (0, KERNEL))
        squares = running[..., upper] > running[..., lower]
        return Pattern(squares | columns[:, :, None], (KERNEL, 1))


def by_distance(distances: Bool[Tensor, "b h k"], n_q: int) -> Bool[Tensor, "b h q k"]:
    """The mask of distances for the last `n_q` of `k` queries: key j of query i is kept where `i - j` is, if j <= i."""
    n = distances.shape[-1]
    line = F.pad(distances.flip(-1), (0, n))
    rows = line.unfold(-1, n, 1)  # row s holds the distances of query n - 1 - s, and nothing after it
    return rows[..., :n_q, :].flip(-2)


def _starts(rows: Tensor, there: Tensor) -> Tensor:
    """The row that the first place of a window stands for, also where it lies before the first query."""
    count = rows.shape[1]
    last = torch.where(there, rows, -1).amax(-1)
    return last - count + 1


def _ranks(scores: Tensor) -> Tensor:
    """Place of each score in descending order; ties by index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    return torch.empty_like(order).scatter(-1, order, places)


def distance_sums(
    weights: Float[Tensor, "b h a k"], first: Int[Tensor, "b"], layer: Layer
) -> Float[Tensor, "b h k"]:
    """Attention at each distance between query and key, over queries that follow each other.

    Args:
        weights: attention of the queries.
        first: the first of them, of each row.
        layer: for the positions.
    """
    _, _, a, k = weights.shape
    # rows shifted by one against each other: equal distances then stand in one column
    skewed = F.pad(weights.flip(-1), (0, a)).flatten(-2)[..., : a * (k + a - 1)].unflatten(-1, (a, k + a - 1)).sum(-2)
    index = torch.arange(k, device=weights.device) - (first + layer.allowed.offset)[:, None] + k - 1
    inside = (index >= 0) & (index < k + a - 1)
    index = index.clamp(0, k + a - 2)[:, None].expand(-1, weights.shape[1], -1)
    return skewed.gather(-1, index) * inside[:, None]

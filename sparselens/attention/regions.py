"""How Combiner divides what a query may see: some keys directly, all others in regions that stand for their tokens."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.errors import InputError, closest


@dataclass(frozen=True)
class Group:
    """Regions of one kind.

    Attributes:
        members: `[regions, width]` tokens of each region; -1 fills up shorter ones.
        slots: `[n, seen]` regions that each query sees; -1 where there are fewer.
        own: `[regions]` for regions that a token of theirs speaks for: that token, whose query weighs the members and
            whose summary is the key. None where query and key are pooled over the members.
    """

    members: Int[Tensor, "regions width"]
    slots: Int[Tensor, "n seen"]
    own: Int[Tensor, "regions"] | None = None


@dataclass(frozen=True)
class Division:
    """What each query sees directly, and through which regions. Together they cover every allowed key.

    Attributes:
        direct: `[n, width]` tokens seen directly; -1 where there are fewer.
        groups: the regions.
    """

    direct: Int[Tensor, "n width"]
    groups: tuple[Group, ...]

    def to(self, device: torch.device) -> "Division":
        """The same, where the numbers are."""
        if self.direct.device == device:
            return self
        groups = (
            Group(g.members.to(device), g.slots.to(device), None if g.own is None else g.own.to(device))
            for g in self.groups
        )
        return Division(self.direct.to(device), tuple(groups))


def packed(chosen: Tensor) -> Tensor:
    """Indices of the True entries of each row, ascending, filled up with -1: `[rows, n]` bool -> `[rows, most]`."""
    width = max(1, int(chosen.sum(1).max())) if chosen.numel() else 1
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order.masked_fill(~chosen.gather(1, order), -1)


def fixed(n: int, span: int, causal: bool) -> Division:
    """Direct: the query's own span of `span` tokens. Regions: all other spans (causal: earlier ones)."""
    at = torch.arange(n)
    mine = at // span
    direct = mine[:, None] == mine
    starts = torch.arange(0, n, span)
    members = starts[:, None] + torch.arange(span)
    members = members.masked_fill(members >= n, -1)
    region = torch.arange(len(starts))
    seen = region < mine[:, None] if causal else region != mine[:, None]
    return Division(packed(direct & (at <= at[:, None]) if causal else direct), (Group(members, packed(seen)),))


def logsparse(n: int, span: int, causal: bool) -> Division:
    """Direct: the query itself. Regions: the blocks of 2, 4, 8 ... tokens that tile all before it, one for each set bit
    of its position.
    """
    at, groups = torch.arange(n), []
    for level in range(max(0, (n - 1).bit_length())):
        size = 2**level
        members = torch.arange(0, n, size)[:, None] + torch.arange(size)
        left = (at >> level) - 1
        slots = torch.where((at >> level) % 2 == 1, left, -1)
        groups.append(Group(members.masked_fill(members >= n, -1), slots[:, None]))
    return Division(at[:, None], tuple(groups))


def axial_rowmajor(n: int, span: int, causal: bool) -> Division:
    """Rows of `span` tokens. Direct: the query's row (causal: up to itself). Regions: all other rows (causal: earlier),
    each spoken for by its token in the query's column.
    """
    row, column, at = _grid(n, span)
    direct = row[:, None] == row
    members = torch.where(row[:, None] == row, at, -1)
    members = packed(members >= 0)
    rows = torch.arange(int(row[-1]) + 1)
    speakers = (rows * span + column[:, None]).clamp(max=n - 1)  # a short last row may lack the column
    other = rows < row[:, None] if causal else rows != row[:, None]
    slots = speakers.masked_fill(~other, -1)
    return Division(packed(direct & (at <= at[:, None]) if causal else direct), (Group(members, slots, own=at),))


def axial_vertical(n: int, span: int, causal: bool) -> Division:
    """Direct: the query's row and column (causal: up to itself). Regions: of each other column the tokens in earlier
    rows; without causality those in later rows too.
    """
    row, column, _ = _grid(n, span)
    r, u = _grid(int(row[-1] + 1) * span, span)[:2]  # the last row may be short: its grid is not
    groups = []
    for above in (True, False)[: 1 if causal else 2]:
        rows = row < r[:, None] if above else row > r[:, None]
        members = (u[:, None] == column) & rows  # region of (r, u): column u above row r, or below
        seen = (row[:, None] == r) & (column[:, None] != u) & members.any(1)
        groups.append(Group(packed(members), packed(seen)))
    return Division(_cross(n, span, causal), tuple(groups))


def axial_horizontal(n: int, span: int, causal: bool) -> Division:
    """Direct: as `axial_vertical`. Regions: of each other row (causal: earlier) the tokens left of the query's column,
    and those right of it.
    """
    row, column, at = _grid(n, span)
    if not causal and n % span:  # a short last row may lack the column: its regions are asked for all the same
        row, column, at = _grid(-(-n // span) * span, span)
    same, there = row[:, None] == row, at < n
    other = row[:n, None] > row if causal else row[:n, None] != row
    groups = []
    for side in (column < column[:, None], column > column[:, None]):
        members = same & side & there  # region of (t, c): row t left, or right, of column c
        seen = other & (column[:n, None] == column) & members.any(1)
        groups.append(Group(packed(members), packed(seen)))
    return Division(_cross(n, span, causal), tuple(groups))


def mixture(n: int, span: int, causal: bool) -> Division:
    """The regions of `axial_vertical` and of `axial_horizontal` together: every indirect key is covered twice."""
    down, across = axial_vertical(n, span, causal), axial_horizontal(n, span, causal)
    return Division(down.direct, down.groups + across.groups)


def _grid(n: int, span: int) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(n)
    return at // span, at % span, at


def _cross(n: int, span: int, causal: bool) -> Tensor:
    row, column, at = _grid(n, span)
    cross = (row[:, None] == row) | (column[:, None] == column)
    return packed(cross & (at <= at[:, None]) if causal else cross)


def partition(labels: Int[Tensor, "n"], causal: bool = True) -> Division:
    """A division by labels of any kind, such as clusters. Direct: the tokens with the query's label (causal: up to
    itself). Regions: those of each other label (causal: up to the query).

    Args:
        labels: of each token, whole numbers.
        causal: whether a query sees only itself and those before it.
    """
    n = len(labels)
    at, same = torch.arange(n), labels[:, None] == labels
    past = at <= at[:, None]
    if not causal:
        kinds = labels.unique()
        return Division(packed(same), (Group(packed(kinds[:, None] == labels), packed(labels[:, None] != kinds)),))
    # the region of token j: all up to j with its label; a query sees the last such region of each other label
    following = torch.where(same & (at > at[:, None]), at, n).amin(1)
    seen = past & ~same & (following > at[:, None])
    return Division(packed(same & past), (Group(packed(same & past), packed(seen)),))


PLANS: dict[str, Callable[[int, int, bool], Division]] = {
    "fixed": fixed,
    "logsparse": logsparse,
    "axial_rowmajor": axial_rowmajor,
    "axial_vertical": axial_vertical,
    "axial_horizontal": axial_horizontal,
    "mixture": mixture,
}
CAUSAL_ONLY = ("logsparse",)


@functools.lru_cache(maxsize=64)
def divide(plan: str, n: int, span: int, causal: bool) -> Division:
    """The division of `n` tokens by a plan. Planning looks at all pairs; it is done once for each length.

    Raises:
        InputError: an unknown plan, a span below 1, or a plan that is causal only.
    """
    if plan not in PLANS:
        raise InputError(f"plan={plan!r} is unknown; valid are {', '.join(PLANS)}.{closest(plan, PLANS)}")
    if span < 1:
        raise InputError(f"span={span}: a span has at least one token.")
    if not causal and plan in CAUSAL_ONLY:
        raise InputError(f"plan={plan!r} is for causal attention; with causal=False use another plan.")
    return PLANS[plan](n, span, causal)


def without_summaries(division: Division) -> Division:
    """The sparse attention that a plan improves on: of each region only one token, its last (or the one that speaks for
    it), seen directly.
    """
    parts = [division.direct]
    for group in division.groups:
        last = group.members.max(1).values if group.own is None else group.own
        parts.append(torch.where(group.slots >= 0, last[group.slots.clamp(min=0)], -1))
    direct = torch.cat(parts, 1)
    sees = torch.zeros(len(direct), len(direct) + 1, dtype=torch.bool)
    sees.scatter_(1, direct.masked_fill(direct < 0, len(direct)), True)  # each token once
    return Division(packed(sees[:, :-1]), ())

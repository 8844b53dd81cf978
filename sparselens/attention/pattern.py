"""The contract of sparse attention: what a layer may look at, and which key blocks each query block keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.errors import InputError

_AT_ONCE = 2**25  # blocks that are counted at once


@dataclass(frozen=True, eq=False)
class Allowed:
    """What queries may look at before anything is made sparse: causality, padding, and the model's own windows.

    The queries are the last `n_q` of `n_k` positions.

    Attributes:
        n_q, n_k: numbers of queries and keys.
        causal: whether query i sees keys up to `i + n_k - n_q` only.
        mask: bool `[b|1, heads|1, n_q, n_k]` that says it all, causality included; None where `causal` does.
        device: where masks are made.
        places: position of each query among the keys, `[b, n_q]`, where rows differ in it (then with a mask).
    """

    n_q: int
    n_k: int
    causal: bool = True
    mask: Bool[Tensor, "b h q k"] | None = None
    device: torch.device = torch.device("cpu")
    places: Int[Tensor, "b q"] | None = None

    @property
    def own(self) -> Int[Tensor, "b q"]:
        """Position of each query among the keys, `[b|1, n_q]`."""
        if self.places is not None:
            return self.places
        return (torch.arange(self.n_q, device=self.device) + self.offset)[None]

    @property
    def offset(self) -> int:
        """Position of the first query among the keys."""
        return self.n_k - self.n_q

    def rows(self, start: int = 0, stop: int | None = None) -> Bool[Tensor, "b h r k"]:
        """The keep mask of queries `start` to `stop`, `[b|1, heads|1, rows, n_k]`."""
        stop = self.n_q if stop is None else stop
        if self.mask is not None:
            return self.mask[:, :, start:stop]
        if not self.causal:
            return torch.ones(1, 1, stop - start, self.n_k, dtype=torch.bool, device=self.device)
        last = torch.arange(start, stop, device=self.device) + self.offset
        return (torch.arange(self.n_k, device=self.device) <= last[:, None])[None, None]

    def part(self, start: int, stop: int) -> "Allowed":
        """The same for queries `start` to `stop` alone, with the keys up to the last of them."""
        places = None if self.places is None else self.places[:, start:stop]
        n_k = self.offset + stop if self.causal and places is None else self.n_k
        mask = None if self.mask is None else self.mask[:, :, start:stop, :n_k]
        return Allowed(stop - start, n_k, self.causal, mask, self.device, places)

    def tiles(self, block: tuple[int, int]) -> Int[Tensor, "b h nq nk"]:
        """How many allowed pairs of tokens each tile holds; tiles at the ends may be smaller."""
        (bq, bk), shape = block, (-(-self.n_q // block[0]), -(-self.n_k // block[1]))
        if self.mask is not None:
            if block == (1, 1):
                return self.mask.long()
            padded = F.pad(self.mask, (0, shape[1] * bk - self.n_k, 0, shape[0] * bq - self.n_q))
            counted = padded.unflatten(-1, (shape[1], bk)).sum(-1, dtype=torch.int32)
            return counted.unflatten(-2, (shape[0], bq)).sum(-2, dtype=torch.int64)
        row = (torch.arange(shape[0] + 1, device=self.device) * bq).clamp(max=self.n_q)
        key = (torch.arange(shape[1] + 1, device=self.device) * bk).clamp(max=self.n_k)
        if not self.causal:
            return (row.diff()[:, None] * key.diff())[None, None]
        height = (row[:, None] + self.offset - key).clamp(min=0)
        stairs = height * (height + 1) // 2  # pairs above a row and right of a key
        return (stairs[1:, :-1] - stairs[:-1, :-1] - stairs[1:, 1:] + stairs[:-1, 1:])[None, None]

    def diagonal(self, block: tuple[int, int]) -> Int[Tensor, "nq"]:
        """For each query block the key block that holds its last query's own position."""
        last = torch.arange(1, -(-self.n_q // block[0]) + 1, device=self.device) * block[0]
        return (last.clamp(max=self.n_q) + self.offset - 1) // block[1]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which key blocks each query block keeps, per query head. A mask of single keys has blocks of one key.

    The mask that counts is the pattern expanded to tokens AND what is allowed.

    Attributes:
        keep: bool `[b, heads, nq, nk]`.
        block: tokens in a query block and in a key block.
        repaired: real queries that would have looked at nothing, and were given the block of their own position.
    """

    keep: Bool[Tensor, "b h nq nk"]
    block: tuple[int, int]
    repaired: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern) or self.block != other.block or self.keep.shape != other.keep.shape:
            return False
        return torch.equal(self.keep, other.keep)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.keep.shape))
        return f"Pattern({shape} blocks of {self.block[0]} x {self.block[1]}, {self.repaired} rows repaired)"

    def rows(self, allowed: Allowed, start: int = 0, stop: int | None = None) -> Bool[Tensor, "b h r k"]:
        """The mask of queries `start` to `stop`, `[b, heads, rows, n_k]`."""
        stop = allowed.n_q if stop is None else stop
        bq, bk = self.block
        first = start // bq
        keep = self.keep[:, :, first : -(-stop // bq)]
        if bk > 1:
            keep = keep.repeat_interleave(bk, -1)[..., : allowed.n_k]
        if bq > 1:
            keep = keep.repeat_interleave(bq, -2)[:, :, start - first * bq : stop - first * bq]
        return keep & allowed.rows(start, stop)

    def pairs(self, allowed: Allowed) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h"]]:
        """Kept and allowed pairs of tokens, of each row of the batch and each head."""
        if self.block == (1, 1):
            kept = (self.keep & allowed.rows()).view(torch.uint8).sum(-1, dtype=torch.int32).sum(-1).double()
            return kept, allowed.tiles((allowed.n_q, allowed.n_k)).double()[..., 0, 0].expand_as(kept)
        counts = allowed.tiles(self.block)
        kept = (self.keep * counts).sum((-1, -2)).double()
        return kept, counts.sum((-1, -2)).double().expand_as(kept)

    def density(self, allowed: Allowed) -> float:
        """Kept pairs of tokens as a share of the allowed ones."""
        kept, all_ = self.pairs(allowed)
        return float(kept.sum() / all_.sum().clamp(min=1))

    def block_density(self, allowed: Allowed) -> float:
        """Kept blocks as a share of those with an allowed pair."""
        possible = allowed.tiles(self.block) > 0
        return float((self.keep & possible).sum() / possible.expand_as(self.keep).sum().clamp(min=1))

    def repaired_for(self, allowed: Allowed) -> "Pattern":
        """The same pattern, in which every query that may look at something does.

        A query left with nothing is given the block of its own position, or where that is not allowed the nearest
        allowed one before it, or else the first allowed. `repaired` counts such queries, over all heads.
        """
        bq, bk = self.block
        nq = self.keep.shape[2]
        own = allowed.own[:, None].clamp(min=0) // bk  # [b|1, 1, q]
        if allowed.mask is None:
            last = own if allowed.causal else torch.full_like(own, self.keep.shape[3] - 1)
            first = self.keep.view(torch.uint8).argmax(-1, keepdim=True)  # a view of bytes: far faster than bools
            first = torch.where(self.keep.gather(-1, first), first, self.keep.shape[3])[..., 0]
            empty = first.repeat_interleave(bq, -1)[..., : allowed.n_q] > last
            target = own.expand(empty.shape)
        else:
            padded = F.pad(allowed.mask, (0, self.keep.shape[3] * bk - allowed.n_k, 0, nq * bq - allowed.n_q))
            may = padded.unflatten(-1, (-1, bk)).any(-1).unflatten(-2, (nq, bq))
            empty = may.any(-1) & ~(may & self.keep[:, :, :, None]).any(-1)
            empty = empty.flatten(-2)[..., : allowed.n_q]
            may = may.flatten(2, 3)[:, :, : allowed.n_q]
            blocks = torch.arange(self.keep.shape[3], device=allowed.device)
            before = torch.where(may & (blocks <= own[..., None]), blocks, -1).amax(-1)
            target = torch.where(before >= 0, before, may.int().argmax(-1)).expand(empty.shape)
        if not bool(empty.any()):
            return self
        keep = self.keep.clone()
        b, h, row = empty.nonzero(as_tuple=True)
        keep[b, h, row // bq, target[b, h, row]] = True
        return Pattern(keep, self.block, self.repaired + int(empty.sum()))

    def part(self, allowed: Allowed) -> "Pattern":
        """Only the blocks in which something is allowed."""
        return Pattern(self.keep & (allowed.tiles(self.block) > 0), self.block, self.repaired)

    def tiles(self, allowed: Allowed, size: int) -> Float[Tensor, "b h nq nk"]:
        """Kept pairs as a share of the allowed ones in tiles of `size` x `size` tokens; 0 where none is allowed."""
        if size % self.block[0] or size % self.block[1]:
            kept = self._kept_tokens(allowed, size)
        else:
            kept = self._kept_blocks(allowed, size)
        return kept / allowed.tiles((size, size)).clamp(min=1)

    def _kept_tokens(self, allowed: Allowed, size: int) -> Float[Tensor, "b h nq nk"]:
        """Kept pairs of each tile, by tokens."""
        blocks = []
        n_k = -(-allowed.n_k // size)
        for start in range(0, allowed.n_q, size):
            rows = self.rows(allowed, start, min(start + size, allowed.n_q)).sum(-2, dtype=torch.float32)
            blocks.append(F.pad(rows, (0, n_k * size - allowed.n_k)).unflatten(-1, (n_k, size)).sum(-1))
        return torch.stack(blocks, -2)

    def _kept_blocks(self, allowed: Allowed, size: int) -> Float[Tensor, "b h nq nk"]:
        """The same where blocks fit into tiles, without a mask of tokens."""
        (bq, bk), counts = self.block, allowed.tiles(self.block)
        rows, n_k = size // bq, -(-allowed.n_k // size)
        step = rows * max(1, _AT_ONCE // (self.keep[:, :, 0].numel() * rows))
        beside, parts = n_k * (size // bk) - counts.shape[3], []
        for start in range(0, counts.shape[2], step):
            at = slice(start, start + step)
            kept = self.keep[:, :, at] * counts[:, :, at]
            kept = F.pad(kept, (0, beside, 0, -kept.shape[2] % rows)).unflatten(-1, (n_k, size // bk)).sum(-1)
            parts.append(kept.unflatten(-2, (-1, rows)).sum(-2))
        return torch.cat(parts, -2).float()


def full(allowed: Allowed, batch: int, n_heads: int, block: tuple[int, int] = (64, 64)) -> Pattern:
    """The pattern that keeps all."""
    shape = (-(-allowed.n_q // block[0]), -(-allowed.n_k // block[1]))
    return Pattern(torch.ones(batch, n_heads, *shape, dtype=torch.bool, device=allowed.device), block)


def top_blocks(
    scores: Float[Tensor, "*b nk"], count: int | Int[Tensor, "*c"], possible: Bool[Tensor, "*d nk"]
) -> Bool[Tensor, "*b nk"]:
    """The `count` highest scores of each row among the possible ones, all where there are fewer; ties by index.

    Args:
        scores: one a block.
        count: how many to keep, for all rows or for each (broadcast to the rows).
        possible: blocks that may be kept.
    """
    scores = scores.masked_fill(~possible, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device)
    limit = count[..., None] if isinstance(count, Tensor) else count
    chosen = (places < limit).expand(scores.shape)
    return torch.zeros_like(chosen).scatter(-1, order, chosen) & possible


def pooled(x: Float[Tensor, "b h n d"], block: int) -> Float[Tensor, "b h blocks d"]:
    """Means over blocks of tokens; the last block is the mean of the tokens it has."""
    n = x.shape[-2]
    rest = n % block
    means = x[..., : n - rest, :].unflatten(-2, (n // block, block)).mean(-2)
    return torch.cat([means, x[..., n - rest :, :].mean(-2, keepdim=True)], -2) if rest else means


def share_heads(scores: Float[Tensor, "b h q k"], n_kv: int, how: str = "mean") -> Float[Tensor, "b h q k"]:
    """Scores reduced over the query heads of each key head, and given to all of them.

    Args:
        scores: one for each query head.
        n_kv: number of key heads.
        how: "mean", "sum" or "max".
    """
    groups = scores.unflatten(1, (n_kv, -1))
    reduced = groups.amax(2) if how == "max" else groups.sum(2) if how == "sum" else groups.mean(2)
    return reduced.repeat_interleave(groups.shape[2], 1)


def joined(patterns: Sequence[Pattern], heads: Sequence[Sequence[int]]) -> Pattern:
    """One pattern from patterns of some heads each.

    Raises:
        InputError: their blocks differ.
    """
    if len({p.block for p in patterns}) != 1:
        raise InputError("patterns of different block sizes cannot be joined.")
    order = torch.tensor([h for group in heads for h in group]).argsort()
    keep = torch.cat([p.keep for p in patterns], 1)[:, order]
    return Pattern(keep, patterns[0].block, sum(p.repaired for p in patterns))

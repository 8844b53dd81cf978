"""How a pattern is computed: under a mask, from gathered key blocks, or by flex attention. All give the same output."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparselens.attention.pattern import Allowed, Pattern
from sparselens.errors import InputError
from sparselens.models.attention_function import Heads

EXECUTORS = ("auto", "masked", "gather", "flex")
MASK_BYTES = 64 * 2**20  # of a mask that is held at once
_GATHER_DENSITY = 0.5  # below it gathering beats dense causal attention on a CPU: tests/benchmarks/bench_attention.py
_FLEX_TOKENS = 4096
_TILE = 128  # of the flex kernel
_Out = Float[Tensor, "b h q d"]


def execute(heads: Heads, pattern: Pattern, allowed: Allowed, executor: str = "auto") -> tuple[_Out, str]:
    """Attention over what a pattern keeps.

    Args:
        heads: queries, keys and values.
        pattern: repaired, so that no real query is left with nothing.
        allowed: what may be looked at.
        executor: one of `EXECUTORS`.

    Returns:
        The output `[b, heads, q, d_head]` (zeros for queries that may look at nothing) and the executor that ran.
    """
    if executor == "auto":
        executor = choose(pattern, allowed)
    return {"masked": masked, "gather": gather, "flex": flex}[executor](heads, pattern, allowed), executor


def choose(pattern: Pattern, allowed: Allowed) -> str:
    """The executor that is expected to be the fastest. One query: gather. On CUDA: flex for long sequences in tiles it
    can take. On a CPU: gather for low density in blocks of many queries. Else masked.
    """
    bq, bk = pattern.block
    if allowed.n_q == 1:
        return "gather"
    if allowed.device.type == "cuda":  # where gather would launch a dozen small kernels for each block of queries
        return "flex" if allowed.n_q >= _FLEX_TOKENS and bq % _TILE == 0 and bk % _TILE == 0 else "masked"
    return "gather" if bq >= 16 and pattern.density(allowed) <= _GATHER_DENSITY else "masked"


def masked(heads: Heads, pattern: Pattern, allowed: Allowed) -> _Out:
    """Scaled dot product attention under a bool mask, so many queries at once that the mask stays small.

    The reference: exact for every pattern, with gradients, and never faster than dense attention.
    """
    query = heads.query
    key, value = repeated(heads)
    b, h, n_q, _ = query.shape
    step = max(1, MASK_BYTES // (b * h * allowed.n_k))
    out = []
    for start in range(0, n_q, step):
        mask = pattern.rows(allowed, start, min(start + step, n_q))
        rows = query[:, :, start : start + step]
        new = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=heads.scale)
        if allowed.mask is not None:  # padding queries: some kernels give NaN, or an average over all keys
            new = new.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        out.append(new)
    return torch.cat(out, 2)


def repeated(heads: Heads) -> tuple[Tensor, Tensor]:
    """Keys and values, one for each query head."""
    groups = heads.query.shape[1] // heads.key.shape[1]
    if groups == 1:
        return heads.key, heads.value
    return heads.key.repeat_interleave(groups, 1), heads.value.repeat_interleave(groups, 1)


def gather(heads: Heads, pattern: Pattern, allowed: Allowed) -> _Out:
    """Attention of each query block over its kept key blocks, copied side by side. With gradients, on any device.

    Heads that keep fewer blocks than others are filled up with blocks that a mask takes out again, so the cost is
    that of the head that keeps most, query block by query block.
    """
    (bq, bk), (b, h, n_q, d) = pattern.block, heads.query.shape
    tiles = allowed.tiles(pattern.block)
    state = pattern.keep.int() * (1 + (tiles == tiles_whole(pattern, allowed)).int())  # 0 out, 1 partly, 2 whole
    order = state.argsort(dim=-1, descending=True, stable=True).flatten(0, 1)  # whole blocks first: they need no mask
    n_kept = (state > 0).sum(-1).flatten(0, 1)
    n_whole = (state == 2).sum(-1).flatten(0, 1).amin(0).tolist()
    n_slots = n_kept.amax(0).clamp(min=1).tolist()
    key, value = (_blocks(x, bk) for x in (heads.key, heads.value))
    base = _base(b, h, heads.key.shape[1], pattern.keep.shape[3], key.device)
    query = heads.query.flatten(0, 1) * heads.scale
    out = []
    for i in range(pattern.keep.shape[2]):
        start, stop, m = i * bq, min((i + 1) * bq, n_q), n_slots[i]
        blocks = order[:, i, :m]
        index = (blocks + base).flatten()
        scores = query[:, start:stop] @ key.index_select(0, index).view(b * h, m * bk, d).transpose(1, 2)
        whole = min(n_whole[i], m)
        if whole < m:
            there = torch.arange(whole, m, device=key.device) < n_kept[:, i, None]
            keep = _kept_tokens(allowed, blocks[:, whole:], there, (start, stop), bk, b)
            edge = scores[:, :, whole * bk :].masked_fill(~keep, -torch.inf)
            scores = edge if not whole else torch.cat([scores[:, :, : whole * bk], edge], -1)
        weights = _softmax(scores, allowed)
        out.append(weights @ value.index_select(0, index).view(b * h, m * bk, -1))
    return torch.cat(out, 1).unflatten(0, (b, h))


def tiles_whole(pattern: Pattern, allowed: Allowed) -> Tensor:
    """Pairs of tokens in each tile if all were allowed; a tile that reaches beyond the keys counts as larger."""
    bq, bk = pattern.block
    rows = torch.full((pattern.keep.shape[2],), bq, device=allowed.device)
    rows[-1] = allowed.n_q - bq * (len(rows) - 1)
    return (rows[:, None] * bk).expand(-1, pattern.keep.shape[3])


def _blocks(x: Tensor, block: int) -> Tensor:
    """`[b, h, n, d]` as `[b*h*blocks, block*d]`, filled up with zeros."""
    rest = -x.shape[2] % block
    x = F.pad(x, (0, 0, 0, rest)) if rest else x
    return x.reshape(-1, block * x.shape[-1])


def _base(b: int, h: int, n_kv: int, n_blocks: int, device: torch.device) -> Tensor:
    """Where the blocks of the key head of each query head begin, `[b*h, 1]`."""
    kv_head = torch.arange(h, device=device) // (h // n_kv)
    return ((torch.arange(b, device=device)[:, None] * n_kv + kv_head) * n_blocks).flatten()[:, None]


def _kept_tokens(
    allowed: Allowed, blocks: Tensor, there: Tensor, rows: tuple[int, int], bk: int, b: int
) -> Tensor:
    """Mask `[b*h, rows, slots*bk]` of gathered tokens: in a block that is there, and allowed."""
    tokens = (blocks[..., None] * bk + torch.arange(bk, device=blocks.device)).flatten(1)
    there = there.repeat_interleave(bk, 1)
    if allowed.mask is None:
        keep = there[:, None] & (tokens < allowed.n_k)[:, None]
        if allowed.causal:
            keep = keep & (tokens[:, None] <= torch.arange(*rows, device=blocks.device)[:, None] + allowed.offset)
        return keep
    inside = tokens.clamp(max=allowed.n_k - 1)
    mask = allowed.rows(*rows).expand(b, blocks.shape[0] // b, -1, -1).flatten(0, 1)
    chosen = mask.gather(-1, inside[:, None].expand(-1, rows[1] - rows[0], -1))
    return chosen & (there & (tokens < allowed.n_k))[:, None]


def _softmax(scores: Tensor, allowed: Allowed) -> Tensor:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, -1, dtype=dtype)
    if allowed.mask is not None:
        weights = weights.nan_to_num(0.0)  # a padding query looks at nothing
    return weights.to(scores.dtype)


def flex(heads: Heads, pattern: Pattern, allowed: Allowed) -> _Out:
    """PyTorch's flex attention with a block mask made from block lists; compiled on CUDA.

    The kernel works in tiles of 128 tokens: a finer pattern is computed exactly, but a tile of which anything is kept
    is computed whole. On a CPU flex attention is not compiled, and slow: it is there to be checked against.

    Lengths are rounded up, so that texts of many lengths share few kernels; tiles beyond the end are in no list.
    """
    return attend_blocks(heads, block_mask(pattern, allowed), allowed)


def attend_blocks(heads: Heads, mask: Any, allowed: Allowed) -> _Out:
    """Flex attention with a `BlockMask` made by `block_mask`, such as one that is used again."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = _compiled if heads.query.device.type == "cuda" else flex_attention
    groups = heads.query.shape[1] // heads.key.shape[1]
    query, key, value = (
        F.pad(x, (0, 0, 0, _rounded(x.shape[2]) - x.shape[2])) for x in (heads.query, heads.key, heads.value)
    )
    out = attend(query, key, value, block_mask=mask, scale=heads.scale, enable_gqa=groups > 1)[:, :, : allowed.n_q]
    return out if allowed.mask is None else out.nan_to_num(0.0)


def _rounded(n: int) -> int:
    """A number of tokens as the kernel gets it."""
    step = _TILE if n < _FLEX_TOKENS else 8 * _TILE
    return -(-n // step) * step


def block_mask(pattern: Pattern, allowed: Allowed) -> Any:
    """A `BlockMask` of flex attention in tiles of 128 x 128, for lengths rounded up: whole tiles by their lists, others
    with a rule for their tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    share = pattern.tiles(allowed, _TILE)
    possible = allowed.tiles((_TILE, _TILE))
    size = (_rounded(allowed.n_q), _rounded(allowed.n_k))
    whole = (share >= 1) & (possible == _TILE * _TILE)
    partly = (share > 0) & ~whole
    lists: list[Tensor] = []
    for tiles in (partly, whole):
        rest = [s // _TILE - t for s, t in zip(size, tiles.shape[2:], strict=True)]
        tiles = F.pad(tiles, (0, rest[1], 0, rest[0]))
        lists += [tiles.sum(-1, dtype=torch.int32), tiles.int().argsort(dim=-1, descending=True, stable=True).int()]
    counts, indices, full_counts, full_indices = lists
    return BlockMask.from_kv_blocks(counts, indices, full_counts, full_indices, BLOCK_SIZE=_TILE,
                                    mask_mod=_rule(pattern, allowed, size), seq_lengths=size)


def _rule(pattern: Pattern, allowed: Allowed, size: tuple[int, int]) -> Callable[..., Tensor]:
    """What is kept, token by token, for a batch row, head, query and key; nothing beyond the last key.

    Lengths are held in tensors: numbers would be compiled in, for each length anew.
    """
    bq, bk = pattern.block
    beyond = [-(-s // block) - n for s, block, n in zip(size, pattern.block, pattern.keep.shape[2:], strict=True)]
    keep = F.pad(pattern.keep, (0, beyond[1], 0, beyond[0]))
    n_k, offset = (torch.full((), n, device=keep.device) for n in (allowed.n_k, allowed.offset))  # no wait for the GPU
    if allowed.mask is not None:
        mask = F.pad(allowed.mask, (0, size[1] - allowed.n_k, 0, size[0] - allowed.n_q))
        rows, heads = (int(n > 1) for n in mask.shape[:2])
        return lambda b, h, q, k: keep[b, h, q // bq, k // bk] & mask[b * rows, h * heads, q, k]
    if allowed.causal:
        return lambda b, h, q, k: keep[b, h, q // bq, k // bk] & (k <= q + offset) & (k < n_k)
    return lambda b, h, q, k: keep[b, h, q // bq, k // bk] & (k < n_k)


_COMPILED: list = []
_KERNELS = 256  # most shapes compiled; PyTorch gives up after 8, and then computes all scores


def _compiled(*arguments: Tensor, **settings: Any) -> Tensor:
    """Flex attention, compiled once for each shape; an error, not a slow way, where it cannot be compiled."""
    import torch._dynamo as dynamo

    if not _COMPILED:
        from torch.nn.attention.flex_attention import flex_attention

        _COMPILED.append(torch.compile(flex_attention, dynamic=False, fullgraph=True))
    with dynamo.config.patch(recompile_limit=_KERNELS):
        return _COMPILED[0](*arguments, **settings)


def checked_executor(name: str) -> str:
    """`name`, if it is an executor.

    Raises:
        InputError: it is none.
    """
    if name not in EXECUTORS:
        raise InputError(f"executor={name!r} is unknown; valid are {', '.join(EXECUTORS)}.")
    return name

"""ASA, the adaptive block mask of Video-BLADE: blocks chosen by a sampled probe of the attention; ASA_G, with pooled
keys for what is left out; and the space-filling order of video tokens.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.attention.block_sparse import rows_for
from sparselens.attention.executors import MASK_BYTES, repeated
from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Allowed, Pattern, pooled, share_heads, top_blocks
from sparselens.errors import InputError, closest
from sparselens.models.attention_function import Heads

PROBES = ("softmax", "official")


class ASA(SparseAttention):
    """Block by block, the key blocks that hold most of what a sample of the queries attends to in a sample of the keys.

    Args:
        budget: share of the allowed pairs to keep, with `tau` 1. None for `tau`, `r_min` and `r_max`.
        block: tokens in a block.
        sample: tokens drawn from every block, the same places in all blocks of a head.
        tau: share of the importance that the kept blocks of a row hold.
        r_min, r_max: least and largest share of the blocks that a row keeps, whatever `tau` asks for.
        probe: "softmax": importance is attention in the probe. "official": each row relative to its largest score, as
            in the published code, whose kernel never sums the denominator.
        share_group: the same blocks for all query heads of a key head, by the largest importance.
        seed: of the sample, together with the layer.
        phase, executor, prompt: as for `SparseAttention`.

    The block that crosses `tau` is kept (the published code drops it). On a causal model the probe is causal and the
    own block is kept. Source: Video-BLADE, arXiv 2508.10774.
    """

    def __init__(
        self,
        budget: float | int | None = None,
        *,
        block: int = 128,
        sample: int = 16,
        tau: float | int = 0.95,
        r_min: float | int = 0.05,
        r_max: float | int = 0.17,
        probe: str = "softmax",
        share_group: bool = False,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(budget, **settings)
        if probe not in PROBES:
            raise InputError(f"probe={probe!r} is unknown; valid are {', '.join(PROBES)}.{closest(probe, PROBES)}")
        if not 0 < tau <= 1 or not 0 <= r_min <= r_max <= 1:
            raise InputError(f"tau={tau}, r_min={r_min}, r_max={r_max}: valid are 0 < tau <= 1 and "
                             "0 <= r_min <= r_max <= 1.")
        self.block, self.sample = checked_count("block", block), checked_count("sample", sample)
        self.tau, self.r_min, self.r_max, self.probe = tau, r_min, r_max, probe
        self.share_group, self.seed = share_group, seed

    def prefill(self, layer: Layer) -> Pattern:
        allowed, block = layer.allowed, (self.block, self.block)
        importance = block_importance(layer, self.block, self.sample, self.probe, self.seed)
        if self.share_group:
            importance = share_heads(importance, layer.n_kv, "max")
        possible = allowed.tiles(block) > 0
        if allowed.causal:
            own = torch.arange(possible.shape[-1], device=possible.device) == allowed.diagonal(block)[:, None]
            importance = importance.masked_fill(own & possible, 2.0)
        n = importance.shape[-1]
        if self.budget is not None:
            return Pattern(top_blocks(importance, rows_for(allowed, block, self.budget)[:, None, None],
                                      possible.expand(importance.shape)), block)
        # the own block was lifted above all others: its share of the mass is not known then, and not counted
        mass = importance.masked_fill(importance > 1, 0.0).sort(-1, descending=True).values.cumsum(-1)
        crossing = 1 + (mass < self.tau * mass[..., -1:]).sum(-1)
        count = crossing.clamp(min=max(1, int(n * self.r_min)), max=max(1, int(n * self.r_max)))
        return Pattern(top_blocks(importance, count, possible.expand(importance.shape)), block)


@torch.no_grad()
def block_importance(
    layer: Layer, block: int, sample: int, probe: str = "softmax", seed: int = 0
) -> Float[Tensor, "b h nq nk"]:
    """How much a sample of the queries of each block attends to a sample of the keys of each block; rows sum to 1.

    Args:
        layer: queries and keys.
        block, sample: tokens in a block, and drawn from it; with all of them drawn the probe is the attention.
        probe: see `ASA`.
        seed: of the sample.
    """
    allowed, b, h = layer.allowed, layer.query.shape[0], layer.query.shape[1]
    sample = min(sample, block)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer.index)
    q_at = _drawn(b, h, allowed.n_q, block, sample, generator).to(layer.query.device)
    k_at = _drawn(b, h, allowed.n_k, block, sample, generator).to(layer.query.device)
    query = layer.query.float().gather(2, q_at[..., None].expand(-1, -1, -1, layer.query.shape[-1]))
    key = layer.keys().float().gather(2, k_at[..., None].expand(-1, -1, -1, layer.key.shape[-1]))
    scores = query @ key.transpose(2, 3) * layer.scale
    scores = scores.masked_fill(~_may(allowed, q_at, k_at), -torch.inf)
    best = scores.amax(-1, keepdim=True).clamp(min=-1e30)
    weights = (scores - best).exp()
    if probe == "softmax":
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    tiles = weights.unflatten(-1, (-1, sample)).amax(-1).unflatten(-2, (-1, sample)).amax(-2)
    return tiles / tiles.sum(-1, keepdim=True).clamp(min=1e-30)


def _drawn(b: int, h: int, n: int, block: int, sample: int, generator: torch.Generator) -> Int[Tensor, "b h m"]:
    """Tokens drawn from every block: the same places in each, the last token again where a block ends before."""
    inside = torch.rand(b, h, block, generator=generator).argsort(-1)[..., :sample]
    starts = torch.arange(0, n, block)
    return (starts[:, None] + inside[:, :, None]).flatten(2).clamp(max=n - 1)


def _may(allowed: Allowed, q_at: Tensor, k_at: Tensor) -> Bool[Tensor, "b h q k"]:
    """Which pairs of drawn tokens are allowed."""
    if allowed.mask is None:
        keep = k_at[:, :, None] <= q_at[..., None] + allowed.offset
        return keep if allowed.causal else torch.ones_like(keep)
    mask = allowed.mask.expand(*q_at.shape[:2], -1, -1)
    rows = mask.gather(2, q_at[..., None].expand(-1, -1, -1, mask.shape[-1]))
    return rows.gather(3, k_at[:, :, None].expand(-1, -1, q_at.shape[2], -1))


def attend_with_pools(
    heads: Heads, pattern: Pattern, allowed: Allowed, pool: int, log_bias: bool = True
) -> Float[Tensor, "b h q d"]:
    """ASA_G: one softmax over the kept keys and over means of every `pool` keys, which count `pool` times each.

    Nothing is fully invisible then. Kept keys are in a mean too: they count twice, as published. With gradients.

    Args:
        heads: queries, keys and values of a layer that is not causal and has no padding.
        pattern, allowed: what is kept of the single keys.
        pool: keys in a mean, in the order of the tokens.
        log_bias: add `ln(pool)` to the scores of the means; False shows what it is for.

    Raises:
        InputError: a causal or padded layer, whose means would mix in what may not be seen.

    Source: Video-BLADE, the global variant of ASA.
    """
    if allowed.causal or allowed.mask is not None:
        raise InputError("pooled keys mix tokens that a causal or padded layer may not see: ASA_G is for layers that "
                         "see everything.")
    key, value = repeated(heads)
    means = [pooled(x, pool) for x in (key, value)]
    sizes = torch.full((means[0].shape[2],), pool, device=key.device)
    sizes[-1] = allowed.n_k - pool * (len(sizes) - 1)
    bias = sizes.to(heads.query.dtype).log() if log_bias else torch.zeros_like(sizes, dtype=heads.query.dtype)
    key, value = torch.cat([key, means[0]], 2), torch.cat([value, means[1]], 2)
    step = max(1, MASK_BYTES // (4 * heads.query.shape[0] * heads.query.shape[1] * key.shape[2]))
    out = []
    for start in range(0, allowed.n_q, step):
        keep = pattern.rows(allowed, start, min(start + step, allowed.n_q))
        single = torch.zeros(keep.shape, dtype=bias.dtype, device=key.device).masked_fill(~keep, -torch.inf)
        mask = torch.cat([single, bias.expand(*keep.shape[:-1], -1)], -1)
        rows = heads.query[:, :, start : start + step]
        out.append(F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=heads.scale))
    return torch.cat(out, 2)


@lru_cache(maxsize=32)
def gilbert_order(width: int, height: int, depth: int) -> tuple[int, ...]:
    """Flat indices `x + width * (y + height * z)` of a grid along a generalised Hilbert curve.

    Blocks of tokens that follow each other are then compact in space. With even sides every step goes to a neighbour.

    Source: J. Červený's generalised Hilbert curve, as in Video-BLADE.
    """
    for name, side in (("width", width), ("height", height), ("depth", depth)):
        checked_count(name, side)
    axes = [(width, 0, 0), (0, height, 0), (0, 0, depth)]
    axes.sort(key=lambda v: sum(v) < max(width, height, depth))  # a longest side first, the others as they are
    return tuple(x + width * (y + height * z) for x, y, z in _box((0, 0, 0), *axes))


Vector = tuple[int, int, int]


def _box(p: Vector, a: Vector, b: Vector, c: Vector) -> list[Vector]:
    """Cells of a box from a corner, along three signed axes."""
    w, h, d = (abs(sum(v)) for v in (a, b, c))
    if not w * h * d:
        return []
    if sorted((w, h, d))[1] == 1:
        along, length = max(((v, abs(sum(v))) for v in (a, b, c)), key=lambda pair: pair[1])
        return [_plus(p, _unit(along), times=i) for i in range(length)]
    ua, ub, uc = _unit(a), _unit(b), _unit(c)
    a2, b2, c2 = _half(a), _half(b), _half(c)
    a_rest, b_rest, c_rest = (_plus(v, v2, times=-1) for v, v2 in ((a, a2), (b, b2), (c, c2)))
    end_a = _plus(_plus(p, a), ua, times=-1)  # the last cell along the first axis
    minus = lambda v: _plus((0, 0, 0), v, times=-1)  # noqa: E731
    if 2 * w > 3 * h and 2 * w > 3 * d:
        return _box(p, a2, b, c) + _box(_plus(p, a2), a_rest, b, c)
    if 3 * h > 4 * d:
        return (_box(p, b2, c, a2) + _box(_plus(p, b2), a, b_rest, c)
                + _box(_plus(_plus(end_a, b2), ub, times=-1), minus(b2), c, minus(a_rest)))
    if 3 * d > 4 * h:
        return (_box(p, c2, a2, b) + _box(_plus(p, c2), a, b, c_rest)
                + _box(_plus(_plus(end_a, c2), uc, times=-1), minus(c2), minus(a_rest), b))
    near = _plus(_plus(p, b2), ub, times=-1)
    far = _plus(_plus(end_a, b2), _plus(c, uc, times=-1))
    return (_box(p, b2, c2, a2) + _box(_plus(p, b2), c, a2, b_rest)
            + _box(_plus(near, _plus(c, uc, times=-1)), a, minus(b2), minus(c_rest))
            + _box(far, minus(c), minus(a_rest), b_rest)
            + _box(_plus(_plus(end_a, b2), ub, times=-1), minus(b2), c2, minus(a_rest)))


def _plus(p: Vector, v: Vector, times: int = 1) -> Vector:
    return p[0] + times * v[0], p[1] + times * v[1], p[2] + times * v[2]


def _unit(v: Vector) -> Vector:
    x, y, z = ((n > 0) - (n < 0) for n in v)
    return x, y, z


def _half(v: Vector) -> Vector:
    """Half of an axis, even where it is longer than two."""
    x, y, z = (n // 2 for n in v)
    half = (x, y, z)
    return _plus(half, _unit(v)) if abs(sum(half)) % 2 and abs(sum(v)) > 2 else half



"""SparseD: block masks of each head from a diffusion model's own attention, made once and used for all later steps."""

from math import ceil
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Pattern, share_heads, top_blocks
from sparselens.errors import InputError, closest

MODES = ("isolated", "official")
SCALES = ("head_dim", "num_heads")


def switch_step(steps: int, skip: float | int) -> int:
    """The last dense step of a generation of `steps` steps, in which the masks are made: `int(steps * skip) + 1`."""
    return int(steps * skip) + 1


class SparseD(SparseAttention):
    """Dense for the first steps of a generation, then each head looks at the tiles that held most of its attention.

    Made for diffusion models, which run all tokens again at every step and say where they are
    (`Layer.denoising`). Elsewhere every pass is planned anew, without a prompt: for analysis.

    Args:
        select: share of the tiles of a row to keep: of those of the prompt and of those of the answer apart.
        skip: share of the steps that stay dense; 0.2 of 10 steps are steps 0 to 3, the last of which makes the masks.
        block: tokens in a tile.
        mode: "isolated" keeps `ceil(select * n)` of the n tiles of the prompt, and of the answer; "official" does what
            the published code does, where the prompt competes with the answer.
        share_group: the same tiles for all query heads of a key head, by their mean attention.
        scale: "head_dim", or "num_heads" to reproduce a slip of the published code for LLaDA.
        executor, prompt: as for `SparseAttention`.

    Source: SparseD, arXiv 2509.24014. Where an answer has no real key left, its own tile is kept, and counted.
    """

    def __init__(
        self,
        select: float | int = 0.3,
        *,
        skip: float | int = 0.2,
        block: int = 128,
        mode: str = "isolated",
        share_group: bool = False,
        scale: str = "head_dim",
        **settings: Any,
    ):
        super().__init__(select, **settings)
        if not 0 <= skip <= 1:
            raise InputError(f"skip={skip!r} is out of range: give the share of dense steps, from 0 to 1.")
        for name, value, valid in (("mode", mode, MODES), ("scale", scale, SCALES)):
            if value not in valid:
                raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(valid)}.{closest(value, valid)}")
        self.skip, self.block, self.mode = float(skip), checked_count("block", block), mode
        self.share_group, self.scale = share_group, scale

    def prefill(self, layer: Layer) -> Pattern | None:
        """The pattern of this step; None while it is dense.

        Raises:
            InputError: put on after the masks were to be made, or the number of tokens changed since.
        """
        now, state = layer.denoising, layer.state
        if now is None:
            return self.chosen(layer)
        switch = switch_step(now.steps, self.skip)
        if now.step == 0:
            state.clear()
        if now.step == switch:
            state["pattern"], state["tokens"] = self.chosen(layer), layer.allowed.n_k
        if now.step <= switch:
            return None
        if "pattern" not in state:
            raise InputError(f"SparseD was put on after step {switch}, in which the masks are made.")
        if state["tokens"] != layer.allowed.n_k:
            raise InputError(f"the masks were made for {state['tokens']} tokens, not {layer.allowed.n_k}: a new text "
                             "begins with step 0.")
        return state["pattern"]

    def chosen(self, layer: Layer) -> Pattern:
        """The tiles that each head keeps, from the attention of this pass."""
        n_heads = layer.query.shape[1]
        factor = (layer.query.shape[-1] / n_heads) ** 0.5 if self.scale == "num_heads" else 1.0
        importance = tile_importance(layer, self.block, factor)
        prompt = 0 if layer.denoising is None else layer.denoising.prompt
        border = first_answer_tile(prompt, layer.allowed.n_k, self.block)
        possible = layer.allowed.tiles((self.block, self.block)) > 0
        if self.share_group:
            importance = share_heads(importance, layer.n_kv)
        if self.mode == "official":
            answer = tile_importance(layer, self.block, factor, border * self.block)
            if self.share_group:
                answer = share_heads(answer, layer.n_kv)
            keep = official_tiles(importance, answer, border, self.budget or 1.0, possible)
        else:
            keep = isolated_tiles(importance, border, self.budget or 1.0, possible)
        return Pattern(keep, (self.block, self.block))


def first_answer_tile(n_prompt: int, n: int, block: int) -> int:
    """The first tile that begins at or after the end of the prompt; the last tile if there is none. 0: no prompt."""
    return min(ceil(n_prompt / block), ceil(n / block) - 1)


@torch.no_grad()
def tile_importance(
    layer: Layer, block: int, factor: float = 1.0, first_key: int = 0
) -> Float[Tensor, "b h nq nk"]:
    """Mean attention in each tile, the softmax over keys from `first_key` on; tiles at the end count as whole ones.

    Args:
        layer: queries and keys.
        block: tokens in a tile.
        factor: what scores are multiplied with besides the layer's scale.
        first_key: keys before it are left out; their tiles get 0.
    """
    allowed, keys = layer.allowed, layer.keys().float().transpose(2, 3)
    n_tiles, rows = -(-allowed.n_k // block), []
    for start in range(0, allowed.n_q, block):
        stop = min(start + block, allowed.n_q)
        scores = layer.query[:, :, start:stop].float() @ keys * (layer.scale * factor)
        if allowed.causal or allowed.mask is not None or first_key:
            keep = allowed.rows(start, stop).expand(scores.shape).clone()
            keep[..., :first_key] = False
            weights = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1).nan_to_num(0.0)
        else:
            weights = torch.softmax(scores, -1)
        sums = torch.nn.functional.pad(weights.sum(-2), (0, n_tiles * block - allowed.n_k))
        rows.append(sums.unflatten(-1, (n_tiles, block)).sum(-1) / block**2)
    return torch.stack(rows, -2)


def isolated_tiles(
    importance: Float[Tensor, "b h nq nk"], border: int, select: float, possible: Bool[Tensor, "c d nq nk"]
) -> Bool[Tensor, "b h nq nk"]:
    """The top `ceil(select * n)` of the n tiles before the border, and of those from it on, at least one of each."""
    parts = []
    for columns in (slice(0, border), slice(border, None)):
        scores = importance[..., columns]
        if scores.shape[-1]:
            count = max(1, ceil(select * scores.shape[-1] - 1e-9))
            parts.append(top_blocks(scores, count, possible[..., columns].expand(scores.shape)))
    return torch.cat(parts, -1)


def official_tiles(
    importance: Float[Tensor, "b h nq nk"],
    answer: Float[Tensor, "b h nq nk"],
    border: int,
    select: float,
    possible: Bool[Tensor, "c d nq nk"],
) -> Bool[Tensor, "b h nq nk"]:
    """As in the published code: the prompt's among the top `int(n * select) + 1` of all n tiles, and the answer's
    among its own by a softmax over its own keys.
    """
    n = importance.shape[-1]
    possible = possible.expand(importance.shape)
    keep = top_blocks(importance, min(n, int(n * select) + 1), possible)
    keep[..., border:] = False
    own = n - border
    count = min(own, max(1, int(own * select) + 1))
    keep[..., border:] = top_blocks(answer[..., border:], count, possible[..., border:])
    return keep


def stability(
    patterns: list[Bool[Tensor, "b h nq nk"]],
) -> tuple[Float[Tensor, "steps steps"], Float[Tensor, "steps"]]:
    """How alike the tiles of a layer stay over steps, and how alike its heads are.

    Args:
        patterns: tiles kept in each step, of one layer.

    Returns:
        Mean Jaccard similarity of the tiles of each head between steps; and of each step between different heads.
    """
    flat = torch.stack(patterns).flatten(-2).float()  # [steps, b, h, tiles]
    over_steps = torch.stack([_jaccard(flat, one).mean((-1, -2)) for one in flat])
    heads = torch.stack([_jaccard(flat, flat.roll(k, 2)).mean((-1, -2)) for k in range(1, flat.shape[2])])
    return over_steps, heads.mean(0) if len(heads) else torch.ones(len(flat))


def _jaccard(a: Tensor, b: Tensor) -> Tensor:
    both = (a * b).sum(-1)
    return both / ((a + b).sum(-1) - both).clamp(min=1)

"""How the attention patterns of a diffusion model differ between heads, and how they change while it writes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.attention.method import Layer
from sparselens.attention.pattern import Pattern
from sparselens.attention.sparsed import SparseD, stability
from sparselens.errors import InputError
from sparselens.models.diffusion import DiffusionLM

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas


@dataclass(frozen=True)
class PatternStability:
    """Likeness of the tiles that heads would keep, at every step of a dense generation. Made by `pattern_stability`.

    Attributes:
        keep: `[layers, steps, b, heads, nq, nk]` the tiles of each step.
        over_steps: `[layers, steps, steps]` mean Jaccard similarity of a head's tiles at two steps.
        over_heads: `[layers, steps]` mean Jaccard similarity of two heads of a layer at one step.
        by_lot: what two choices of as many tiles, made by lot, would have.
        block: tokens in a tile.
        prompt: tokens of the prompt.
    """

    keep: Bool[Tensor, "layers steps b heads nq nk"]
    over_steps: Float[Tensor, "layers steps steps"]
    over_heads: Float[Tensor, "layers steps"]
    by_lot: float
    block: int
    prompt: int

    def __repr__(self) -> str:
        layers, steps, _, heads = self.keep.shape[:4]
        return f"PatternStability({layers} layers, {steps} steps, {heads} heads, tiles of {self.block})"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a layer: layer, steps (mean similarity of two steps), first_last (of the first and the last step),
        heads (mean similarity of two heads), by_lot.
        """
        import pandas as pd

        n = self.over_steps.shape[1]
        apart = ~torch.eye(n, dtype=torch.bool)
        return pd.DataFrame([
            {"layer": i, "steps": float(steps[apart].mean()), "first_last": float(steps[0, -1]),
             "heads": float(heads.mean()), "by_lot": self.by_lot}
            for i, (steps, heads) in enumerate(zip(self.over_steps, self.over_heads, strict=True))
        ])

    def plot(self, layer: int = 0, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how alike the tiles of a layer are at every two steps. Returns the axes."""
        from sparselens.views import likeness_grid

        title = f"layer {layer}; two heads: {float(self.over_heads[layer].mean()):.2f}, by lot: {self.by_lot:.2f}"
        return likeness_grid(self.over_steps[layer].numpy(), "step", title, ax)

    def plot_heads(self, layer: int = 0, step: int = 0, row: int = 0) -> "matplotlib.figure.Figure":
        """Draw the tiles of all heads of a layer, with lines where the answer begins. Returns the figure."""
        from sparselens.views import tile_gallery

        tiles = self.keep[layer, step, row].numpy()
        return tile_gallery(tiles, [f"head {h}" for h in range(len(tiles))], self.prompt / self.block)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.2f}".format)


class _Everywhere(SparseD):
    """Chooses tiles at every step and leaves the attention dense."""

    def __init__(self, select: float, block: int):
        super().__init__(select, block=block)
        self.made: dict[int, list[Pattern]] = {}

    def prefill(self, layer: Layer) -> Pattern | None:
        self.made.setdefault(layer.index, []).append(self.chosen(layer))
        return None


def pattern_stability(
    lm: DiffusionLM,
    prompt: Int[Tensor, "b p"],
    new_tokens: int,
    *,
    steps: int | None = None,
    select: float = 0.3,
    block: int = 128,
) -> PatternStability:
    """Let a diffusion model write with dense attention, and note at each step which tiles SparseD would keep.

    Args:
        lm: a diffusion model.
        prompt: token ids, all of one length.
        new_tokens: length of the answers.
        steps: forward passes, at least two; one for each token by default.
        select, block: as for `SparseD`.

    Raises:
        InputError: fewer than two steps, or what `DiffusionLM.generate` refuses.
    """
    if (new_tokens if steps is None else steps) < 2:
        raise InputError("one step cannot be compared with others: let the model write in at least two.")
    method = _Everywhere(select, block)
    with lm.live.attach(method):
        lm.generate(prompt, new_tokens, steps=steps)
    kept = [[pattern.keep for pattern in method.made[i]] for i in sorted(method.made)]
    likeness = [stability(patterns) for patterns in kept]
    keep = torch.stack([torch.stack(patterns) for patterns in kept])
    over_steps, over_heads = (torch.stack(parts).cpu() for parts in zip(*likeness, strict=True))
    return PatternStability(keep.cpu(), over_steps, over_heads, _by_lot(keep, prompt.shape[1], block), block,
                            prompt.shape[1])


def _by_lot(keep: Tensor, prompt: int, block: int) -> float:
    """Jaccard similarity of tiles shuffled within the prompt's and the answer's columns of each row."""
    generator, border = torch.Generator().manual_seed(0), -(-prompt // block)
    one = keep[:, 0].float().cpu()
    other = []
    for columns in (one[..., :border], one[..., border:]):
        order = torch.rand(columns.shape, generator=generator).argsort(-1)
        other.append(columns.gather(-1, order))
    both = (one * torch.cat(other, -1)).sum((-1, -2))
    return float((both / (2 * one.sum((-1, -2)) - both).clamp(min=1)).mean())


class EveryStep(SparseD):
    """SparseD that makes its masks anew at every sparse step: what reuse is compared with. It saves nothing."""

    def prefill(self, layer: Layer) -> Pattern | None:
        """The pattern of this step, from its own attention; None while it is dense."""
        return None if super().prefill(layer) is None else self.chosen(layer)



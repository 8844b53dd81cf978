"""`MaskView`: which keys each attention head keeps, in tiles of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.curves import plain
from sparselens.views.html import as_array

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    import sparselens.views.mask_widget

_COLUMNS = 9  # heads beside each other


def mask_view(
    kept: Any,
    tokens: Sequence[str],
    tile: int,
    *,
    possible: Any = None,
    layers: Sequence[int] | None = None,
    lost: Any = None,
    other: Any = None,
    title: str | None = None,
) -> "MaskView":
    """Show which tiles of keys each head keeps.

    Args:
        kept: `[layers, heads, nq, nk]` share of each tile that is kept, 0 to 1.
        tokens: the text's tokens; `tile` of them belong to a tile.
        tile: tokens along the side of a tile.
        possible: bool `[nq, nk]`, tiles in which anything may be kept; all by default.
        layers: index of each layer; counted from 0 by default.
        lost: `[layers, heads, nq]` attention on keys that are left out, 0 to 1.
        other: a second method's `kept`; what only one of them keeps is then drawn.
        title: a heading.

    Raises:
        InputError: shapes that do not fit, or shares out of range.
        NotFiniteError: a number is NaN or infinite.
    """
    shares = as_array(kept)
    n = -(-len(tokens) // tile) if tile > 0 else 0
    if shares.ndim != 4 or not shares.size or shares.shape[2:] != (n, n):
        raise InputError(f"kept has shape {list(shares.shape)}; {len(tokens)} tokens in tiles of {tile} give "
                         f"[layers, heads, {n}, {n}].")
    second, gone = (None if x is None else as_array(x) for x in (other, lost))
    for name, value, shape in (("other", second, shares.shape), ("lost", gone, shares.shape[:3])):
        if value is not None and value.shape != shape:
            raise InputError(f"{name} has shape {list(value.shape)}, not {list(shape)}.")
    if min(shares.min(), 0 if second is None else second.min()) < 0 or shares.max() > 1.001:
        raise InputError("shares of tiles lie between 0 and 1.")
    may = np.ones((n, n), dtype=bool) if possible is None else np.asarray(possible, dtype=bool)
    named = list(range(len(shares))) if layers is None else [int(i) for i in layers]
    if len(named) != len(shares) or may.shape != (n, n):
        raise InputError(f"{len(named)} layers and possible of shape {list(may.shape)} do not fit kept, "
                         f"{list(shares.shape)}.")
    return MaskView(shares, [clean(t) for t in tokens], int(tile), may, named, gone, second, title)


@dataclass(frozen=True, eq=False, repr=False)
class MaskView(View):
    """Masks of attention heads; made by `mask_view`.

    Attributes:
        kept: float32 `[layers, heads, nq, nk]`, share of each tile that is kept.
        tokens: the text's tokens.
        tile: tokens along the side of a tile.
        possible: bool `[nq, nk]`.
        layers: index of each layer.
        lost: float32 `[layers, heads, nq]`, or None.
        other: a second method's `kept`, or None.
        title: a heading, or None.
        shown: position in `layers` of the layer that the static form shows.
    """

    kept: np.ndarray
    tokens: list[str]
    tile: int
    possible: np.ndarray
    layers: list[int]
    lost: np.ndarray | None = None
    other: np.ndarray | None = None
    title: str | None = None
    shown: int = 0

    def __repr__(self) -> str:
        n_layers, n_heads = self.kept.shape[:2]
        return f"MaskView({n_layers} layers, {n_heads} heads, {len(self.tokens):,} tokens in tiles of {self.tile})"

    def layer(self, index: int) -> "MaskView":
        """The same view with another layer in front.

        Raises:
            InputError: there is no such layer in it.
        """
        if index not in self.layers:
            raise InputError(f"no layer {index} here: there are {', '.join(map(str, self.layers))}.")
        return replace(self, shown=self.layers.index(index))

    def summary(self) -> str:
        """Say in a sentence how much is kept, and which head loses most."""
        touched = (self.kept > 0)[..., self.possible]
        said = f"{touched.mean():.1%} of the tiles are kept at least in part"
        if self.other is not None:
            both = touched & (self.other > 0)[..., self.possible]
            either = touched | (self.other > 0)[..., self.possible]
            share = both.sum() / max(either.sum(), 1)
            return f"{said}; of the tiles that either method keeps, {share:.1%} are in both."
        if self.lost is None:
            return said + "."
        mean = self.lost.mean(-1)
        layer, head = np.unravel_index(mean.argmax(), mean.shape)
        return (f"{said}. {mean.mean():.1%} of the attention falls on keys left out; most in layer "
                f"{self.layers[layer]}, head {head}: {mean.max():.1%}.")

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the masks of one layer with a sentence about all."""
        from sparselens.views.picture import captioned

        alt = f"Masks of layer {self.layers[self.shown]}"
        return captioned(self._draw(""), self.title, self.summary(), alt, max_bytes)

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the masks of one layer, a panel a head; below each the attention it loses, query by query."""
        import matplotlib.pyplot as plt

        figure = self._draw(self.title or "")
        plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
        return figure

    def _draw(self, title: str) -> "matplotlib.figure.Figure":
        import matplotlib.pyplot as plt

        n_heads = self.kept.shape[1]
        columns = min(n_heads, _COLUMNS)
        rows = -(-n_heads // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(1 + 1.15 * columns, 0.6 + 1.35 * rows), squeeze=False,
                                    layout="constrained", dpi=100)
        for head, axes in enumerate(grid.flat):
            axes.set(xticks=[], yticks=[])
            if head >= n_heads:
                axes.set_visible(False)
                continue
            self._panel(axes, head)
        named = f"layer {self.layers[self.shown]}"
        figure.suptitle(plain(f"{title}, {named}" if title else named), fontsize=10)
        figure.supxlabel("keys", fontsize=8)
        figure.supylabel("queries", fontsize=8)
        return figure

    def _panel(self, axes: "matplotlib.axes.Axes", head: int) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        mine = np.where(self.possible, self.kept[self.shown, head], np.nan)
        if self.other is None:
            colours = LinearSegmentedColormap.from_list("kept", ["#f2f2f2", "#0072B2"])
            axes.imshow(mine, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        else:
            colours = LinearSegmentedColormap.from_list("differ", ["#0072B2", "#f2f2f2", "#D55E00"])
            axes.imshow(mine - self.other[self.shown, head], cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        said = f"{head}" if self.lost is None else f"{head}: −{self.lost[self.shown, head].mean():.0%}"
        axes.set_title(said, fontsize=8, pad=2)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a head: layer, head, kept (mean share of the possible tiles), lost, other."""
        import pandas as pd

        n_layers, n_heads = self.kept.shape[:2]
        frame = pd.DataFrame({
            "layer": np.repeat(self.layers, n_heads), "head": np.tile(np.arange(n_heads), n_layers),
            "kept": self.kept[..., self.possible].mean(-1).ravel(),
        })
        if self.lost is not None:
            frame["lost"] = self.lost.mean(-1).ravel()
        if self.other is not None:
            frame["other"] = self.other[..., self.possible].mean(-1).ravel()
        return frame

    def _widget(self) -> "sparselens.views.mask_widget.MaskWidget":
        from sparselens.views.mask_widget import MaskWidget

        return MaskWidget(self)

"""`MaskView`: which keys each attention head keeps, in tiles of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
_GREEN = "#009E73"
Spans = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Mark:
    """Some tokens to follow through the masks, such as those of a needle.

    Attributes:
        spans: `(start, stop)` positions of tokens.
        kept: `[layers, heads, nq]` share of the marked keys that the queries of a tile keep, of those they may look at;
            0 where they may look at none.
        lost: `[layers, heads, nq]` mean attention of these queries on marked keys that are left out, or None.
    """

    spans: Spans
    kept: np.ndarray
    lost: np.ndarray | None = None


def mask_view(
    kept: Any,
    tokens: Sequence[str],
    tile: int,
    *,
    possible: Any = None,
    layers: Sequence[int] | None = None,
    lost: Any = None,
    other: Any = None,
    marks: Mapping[str, Any] | None = None,
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
        marks: name -> tokens to follow, as `(start, stop)`, a list of such, or a `Mark`. Without a `Mark` how much of
            them is kept is read off the tiles that hold them.
        title: a heading.

    Raises:
        InputError: shapes that do not fit, shares out of range, or marks outside the text.
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
    followed = {
        clean(name): _mark(name, value, shares, may, len(tokens), int(tile)) for name, value in (marks or {}).items()
    }
    return MaskView(shares, [clean(t) for t in tokens], int(tile), may, named, gone, second, followed, title)


def spans_of(name: str, value: Any, n_tokens: int) -> Spans:
    """Positions of tokens from `(start, stop)` or a list of such.

    Raises:
        InputError: no positions, or outside the text.
    """
    pairs = np.asarray(value)
    if not pairs.size or pairs.dtype.kind not in "iu" or pairs.shape[-1] != 2 or pairs.ndim > 2:
        raise InputError(f"mark {name!r} is {value!r}: give (start, stop), positions of tokens, or a list of such.")
    spans = [(int(start), int(stop)) for start, stop in pairs.reshape(-1, 2)]
    wrong = next((span for span in spans if not 0 <= span[0] < span[1] <= n_tokens), None)
    if wrong is not None:
        raise InputError(f"mark {name!r}: tokens {wrong[0]} to {wrong[1]} do not lie in a text of {n_tokens}.")
    return spans


def _mark(name: str, value: Any, kept: np.ndarray, possible: np.ndarray, n_tokens: int, tile: int) -> Mark:
    """A mark with numbers that fit the masks; from the tiles alone where it comes without."""
    if isinstance(value, Mark):
        spans = spans_of(name, value.spans, n_tokens)
        numbers = [None if x is None else as_array(x) for x in (value.kept, value.lost)]
        wrong = next((x for x in numbers if x is not None and x.shape != kept.shape[:3]), None)
        if numbers[0] is None or wrong is not None:
            found = None if wrong is None else list(wrong.shape)
            raise InputError(f"mark {name!r} has numbers of shape {found}, not {list(kept.shape[:3])}.")
        return Mark(spans, numbers[0], numbers[1])
    spans = spans_of(name, value, n_tokens)
    tiles = sorted({k for start, stop in spans for k in range(start // tile, (stop - 1) // tile + 1)})
    there = possible[:, tiles]
    return Mark(spans, (kept[..., tiles] * there).sum(-1) / np.maximum(there.sum(-1), 1))


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
        marks: name -> tokens that are followed.
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
    marks: dict[str, Mark] = field(default_factory=dict)
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

    def coarser(self, factor: int) -> "MaskView":
        """The same masks in tiles `factor` times as long: the mean of the tiles in which anything may be kept."""
        n = -(-len(self.possible) // factor)

        def rows(x: np.ndarray, axis: int) -> np.ndarray:
            """Sums along an axis over `factor` neighbours, the last group filled up with nothing."""
            widths = [(0, n * factor - size if i == axis % x.ndim else 0) for i, size in enumerate(x.shape)]
            grouped = np.pad(x, widths).reshape(*x.shape[: axis % x.ndim], n, factor, *x.shape[axis % x.ndim + 1 :])
            return grouped.sum(axis % x.ndim + 1)

        may = self.possible.astype(np.float32)
        tiles = rows(rows(may, -1), -2)
        queries = rows(np.ones(len(may), dtype=np.float32), -1)

        def tiled(shares: np.ndarray) -> np.ndarray:
            return rows(rows(shares * may, -1), -2) / np.maximum(tiles, 1)

        def by_query(shares: np.ndarray) -> np.ndarray:
            return rows(shares, -1) / queries

        other, lost = (None if x is None else fold(x) for x, fold in ((self.other, tiled), (self.lost, by_query)))
        marks = {name: Mark(mark.spans, by_query(mark.kept), None if mark.lost is None else by_query(mark.lost))
                 for name, mark in self.marks.items()}
        return replace(self, kept=tiled(self.kept), other=other, lost=lost, marks=marks, possible=tiles > 0,
                       tile=self.tile * factor)

    def summary(self) -> str:
        """Say how much is kept, which head loses most, and what the last queries keep of what is marked."""
        return " ".join([self._masks(), *(self._followed(name, mark) for name, mark in self.marks.items())])

    def _followed(self, name: str, mark: Mark) -> str:
        kept = mark.kept[..., -1]
        none = f"nothing in {(kept == 0).sum()} of {kept.size} heads"
        said = f"Of “{name}” the last queries keep {kept.mean():.1%}, {none}"
        if mark.lost is None:
            return f"{said}."
        return f"{said}, and {mark.lost[..., -1].mean():.1%} of their attention is lost there."

    def _masks(self) -> str:
        touched = (self.kept > 0)[..., self.possible]
        tiles = f"tiles of {self.tile:,} ({len(self.tokens):,} tokens)"
        said = f"{touched.mean():.1%} of the {tiles} are kept at least in part"
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

    def in_sight(self, name: str | None = None, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how much of what is marked the last queries keep: layers down, heads across. Returns the axes.

        Args:
            name: which mark; the first by default.
            ax: axes to draw into.

        Raises:
            InputError: there is no such mark.
        """
        import matplotlib.pyplot as plt

        chosen = next(iter(self.marks), None) if name is None else name
        if chosen not in self.marks:
            known = ", ".join(map(repr, self.marks)) or "none: give marks={name: (start, stop)}"
            raise InputError(f"no mark {chosen!r} here; there are {known}.")
        if ax is None:
            size = (1.7 + 0.25 * self.kept.shape[1], 1 + 0.12 * len(self.layers))
            ax = plt.subplots(figsize=size, layout="constrained")[1]
        kept = self.marks[chosen].kept[..., -1]
        image = ax.imshow(kept, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
        step = -(-len(self.layers) // 10)
        ax.set_yticks(range(0, len(self.layers), step), [str(i) for i in self.layers[::step]])
        ax.set(xlabel="head", ylabel="layer")
        ax.set_title(plain(f"{chosen}: {(kept > 0).mean():.0%} of the heads see it"), loc="left", fontsize=10)
        ax.figure.colorbar(image, ax=ax, label="share kept by the last queries")
        return ax

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
        if self.marks:
            named += f", {' and '.join(self.marks)} in green frames"
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
        for start, stop in (span for mark in self.marks.values() for span in mark.spans):
            edges = start / self.tile - 0.5, stop / self.tile - 0.5
            axes.axvspan(*edges, facecolor="none", edgecolor=_GREEN, linewidth=1)
        said = f"{head}" if self.lost is None else f"{head}: −{self.lost[self.shown, head].mean():.0%}"
        axes.set_title(said, fontsize=8, pad=2)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a head: layer, head, kept (mean share of the possible tiles), lost, other; and for each mark
        what the last queries keep of it, and the attention they lose there.
        """
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
        for name, mark in self.marks.items():
            frame[f"{name} kept"] = mark.kept[..., -1].ravel()
            if mark.lost is not None:
                frame[f"{name} lost"] = mark.lost[..., -1].ravel()
        return frame

    def _widget(self) -> "sparselens.views.mask_widget.MaskWidget":
        from sparselens.views.mask_widget import MaskWidget

        return MaskWidget(self)

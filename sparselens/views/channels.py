"""`ChannelMap`: which input channels of a layer are kept, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.curves import plain
from sparselens.views.html import TOKEN_CHARS, as_array, visible

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    import sparselens.views.channel_widget

_COLUMNS, _ROWS = 800, 300  # of the picture
_NAMED = 48  # tokens that fit beside it
_ALWAYS = 0.99


def channel_map(
    keep: Any, tokens: Sequence[str] | None = None, scores: Any = None, title: str | None = None
) -> "ChannelMap":
    """Show which channels a sparsifier keeps.

    Args:
        keep: bool `[T, in]`, True where the channel is kept for the token.
        tokens: the T tokens.
        scores: float `[T, in]`, what the sparsifier decided by; shown under the pointer.
        title: a heading.

    Raises:
        InputError: shapes that do not fit, or nothing to show.
        NotFiniteError: a score is NaN or infinite.
    """
    kept = np.asarray(keep.detach().cpu() if hasattr(keep, "detach") else keep)
    if kept.ndim != 2 or not kept.size or kept.dtype != np.bool_:
        raise InputError(f"keep is {kept.dtype} of shape {list(kept.shape)}; give bool [tokens, channels], at least "
                         "one of each.")
    names = [f"token {i}" for i in range(len(kept))] if tokens is None else [clean(token) for token in tokens]
    values = None if scores is None else as_array(scores)
    if len(names) != len(kept) or (values is not None and values.shape != kept.shape):
        given = f"{len(names)} tokens" if len(names) != len(kept) else f"scores of shape {list(values.shape)}"  # type: ignore[union-attr]
        raise InputError(f"keep has shape {list(kept.shape)}, which does not fit {given}.")
    return ChannelMap(kept, names, values, title)


@dataclass(frozen=True, eq=False, repr=False)
class ChannelMap(View):
    """The channels that a layer reads for each token; made by `channel_map`. A slice gives some of the tokens.

    Attributes:
        keep: bool [T, in].
        tokens: the T tokens.
        scores: float32 [T, in], or None.
        title: a heading, or None.
    """

    keep: np.ndarray
    tokens: list[str]
    scores: np.ndarray | None = None
    title: str | None = None

    def __getitem__(self, rows: slice) -> "ChannelMap":
        keep = self.keep[rows]
        if not isinstance(rows, slice) or not len(keep):
            raise InputError(f"{rows} gives no tokens: take a slice of the {len(self.tokens)} tokens, as view[:50].")
        return ChannelMap(keep, self.tokens[rows], None if self.scores is None else self.scores[rows], self.title)

    def __repr__(self) -> str:
        n_tokens, n_channels = self.keep.shape
        return f"ChannelMap({n_tokens:,} tokens, {n_channels:,} channels, {self.keep.mean():.1%} kept)"

    def summary(self) -> str:
        """Say in a sentence how much is kept, and how much of it is always the same."""
        n_tokens, n_channels = self.keep.shape
        share = self.keep.mean(axis=0)
        return (
            f"{self.keep.mean():.1%} of {n_channels:,} channels × {n_tokens:,} tokens are kept. "
            f"{int((share >= _ALWAYS).sum()):,} channels are kept for at least {_ALWAYS:.0%} of the tokens, "
            f"{int((share == 0).sum()):,} for none."
        )

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the picture with a sentence about it."""
        from sparselens.views.picture import captioned

        return captioned(self._draw(""), self.title, self.summary(), "Map of kept channels", max_bytes)

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the map, channels that are kept most on the left, with the share kept of each and for each token."""
        import matplotlib.pyplot as plt

        figure = self._draw(self.title or "")
        plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
        return figure

    def _draw(self, title: str) -> "matplotlib.figure.Figure":
        import matplotlib.pyplot as plt
        from matplotlib.colors import LinearSegmentedColormap

        from sparselens.views.strip_figure import drawable

        n_tokens, n_channels = self.keep.shape
        share = self.keep.mean(axis=0)
        order = np.argsort(-share, kind="stable")
        image = _shrink(self.keep[:, order], _ROWS, _COLUMNS)
        figure = plt.figure(figsize=(8.2, 1.9 + min(max(0.14 * n_tokens, 1), 5)), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(9, 1), height_ratios=(1, max(2, min(0.2 * n_tokens, 6))))
        body = figure.add_subplot(grid[1, 0])
        blues = LinearSegmentedColormap.from_list("kept", ["#ffffff", "#0072B2"])
        extent = (0, n_channels, n_tokens, 0)
        body.imshow(image, cmap=blues, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
        body.set_xlabel("channels, those kept for most tokens first")
        if n_tokens <= _NAMED:
            said = [drawable(visible(token, 14).replace("\n", "↵")) for token in self.tokens]
            body.set_yticks(np.arange(n_tokens) + 0.5, said, fontsize=7, family="DejaVu Sans Mono", parse_math=False)
        else:
            body.set_ylabel("token")
        top = figure.add_subplot(grid[0, 0], sharex=body)
        top.fill_between(np.arange(n_channels) + 0.5, share[order], color="#0072B2", linewidth=0)
        top.set(ylim=(0, 1), ylabel="kept")
        top.tick_params(labelbottom=False)
        top.set_title(plain(drawable(visible(title, TOKEN_CHARS))), loc="left", fontsize=10)
        side = figure.add_subplot(grid[1, 1], sharey=body)
        each = _shrink(self.keep.mean(axis=1, keepdims=True), _ROWS, 1)[:, 0]  # a bar a token, or a few tokens
        height = n_tokens / len(each)
        side.barh((np.arange(len(each)) + 0.5) * height, each, height=height, color="#0072B2")
        side.set(xlim=(0, 1), xlabel="kept")
        side.tick_params(labelleft=False)
        for axes in (top, side):
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def to_frame(self) -> "pandas.DataFrame":
        """Return a frame with a row a channel: `channel`, `kept` (share of the tokens), and `score`, its mean."""
        import pandas as pd

        frame = pd.DataFrame({"channel": range(self.keep.shape[1]), "kept": self.keep.mean(axis=0)})
        if self.scores is not None:
            frame["score"] = self.scores.mean(axis=0)
        return frame

    def _widget(self) -> "sparselens.views.channel_widget.ChannelWidget":
        from sparselens.views.channel_widget import ChannelWidget

        return ChannelWidget(self)


def _shrink(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over neighbouring cells, so that `[T, in]` becomes at most `[rows, columns]`."""
    for axis, most in ((0, rows), (1, columns)):
        n = values.shape[axis]
        if n > most:
            edges = np.linspace(0, n, most + 1).astype(int)
            sums = np.add.reduceat(values.astype(np.float32), edges[:-1], axis=axis)
            values = sums / np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
    return values.astype(np.float32)

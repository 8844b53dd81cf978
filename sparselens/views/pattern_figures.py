"""Figures about block patterns: what the heads of a layer keep, and how alike patterns are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from sparselens.views.curves import plain

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def likeness_grid(
    likeness: Float[np.ndarray, "n n"], label: str, title: str = "", ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw how alike every two things are, from 0 to 1, as coloured cells. Returns the axes.

    Args:
        likeness: from 0 (nothing in common) to 1 (the same).
        label: what the things are, such as "step".
        title: shown above.
        ax: axes to draw into.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    image = ax.imshow(likeness, vmin=0, vmax=1, cmap="cividis")
    if len(likeness) <= 10:
        for (i, j), value in np.ndenumerate(likeness):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k")
    ax.set(xlabel=plain(label), ylabel=plain(label))
    ax.set_title(plain(title), fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("tiles in common (Jaccard)", fontsize=8)
    return ax


def tile_gallery(
    tiles: Bool[np.ndarray, "heads rows columns"], names: Sequence[str], border: float
) -> "matplotlib.figure.Figure":
    """Draw the tiles that each head keeps, side by side. Returns the figure.

    Args:
        tiles: True where a head keeps a tile; a row for each query block.
        names: of the heads.
        border: column and row, in tiles, at which a line is drawn: where the answer begins.
    """
    import matplotlib.pyplot as plt

    columns = min(len(tiles), 4)
    rows = -(-len(tiles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
    for spare in axes.flat[len(tiles) :]:
        spare.set_visible(False)
    for ax, kept, name in zip(axes.flat, tiles, names, strict=False):
        ax.imshow(kept, cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
        ax.axvline(border - 0.5, color="#D55E00", linewidth=1)
        ax.axhline(border - 0.5, color="#D55E00", linewidth=1)
        ax.set_title(f"{plain(name)}: {kept.mean():.0%} of the tiles", fontsize=8)
        ax.set(xticks=[], yticks=[])
    axes[-1, 0].set(xlabel="key tiles", ylabel="query tiles")
    return figure

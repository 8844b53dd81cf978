"""Figures of analyses of many texts: shares over versions, shares by group, and pairs of features that meet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from sparselens.views.curves import COLOURS, plain

if TYPE_CHECKING:
    import matplotlib.axes

_MARKERS = "osD^vPX"
_LABEL = 48


def version_lines(
    at: Sequence[float],
    shares: Float[np.ndarray, "features versions"],
    labels: Sequence[str],
    versions: Sequence[str],
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw the share of texts of each version in which features fire, a line a feature. Returns the axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for i, (share, label) in enumerate(zip(shares, labels, strict=True)):
        marker = _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)]  # past seven, colours come again
        ax.plot(at, share, color=COLOURS[i % len(COLOURS)], marker=marker, ms=5, linewidth=1.3, label=plain(cut(label)))
    ax.set_xticks(list(at), [plain(name) for name in versions])
    ax.set(ylabel="share of texts", ylim=(-0.02, None))
    ax.grid(True, axis="y", color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if len(labels):
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def share_grid(
    shares: Float[np.ndarray, "features groups"],
    labels: Sequence[str],
    groups: Sequence[str],
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw in which share of the texts of each group features fire, as coloured cells with the number in per cent.

    Returns the axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        size = (3.6 + 0.55 * len(groups), 1.2 + 0.24 * max(len(labels), 1))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(shares if shares.size else np.zeros((1, 1)), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color="w" if share < 0.6 else "k")
    ax.set_yticks(range(len(labels)), [cut(label) for label in labels], fontsize=8, parse_math=False)
    ax.set_xticks(range(len(groups)), [cut(name, 20) for name in groups], fontsize=8, rotation=45, ha="right",
                  parse_math=False)
    ax.set_xlabel("share of texts in which the feature fires, in per cent", fontsize=8)
    return ax


def pair_scatter(
    npmi: Shaped[np.ndarray, "pairs"],
    similarity: Shaped[np.ndarray, "pairs"],
    support: Shaped[np.ndarray, "pairs"],
    corner: tuple[float, float],
    axis: str,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw pairs of features: how alike they are against how strongly they go together. Returns the axes.

    Args:
        npmi, similarity: of each pair.
        support: texts in which both fire; the larger, the larger the point.
        corner: smallest NPMI and largest similarity of the pairs worth reading; that corner is boxed.
        axis: what the similarity is.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 4), layout="constrained")
    inside = (npmi >= corner[0]) & (similarity < corner[1])
    size = 6 + 8 * np.log10(np.maximum(support, 1))
    ax.scatter(similarity[~inside], npmi[~inside], s=size[~inside], color="0.65", linewidths=0, alpha=0.6)
    ax.scatter(similarity[inside], npmi[inside], s=size[inside], color=COLOURS[1], marker="s", linewidths=0)
    left = min(float(np.nanmin(similarity, initial=0.0)), 0.0) - 0.03
    ax.add_patch(Rectangle((left, corner[0]), corner[1] - left, 1.03 - corner[0], fill=False, color=COLOURS[1]))
    ax.set(xlim=(left, 1.03), ylim=(min(float(np.nanmin(npmi, initial=1.0)), corner[0]) - 0.05, 1.03))
    ax.set_xlabel(plain(axis))
    ax.set_ylabel("NPMI")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def cut(text: object, limit: int = _LABEL) -> str:
    """Text on one line, with an ellipsis where it is longer than `limit`."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

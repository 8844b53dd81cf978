"""Bars and histograms of scores, from plain lists."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.views.curves import COLOURS, plain

if TYPE_CHECKING:
    import matplotlib.axes

_CHARACTERS = 60


def score_bars(
    names: Sequence[str],
    values: Any,
    ax: "matplotlib.axes.Axes | None" = None,
    xlabel: str = "",
    *,
    intervals: Any = None,
    reference: float = 0.0,
) -> "matplotlib.axes.Axes":
    """Draw a bar a name, the first on top. Returns the axes.

    Args:
        names: n texts.
        values: n numbers, or `[n, k]`: k parts a bar, put end to end.
        ax: axes to draw into.
        xlabel: what the numbers are.
        intervals: `[n, 2]` lower and upper bounds.
        reference: where the bars begin.
    """
    import matplotlib.pyplot as plt

    parts = np.asarray(values, dtype=float)
    parts = parts[:, None] if parts.ndim == 1 else parts
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1 + 0.28 * max(len(names), 1)), layout="constrained")
    at, left = np.arange(len(names)), np.full(len(names), reference)
    for i, part in enumerate(parts.T):
        width = part - reference if parts.shape[1] == 1 else part
        ax.barh(at, width, left=left, color=COLOURS[i % len(COLOURS)], height=0.7, edgecolor="white", linewidth=0.5)
        left = left + width
    if intervals is not None and len(names):
        spread = np.abs(np.asarray(intervals, dtype=float).T - parts.sum(axis=1))
        ax.errorbar(parts.sum(axis=1), at, xerr=spread, color="0.2", linestyle="none", capsize=2)
    ax.axvline(reference, color="0.5", linewidth=0.8)
    ax.set_yticks(at, [_short(name) for name in names], fontsize=9, parse_math=False)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.set_xlabel(plain(xlabel))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def score_histogram(
    values: Any, cut: float, ax: "matplotlib.axes.Axes | None" = None, xlabel: str = ""
) -> "matplotlib.axes.Axes":
    """Draw how scores spread, with a line at the cut. Returns the axes.

    Args:
        values: numbers.
        cut: the least score that was taken.
        ax: axes to draw into.
        xlabel: what the numbers are.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    ax.hist(np.asarray(values, dtype=float), bins=60, color=COLOURS[0])
    ax.axvline(cut, color=COLOURS[1], linestyle="--", label=f"cut at {cut:.3g}")
    ax.set(xlabel=plain(xlabel), ylabel="samples")
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _short(text: object) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"

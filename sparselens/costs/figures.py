"""Axes for the figures of this room."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import matplotlib.axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def axes(ax: "matplotlib.axes.Axes | None", size: tuple[float, float] = (6.0, 3.6)) -> "matplotlib.axes.Axes":
    """The axes given, or new ones."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.grid(True, axis="y", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax

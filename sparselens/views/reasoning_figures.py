"""Figures about step probes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import figure_of
from sparselens.views.curves import plain

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_BLUE = "#0072B2"


def interval_dots(
    names: Sequence[Any], values: Any, label: str, faint: Any = None, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.figure.Figure":
    """Draw a dot with its interval for each name, from top to bottom.

    Args:
        names: what the rows are.
        values: `[rows, 3]`: value, low, high.
        label: what the values are.
        faint: bool `[rows]`, rows to draw hollow.
        ax: axes to draw on.

    Raises:
        InputError: shapes that do not fit.
    """
    import matplotlib.pyplot as plt

    table = np.asarray(values, dtype=float)
    if table.shape != (len(names), 3):
        raise InputError(f"values have shape {list(table.shape)}; give [{len(names)}, 3]: value, low, high.")
    hollow = np.zeros(len(names), dtype=bool) if faint is None else np.asarray(faint, dtype=bool)
    axes = ax if ax is not None else plt.subplots(figsize=(6, 0.8 + 0.3 * len(names)), layout="constrained")[1]
    for row, ((value, low, high), empty) in enumerate(zip(table, hollow, strict=True)):
        axes.plot([low, high], [row, row], color=_BLUE, linewidth=1.5)
        axes.plot(value, row, "o", color=_BLUE, markerfacecolor="none" if empty else _BLUE)
    axes.set_yticks(range(len(names)), [plain(str(name)) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(plain(label))
    axes.spines[["top", "right"]].set_visible(False)
    return figure_of(axes)

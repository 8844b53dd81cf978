"""Numbers that change: a training curve that grows in the notebook, trade-offs, and small result tables."""

import io
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.views.html import LINE, TABLE, TABLE_ROW, escape, fragment, number

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

History = Mapping[str, Sequence[tuple[int, SupportsFloat]]]

# Okabe-Ito, dark enough for a line on white; markers tell series apart without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_POINTS = 2000


class LiveCurve:
    """A curve that redraws itself under the cell while a loop runs.

    Outside a notebook it only records. Drawing takes at most a twentieth of the time.

    Args:
        title: shown above the panels.
        x: what the steps count.
        y: the quantity that all names share; they then share one panel. Left empty, each name has its own.
        min_seconds: shortest time between two drawings.

    Attributes:
        history: name -> list of (step, value), every update.
    """

    def __init__(self, title: str = "", x: str = "step", y: str = "", min_seconds: float = 2.0) -> None:
        self.title, self.x, self.y = title, x, y
        self.min_seconds = min_seconds
        self.history: dict[str, list[tuple[int, float]]] = {}
        self._handle: Any = None
        self._next_draw = 0.0

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {number(points[-1][1])}" for name, points in self.history.items())
        return f"LiveCurve({last})"

    def update(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record numbers at a step, and redraw when it is time. Names may come and go between steps."""
        for name, value in values.items():
            self.history.setdefault(name, []).append((int(step), float(value)))
        if time.monotonic() >= self._next_draw and _in_notebook():
            self._draw()

    def close(self) -> None:
        """Draw the last state."""
        if self.history and _in_notebook():
            self._draw()

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the whole curve, static."""
        return curve_figure(self.history, title=self.title, x=self.x, y=self.y)

    def _draw(self) -> None:
        from IPython.display import Image, display

        began = time.monotonic()
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=100)
        image = Image(data=buffer.getvalue())
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        now = time.monotonic()
        self._next_draw = now + max(self.min_seconds, 20 * (now - began))


def _in_notebook() -> bool:
    """True in a kernel. IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def curve_figure(
    history: History,
    ax: "matplotlib.axes.Axes | None" = None,
    *,
    title: str = "",
    x: str = "step",
    y: str = "",
) -> "matplotlib.figure.Figure":
    """Draw recorded numbers, static.

    Args:
        history: name -> (step, value) pairs in the order of steps.
        ax: axes to draw all names into, with a legend.
        title: shown above.
        x: what the steps count.
        y: the quantity that all names share; they then share one panel. Left empty, each name has its own.

    Raises:
        InputError: nothing was recorded.
    """
    if not history:
        raise InputError("the history is empty: nothing was recorded yet.")
    together = ax is not None or bool(y)
    panels: list[Any] = _panels(len(history), together) if ax is None else [ax]
    for i, (name, points) in enumerate(history.items()):
        panel, last = panels[0 if together else i], f"{plain(name)}: {number(float(points[-1][1]))}"
        _line(panel, points, COLOURS[i % len(COLOURS)], last)
        panel.set(xlabel=plain(x), ylabel=plain(y))
        if not together:
            panel.set_title(last, loc="left", fontsize=10)
    if together:
        panels[0].legend(frameon=False, fontsize=9)
    if title:
        panels[0].figure.suptitle(plain(title), fontsize=11)
    return panels[0].figure


def _panels(n: int, together: bool) -> list[Any]:
    """A new figure with one panel, or with `n` in rows of three."""
    import matplotlib.pyplot as plt

    columns = 1 if together else min(n, 3)
    rows = 1 if together else -(-n // columns)
    size = (6.4, 3.2) if columns == 1 else (3.4 * columns, 2.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
    for spare in axes.flat[1 if together else n :]:
        spare.set_visible(False)
    return list(axes.flat)


def _line(ax: "matplotlib.axes.Axes", points: Sequence[tuple[int, SupportsFloat]], colour: str, label: str) -> None:
    steps, values = np.array(points, dtype=float).T
    thin = slice(None, None, max(len(steps) // _POINTS, 1))
    marker = "o" if len(steps) == 1 else None
    ax.plot(steps[thin], values[thin], color=colour, linewidth=1.3, marker=marker, label=label)
    good = values[np.isfinite(values)]
    if len(good) and good.min() > 0 and good.max() > 20 * good.min():
        ax.set_yscale("log")
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def frontier(
    frame: "pandas.DataFrame", x: str, y: str, label: str, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw measured trade-offs, a line through the points of each label. Returns the axes.

    Args:
        frame: a row a measurement.
        x: numeric column for the horizontal axis, say a cost.
        y: numeric column for the vertical axis, say a quality.
        label: column that names what was measured; rows with the same label make one line.
        ax: axes to draw into.

    Raises:
        InputError: a column is missing.
    """
    import matplotlib.pyplot as plt

    for column in (x, y, label):
        if column not in frame.columns:
            raise InputError(f"the frame has no column {column!r}.{closest(column, map(str, frame.columns))}")
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, (name, rows) in enumerate(frame.groupby(label, sort=False)):
        rows = rows.dropna(subset=[x, y]).sort_values(x)
        marker = _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)]  # past seven, colours come again
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(rows[x], rows[y], color=colour, marker=marker, linewidth=1.3, ms=6, label=plain(name))
    ax.set(xlabel=plain(x), ylabel=plain(y))
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if len(frame):
        ax.legend(frameon=False, fontsize=9)
    return ax


def plain(text: object) -> str:
    """Text for a legend, where matplotlib reads dollars as formulas."""
    return str(text).replace("$", "\\$")


def report_html(title: str, rows: Iterable[Sequence[Any]]) -> str:
    """Return a small table for the repr of a result. Every text is escaped.

    Args:
        title: a heading.
        rows: one sequence a row, the first entry its name. Floats show three significant digits.
    """
    cell = f"padding:3px 14px 3px 0;text-align:left;border-top:1px solid {LINE}"
    body = []
    for name, *entries in rows:
        cells = f'<td style="{cell};opacity:.75">{escape(name, 200)}</td>'
        cells += "".join(f'<td style="{cell}">{_entry(entry)}</td>' for entry in entries)
        body.append(f'<tr style="{TABLE_ROW}">{cells}</tr>')
    head = f'<div style="font-weight:600;margin-bottom:4px">{escape(title, 200)}</div>'
    return fragment(f'{head}<table style="{TABLE}">{"".join(body)}</table>')


def _entry(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return number(float(value)) if value == value else "–"
    return escape(value, 400)

"""`SparsityDial`: what a sparsity costs and what it saves, at the settings that were measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.curves import frontier
from sparselens.views.html import LINE, TABLE, TABLE_ROW, escape, fragment, number, visible
from sparselens.views.strip_figure import drawable

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    from sparselens.views.dial_widget import DialWidget

#: `answer(method, sparsity, prompt, say)`: lets a model answer and hands over the text by `say(piece)`.
Answer = Callable[[str, float, str, Callable[[str], None]], None]


class Metric(NamedTuple):
    """A number about a setting. Shown are `value * scale` and the unit."""

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0


METRICS = (
    Metric("achieved", "achieved sparsity", "%", 100),
    Metric("perplexity", "perplexity"),
    Metric("ce", "cross-entropy", "nats"),
    Metric("kl", "KL from the dense model", "nats"),
    Metric("top1", "top-1 agreement", "%", 100),
    Metric("weight_bytes", "weights read per token", "MB", 1e-6),
    Metric("flops", "FLOPs per token", "GFLOP", 1e-9),
    Metric("tokens_per_second", "decode speed", "tokens/s"),
)
COSTS = ("achieved", "weight_bytes", "flops", "tokens_per_second")  # go on the horizontal axis
_KEYS = 14  # names that fit into the legend
_CELL = f"padding:3px 14px 3px 0;text-align:right;white-space:nowrap;border-top:1px solid {LINE}"
_NOTE = "font-size:12px;opacity:.7"


def sparsity_dial(
    frame: "pandas.DataFrame",
    dense: Mapping[str, float] | None = None,
    *,
    title: str | None = None,
    note: str = "",
) -> "SparsityDial":
    """Show measured settings of sparsifiers, to choose one.

    Args:
        frame: a row a measurement, with `method` (str), `sparsity` (what was asked for, 0 to below 1) and some of
            `achieved` and `top1` (shares), `perplexity`, `ce` and `kl` (nats), `weight_bytes` and `flops` (per token),
            `tokens_per_second`. NaN where it was not measured.
        dense: the same numbers of the untouched model; every method starts from there.
        title: a heading.
        note: how it was measured, in a sentence.

    Raises:
        InputError: a column is missing, nothing but costs was measured, a sparsity out of range, or one twice.
    """
    known = [metric.key for metric in METRICS]
    lacking = [name for name in ("method", "sparsity") if name not in frame.columns]
    if lacking or not len(frame):
        raise InputError(f"the frame has {len(frame)} rows and lacks {' and '.join(lacking) or 'none of the names'}: "
                         "give a row a measurement, with the method and the sparsity asked for.")
    dense = {str(name): float(value) for name, value in (dense or {}).items() if np.isfinite(value)}
    if strange := next((name for name in dense if name not in known), None):
        raise InputError(f"dense holds {strange!r}, which is no metric; valid are {', '.join(known)}."
                         f"{closest(strange, known)}")
    keys = [key for key in known if key in frame.columns and frame[key].notna().any()]
    if set(keys) <= set(COSTS):
        raise InputError(f"the frame holds no quality. Give at least one of "
                         f"{', '.join(key for key in known if key not in COSTS)}.")
    rows = frame[["method", "sparsity", *keys]].reset_index(drop=True)
    rows["method"] = [clean(name, 120) for name in rows["method"]]
    rows = rows.astype(dict.fromkeys(["sparsity", *keys], float))
    wrong = rows[~((rows["sparsity"] >= 0) & (rows["sparsity"] < 1))]
    if len(wrong):
        raise InputError(f"sparsity {wrong['sparsity'].iloc[0]} of {wrong['method'].iloc[0]} is out of range; it lies "
                         "between 0 and 1, 1 not included.")
    rows = _with_dense(rows, dense, keys)
    twice = rows[rows.duplicated(["method", "sparsity"])]
    if len(twice):
        raise InputError(f"{twice['method'].iloc[0]} at sparsity {twice['sparsity'].iloc[0]:g} comes more than once; "
                         "give the mean of repeated measurements.")
    return SparsityDial(rows, dense, title, note)


def _with_dense(rows: "pandas.DataFrame", dense: Mapping[str, float], keys: list[str]) -> "pandas.DataFrame":
    """Rows in the order of methods and sparsities, with the dense model as the start of each method."""
    import pandas as pd

    order = {name: i for i, name in enumerate(dict.fromkeys(rows["method"]))}
    if dense:
        start = [name for name in order if not ((rows["method"] == name) & (rows["sparsity"] == 0)).any()]
        known = {key: dense.get(key, np.nan) for key in keys} | ({"achieved": 0.0} if "achieved" in keys else {})
        if start:
            rows = pd.concat([rows, pd.DataFrame({"method": start, "sparsity": 0.0, **known})], ignore_index=True)
    rank = rows["method"].map(order)
    return rows.iloc[np.lexsort([rows["sparsity"], rank])].reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False)
class SparsityDial(View):
    """Measured settings of sparsifiers; made by `sparsity_dial`.

    Attributes:
        frame: a row a setting, by method and rising sparsity.
        dense: numbers of the untouched model.
        title: a heading, or None.
        note: how it was measured.
    """

    frame: "pandas.DataFrame"
    dense: dict[str, float] = field(default_factory=dict)
    title: str | None = None
    note: str = ""

    def __repr__(self) -> str:
        return f"SparsityDial({', '.join(self.methods)}; {len(self.frame)} settings)"

    @property
    def methods(self) -> list[str]:
        """What was measured."""
        return list(dict.fromkeys(self.frame["method"]))

    @property
    def metrics(self) -> list[Metric]:
        """The numbers that there are."""
        return [metric for metric in METRICS if metric.key in self.frame.columns]

    @property
    def axes(self) -> tuple[str, str]:
        """The cost and the quality that are drawn first."""
        keys = [metric.key for metric in self.metrics]
        return next((key for key in COSTS if key in keys), "sparsity"), next(k for k in keys if k not in COSTS)

    def stops(self, method: str) -> list[float]:
        """The sparsities at which a method was measured, ascending.

        Raises:
            InputError: no such method.
        """
        if method not in self.methods:
            raise InputError(f"{method!r} was not measured; there are {', '.join(self.methods)}."
                             f"{closest(method, self.methods)}")
        return self.frame.loc[self.frame["method"] == method, "sparsity"].tolist()

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the frontier with a table of all settings."""
        from sparselens.views.picture import picture

        x, y = (_title(key) for key in self.axes)
        alt = f"Line plot of {y} against {x} for {', '.join(self.methods)}; the numbers are in the table."
        head = f'<div style="font-weight:600">{escape(self.title, 200)}</div>' if self.title else ""
        head += f'<div style="{_NOTE}">{escape(self.note, 400)}</div>' if self.note else ""
        for dpi, rows in ((100, 200), (72, 60), (0, 30), (0, 6)):
            shown = picture(replace(self, title=None).figure(), alt[:400], dpi) if dpi else ""
            html = fragment(head + shown + self._table(rows))
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _table(self, most: int) -> str:
        import pandas as pd

        metrics = self.metrics
        heads = ["method", "sparsity", *(m.title + (f", {m.unit}" if m.unit else "") for m in metrics)]
        styles = ["text-align:left", *["text-align:right"] * (len(heads) - 1)]
        row = "".join(f'<th style="padding:3px 14px 3px 0;font-weight:600;{style}">{escape(head)}</th>'
                      for style, head in zip(styles, heads, strict=True))
        body = [row]
        settings = self.frame
        if self.dense:  # where all methods start: once is enough
            start = {"method": "dense", "sparsity": 0.0, **{m.key: self.dense.get(m.key, np.nan) for m in metrics}}
            settings = pd.concat([pd.DataFrame([start]), settings[settings["sparsity"] > 0]])
        for setting in settings.head(most).to_dict("records"):
            cells = [f'<td style="{_CELL.replace("right", "left", 1)}">{escape(setting["method"], 60)}</td>',
                     f'<td style="{_CELL}">{100 * setting["sparsity"]:.3g}%</td>']
            cells += [f'<td style="{_CELL}">{_shown(setting[m.key], m)}</td>' for m in metrics]
            body.append("".join(cells))
        left = len(settings) - most
        more = f'<div style="{_NOTE}">… and {left:,} more settings: see .to_frame()</div>' if left > 0 else ""
        rows = "".join(f'<tr style="{TABLE_ROW}">{cells}</tr>' for cells in body)
        return f'<table style="{TABLE}">{rows}</table>{more}'

    def plot(
        self, x: str | None = None, y: str | None = None, ax: "matplotlib.axes.Axes | None" = None
    ) -> "matplotlib.axes.Axes":
        """Draw a line a method, and a dashed one for the dense model. Returns the axes.

        Args:
            x, y: columns of `to_frame()`; by default a cost and a quality.
            ax: axes to draw into.

        Raises:
            InputError: a column that was not measured.
        """
        x, y = x or self.axes[0], y or self.axes[1]
        keys = ["sparsity", *(metric.key for metric in self.metrics)]
        for key in (x, y):
            if key not in keys:
                raise InputError(f"{key!r} was not measured; there are {', '.join(keys)}.{closest(key, keys)}")
        ax = frontier(self._scaled(), x, y, "method", ax)
        legend = ax.get_legend()
        if legend is not None and len(self.methods) > _KEYS:
            legend.remove()  # it would leave no room for the lines
        ax.set(xlabel=_title(x), ylabel=_title(y))
        values = self.frame[y].dropna()
        if len(values) and values.min() > 0 and values.max() > 20 * values.min():
            ax.set_yscale("log")
        if y in self.dense:
            level = self.dense[y] * _metric(y).scale
            ax.axhline(level, color="0.4", linewidth=0.9, linestyle="--")
            ax.annotate("dense", (1, level), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom")
        if self.title:
            ax.set_title(drawable(visible(self.title, 120)), loc="left", fontsize=10, parse_math=False)
        return ax

    def figure(self, method: str | None = None, sparsity: float | None = None) -> "matplotlib.figure.Figure":
        """Return the frontier, with a ring around one setting if it is given.

        Raises:
            InputError: the setting was not measured.
        """
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
        self.plot(ax=ax)
        if method is not None and sparsity is not None:
            here = self._scaled().iloc[self.place(method, sparsity)]
            x, y = self.axes
            ax.plot(here[x], here[y], "o", ms=14, markerfacecolor="none", markeredgecolor="k", markeredgewidth=1.4)
        return figure

    def place(self, method: str, sparsity: float) -> int:
        """The row of a setting.

        Raises:
            InputError: it was not measured.
        """
        stops = self.stops(method)
        nearest = min(stops, key=lambda stop: abs(stop - sparsity))
        if abs(nearest - sparsity) > 1e-9:
            raise InputError(f"{method} was not measured at sparsity {sparsity:g}; it was at "
                             f"{', '.join(f'{stop:g}' for stop in stops)}. Closest: {nearest:g}.")
        return int(np.flatnonzero(self.frame["method"] == method)[stops.index(nearest)])

    def _scaled(self) -> "pandas.DataFrame":
        scales = {metric.key: metric.scale for metric in self.metrics} | {"sparsity": 100}
        return self.frame.assign(**{key: self.frame[key] * scale for key, scale in scales.items()})

    def to_frame(self) -> "pandas.DataFrame":
        """Return a copy of the frame."""
        return self.frame.copy()

    def _widget(self) -> "DialWidget":
        from sparselens.views.dial_widget import DialWidget

        return DialWidget(self)

    def explore(self, answer: Answer | None = None) -> "DialWidget":
        """Return the live dial: move it, and read `.method` and `.sparsity` in Python.

        Args:
            answer: `answer(method, sparsity, prompt, say)` lets the model answer a prompt and hands over the text as it
                comes, by `say(piece)`. At sparsity 0 it must be the untouched model. It runs in a thread of its own;
                `say` raises when the reader presses stop, and that must be let through.

        Raises:
            ImportError: anywidget is not installed.
        """
        widget = super().explore()
        widget.answer = answer
        return widget


def _metric(key: str) -> Metric:
    return next((m for m in METRICS if m.key == key), Metric("sparsity", "sparsity asked for", "%", 100))


def _title(key: str) -> str:
    metric = _metric(key)
    return metric.title + (f", {metric.unit}" if metric.unit else "")


def _shown(value: float, metric: Metric) -> str:
    return number(value * metric.scale) if np.isfinite(value) else "–"

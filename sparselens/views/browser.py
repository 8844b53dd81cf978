"""`FeatureBrowser`: find a feature by number or word, read its card, and keep cards beside each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.cards import FeatureCard
from sparselens.views.html import LINE, ORANGE, TABLE, TABLE_ROW, escape, fragment, heading, number, rgba

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    from sparselens.views.browser_widget import BrowserWidget

COLUMNS = ("feature", "description", "density", "peak")
_CELL = f"padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-top:1px solid {LINE}"
_BAR = 80  # pixels of a density of 1


def browser_view(
    frame: "pandas.DataFrame",
    load: Callable[[int], FeatureCard],
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> "FeatureBrowser":
    """Show the features of a dictionary, to search and to open.

    Args:
        frame: a row a feature, in the order to show: `feature` (its number), `description`, `density` (share of texts
            in which it fires), `peak` (its largest value). NaN where a number is not known.
        load: gives the card of a feature.
        title: a heading.
        notes: sentences shown above the list.

    Raises:
        InputError: a column is missing, or a feature comes twice.
    """
    lacking = [name for name in COLUMNS if name not in frame.columns]
    if lacking:
        raise InputError(f"the frame lacks {', '.join(lacking)}: give a row a feature with {', '.join(COLUMNS)}.")
    rows = frame[list(COLUMNS)].reset_index(drop=True)
    twice = rows["feature"][rows["feature"].duplicated()]
    if len(twice):
        raise InputError(f"feature {twice.iloc[0]} comes more than once; list each feature once.")
    return FeatureBrowser(rows, load, title, tuple(notes))


@dataclass(frozen=True, eq=False, repr=False)
class FeatureBrowser(View):
    """Features to look through; made by `browser_view` or `sparselens.feature_browser`.

    Attributes:
        frame: a row a feature.
        load: gives the card of a feature.
        title: a heading, or None.
        notes: sentences shown above.
    """

    frame: "pandas.DataFrame"
    load: Callable[[int], FeatureCard]
    title: str | None = None
    notes: tuple[str, ...] = ()
    _kept: dict[int, FeatureCard] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        return f"FeatureBrowser({len(self.frame):,} features)"

    def card(self, feature: int) -> FeatureCard:
        """The card of a feature; made once."""
        if feature not in self._kept:
            self._kept[feature] = self.load(feature)
        return self._kept[feature]

    def find(self, query: str = "", sort: str = "") -> "pandas.DataFrame":
        """The rows whose number begins with `query`, or whose description has it, upper and lower case alike.

        Args:
            query: a number or a part of a description; "" finds all.
            sort: "density" or "peak", largest first, or "feature", smallest first; "" keeps the order.

        Raises:
            InputError: there is nothing to sort by under this name.
        """
        if sort not in ("", "feature", "density", "peak"):
            raise InputError(f"cannot sort by {sort!r}; valid are feature, density and peak.")
        rows, words = self.frame, query.strip().lower()
        if words:
            said = rows["description"].astype(str).str.lower().str.contains(words, regex=False)
            rows = rows[said | rows["feature"].astype(str).str.startswith(words)]
        return rows.sort_values(sort, ascending=sort == "feature", kind="stable") if sort else rows

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the first rows, and the card of the first feature."""
        for rows, with_card in ((30, True), (30, False), (10, False), (3, False)):
            html = self._html(rows, with_card, max_bytes)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, n: int, with_card: bool, max_bytes: int) -> str:
        rows = []
        for row in self.frame.head(n).itertuples():
            share = "–" if np.isnan(row.density) else f"{row.density:.1%}"
            width = 0 if np.isnan(row.density) else round(_BAR * min(max(row.density, 0), 1))
            bar = f'<div style="width:{width}px;height:6px;background:{rgba(ORANGE, 1.0)}"></div>'
            peak = "–" if np.isnan(row.peak) else number(row.peak)
            cells = (str(int(row.feature)), escape(row.description, 160), share + bar, peak)
            rows.append("".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells))
        head = "".join(f'<th style="padding:3px 14px 3px 0;text-align:left">{name}</th>'
                       for name in ("feature", "about", "fires in", "at most"))
        table = "".join(f'<tr style="{TABLE_ROW}">{row}</tr>' for row in (head, *rows))
        left = len(self.frame) - n
        more = f'<div style="font-size:12px;opacity:.7">… and {left:,} more: call .explore()</div>' if left > 0 else ""
        body = f'<table style="{TABLE}">{table}</table>{more}' if rows else "<i>There is no feature to show.</i>"
        card = ""
        if with_card and len(self.frame):
            inner = self.card(int(self.frame["feature"].iloc[0])).to_html(max_bytes // 2)
            card = f"<details open><summary>the first</summary>{inner}</details>"
        return fragment(heading(self.title, self.notes) + body + card, width=1080)

    def figure(self) -> "matplotlib.figure.Figure":
        """Return density against the largest value, a dot a feature."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.4), layout="constrained")
        ax = figure.subplots()
        known = self.frame[(self.frame["density"] > 0) & (self.frame["peak"] != 0)]
        ax.scatter(known["density"], known["peak"].abs(), s=6, color=[part / 255 for part in ORANGE], alpha=0.7)
        if len(known):
            ax.set(xscale="log", yscale="log")
        ax.set(xlabel="share of texts in which it fires", ylabel="largest value")
        ax.spines[["top", "right"]].set_visible(False)
        return figure

    def to_frame(self) -> "pandas.DataFrame":
        """Return a copy of the frame."""
        return self.frame.copy()

    def _widget(self) -> "BrowserWidget":
        from sparselens.views.browser_widget import BrowserWidget

        return BrowserWidget(self)

    def portable(self) -> "BrowserWidget":
        """Return the widget with the first rows and the cards of the first few."""
        from sparselens.views.browser_widget import BrowserWidget

        return BrowserWidget(self, live=False)


def packed(rows: "pandas.DataFrame") -> tuple[bytes, list[str]]:
    """Numbers of some rows, doubles, column after column, and their descriptions."""
    columns = rows[["feature", "density", "peak"]].to_numpy(dtype="<f8").T
    return np.ascontiguousarray(columns).tobytes(), [clean(text, 200) for text in rows["description"]]

"""`ConceptMap`: documents as points, near each other where they share features, linked to their texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.views import svg
from sparselens.views.base import STATIC_BYTES, View, clean, figure_of
from sparselens.views.classes import Classes, classes_of
from sparselens.views.curves import plain
from sparselens.views.html import LINE, TABLE, TABLE_ROW, escape, fragment, heading

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    import sparselens.views.map_widget

About = Callable[[np.ndarray], Sequence[tuple[int, str, float, float]]]

_DRAWN = 5000  # points of the static picture
_NOTE = "font-size:12px;opacity:.7"
_CELL = f"padding:4px 10px;text-align:left;vertical-align:top;border-top:1px solid {LINE}"
_MARKERS = "osD^vPX."


def map_view(
    xy: Any,
    texts: Sequence[str],
    colour: Any = None,
    *,
    name: str = "",
    title: str | None = None,
    notes: Sequence[str] = (),
    about: About | None = None,
    find: Callable[[int], Any] | None = None,
) -> "ConceptMap":
    """Show documents as points on a map, linked to a table of their texts.

    Args:
        xy: `[n, 2]` places; NaN for a document without a place.
        texts: the n texts.
        colour: n labels or numbers, such as clusters or a column.
        name: what the colours stand for.
        title: a heading.
        notes: sentences shown above the map.
        about: says what some documents, given by their numbers, have more of than the others: rows of
            `(feature, description, share inside, share outside)`.
        find: gives the numbers of the documents in which a feature fires.

    Raises:
        InputError: the numbers of places, texts and colours differ, or no document has a place.
    """
    places = np.asarray(xy, dtype=np.float32)
    if places.shape != (len(texts), 2):
        raise InputError(f"xy has shape {list(places.shape)}, but {len(texts)} texts need [{len(texts)}, 2].")
    if not np.isfinite(places).all(axis=1).any():
        raise InputError("no document has a place: there is nothing to draw.")
    if colour is not None and len(colour) != len(texts):
        raise InputError(f"colour has {len(colour)} entries, but there are {len(texts)} texts. Give one a text.")
    classes = classes_of(["texts"] * len(texts) if colour is None else colour)
    return ConceptMap(places, [clean(text) for text in texts], classes, name, title, tuple(notes), about, find)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptMap(View):
    """A map of documents; made by `map_view` or `sparselens.concept_map`.

    Attributes:
        xy: float32 `[n, 2]`, NaN without a place.
        texts: the n texts.
        classes: what they are coloured by.
        name: what the colours stand for.
        title, notes: shown above.
        about, find: as for `map_view`.
    """

    xy: np.ndarray
    texts: list[str]
    classes: Classes
    name: str = ""
    title: str | None = None
    notes: tuple[str, ...] = ()
    about: About | None = None
    find: Callable[[int], Any] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        by = f", {len(self.classes.names)} classes of {self.name or 'colour'}" if len(self.classes.names) > 1 else ""
        return f"ConceptMap({len(self):,} documents{by})"

    @property
    def placed(self) -> np.ndarray:
        """Which documents have a place, bool `[n]`."""
        return np.isfinite(self.xy).all(axis=1)

    def members(self, code: int) -> np.ndarray:
        """The numbers of the documents of a class."""
        return np.flatnonzero(self.classes.codes == code)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a document: `x`, `y`, `text`, and `class`, the name of its colour."""
        import pandas as pd

        names = np.array(self.classes.names, dtype=object)[self.classes.codes]
        return pd.DataFrame({"x": self.xy[:, 0], "y": self.xy[:, 1], "text": self.texts, "class": names})

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the picture, with a table of its classes and texts from the middle of each."""
        for drawn, n_texts, chars in ((_DRAWN, 5, 300), (_DRAWN, 3, 120), (2000, 2, 80), (500, 1, 40), (100, 0, 0)):
            html = self._html(drawn, n_texts, chars)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, drawn: int, n_texts: int, chars: int) -> str:
        at = np.flatnonzero(self.placed)
        notes = list(self.notes)
        if len(at) > drawn:
            notes.append(f"{drawn:,} of {len(at):,} documents are drawn.")
            at = np.random.default_rng(0).choice(at, drawn, replace=False)
        return fragment(f"{heading(self.title, notes)}{self._picture(at)}{self._legend(n_texts, chars)}")

    def _picture(self, at: np.ndarray) -> str:
        points = svg.fit(self.xy[at])
        codes = self.classes.codes[at]
        size = 7.0 if len(at) < 1000 else 4.0
        parts = [svg.dots(points[codes == i], colour, size) for i, colour in enumerate(self.classes.colours)]
        if len(self.classes.names) > 1:
            middles = [(np.median(points[codes == i], axis=0), name)
                       for i, name in enumerate(self.classes.names) if (codes == i).any()]
            parts += [svg.label(middle, name) for middle, name in middles]
        return svg.image(parts, alt=repr(self))

    def _legend(self, n_texts: int, chars: int) -> str:
        rows = "".join(self._class(i, n_texts, chars) for i in range(len(self.classes.names)))
        head = "".join(f'<th style="{_CELL}">{text}</th>' for text in
                       (escape(self.name or "colour", 40), "documents", "more often than elsewhere"))
        return f'<table style="{TABLE};width:100%"><tr style="{TABLE_ROW}">{head}</tr>{rows}</table>'

    def _class(self, code: int, n_texts: int, chars: int) -> str:
        members = self.members(code)
        swatch = f'<span style="color:{self.classes.colours[code]}">●</span>'
        said = ""
        if self.about is not None and 0 < len(members) < len(self):
            said = "".join(f"<div>{escape(feature)} · {escape(description, 80)} "
                           f'<span style="{_NOTE}">{inside:.0%} against {outside:.0%}</span></div>'
                           for feature, description, inside, outside in self.about(members))
        texts = [f'<div style="{_NOTE};border-top:1px solid {LINE}">text {i}: {escape(self.texts[i], chars)}</div>'
                 for i in self._central(members, n_texts)]
        folded = f"<details><summary>texts from its middle</summary>{''.join(texts)}</details>" if texts else ""
        cells = (f"{swatch} {escape(self.classes.names[code], 60)}", f"{len(members):,}", said + folded)
        inside = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
        return f'<tr style="{TABLE_ROW}">{inside}</tr>'

    def _central(self, members: np.ndarray, n: int) -> list[int]:
        """The documents of a class that lie nearest to its middle."""
        members = members[self.placed[members]]
        if not len(members):
            return []
        places = self.xy[members]
        distance = ((places - np.median(places, axis=0)) ** 2).sum(axis=1)
        return members[np.argsort(distance, kind="stable")[:n]].tolist()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the map. Returns the axes."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 5), layout="constrained")
        for i, (name, colour) in enumerate(zip(self.classes.names, self.classes.colours, strict=True)):
            x, y = self.xy[self.members(i)].T
            style: dict[str, Any] = {"color": colour, "marker": _MARKERS[i % len(_MARKERS)], "linewidths": 0}
            ax.scatter(x, y, s=14 if len(self) < 2000 else 5, alpha=0.8, label=plain(name), **style)
        if len(self.classes.names) > 1:
            ax.legend(frameon=False, fontsize=8, title=plain(self.name), bbox_to_anchor=(1, 1), loc="upper left")
        if self.title:
            ax.set_title(plain(self.title), fontsize=10, loc="left")
        ax.set(xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
        return ax

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the map as a matplotlib figure."""
        return figure_of(self.plot())

    def _widget(self) -> Any:
        from sparselens.views.map_widget import live_map

        return live_map(self)

    def portable(self) -> "sparselens.views.map_widget.MapWidget":
        """Return the widget that draws on a canvas of its own."""
        from sparselens.views.map_widget import MapWidget

        return MapWidget(self)

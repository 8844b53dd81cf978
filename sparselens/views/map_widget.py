"""The live map of documents."""

import importlib.util
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from sparselens.views.base import clean
from sparselens.views.maps import ConceptMap
from sparselens.views.selection import Ids
from sparselens.views.widgets import ViewWidget, checks, read_static

_TEXT_BYTES = 1_000_000  # of all texts in the list together; the open one comes in full
_OPEN_CHARS = 6000
_HEIGHT = 460  # pixels of a map that jupyter-scatter draws


class MapWidget(ViewWidget):
    """A map to draw a lasso on, and a list of the chosen texts; made by `ConceptMap.explore()`.

    Traits to read, set and observe:
        documents: the numbers of the chosen documents, a tuple.
        document: the number of the open one, -1 for none.
        feature: set it to choose the documents in which that feature fires, -1 for none.
    """

    _esm = read_static("shared.js", "map.js")
    _css = read_static("shared.css", "texts.css", "map.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    notes = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    name = traitlets.Unicode(read_only=True).tag(sync=True)
    xy = traitlets.Bytes(read_only=True).tag(sync=True)
    codes = traitlets.Bytes(read_only=True).tag(sync=True)
    classes = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    canvas = traitlets.Bool(True, read_only=True).tag(sync=True)
    about = traitlets.List(traitlets.List(), read_only=True).tag(sync=True)
    reading = traitlets.Dict(read_only=True).tag(sync=True)
    documents = Ids().tag(sync=True)
    document = traitlets.Int(-1).tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: ConceptMap, canvas: bool = True) -> None:
        chars = int(np.clip(_TEXT_BYTES / len(view), 40, 600))
        fixed = {
            "title": clean(view.title or ""),
            "notes": [clean(note) for note in view.notes],
            "name": clean(view.name),
            "xy": view.xy.astype("<f4").tobytes(),
            "codes": view.classes.codes.tobytes(),
            "classes": [clean(name, 80) for name in view.classes.names],
            "colours": view.classes.colours,
            "texts": [clean(text, chars) for text in view.texts],
            "canvas": canvas,
        }
        super().__init__(view, fixed)

    @property
    def selected(self) -> np.ndarray:
        """The numbers of the chosen documents, as `subset` of an embedding takes them; if none, the open one."""
        return np.array(self.documents or [self.document] * (self.document >= 0), dtype=np.int64)

    @checks("document")
    def _check_document(self, proposal: Any) -> int:
        return self._between(proposal["value"], -1, len(self.texts) - 1, "document")

    @checks("documents")
    def _check_documents(self, proposal: Any) -> tuple[int, ...]:
        if proposal["value"]:
            self._between(max(proposal["value"]), 0, len(self.texts) - 1, "the largest of documents")
        return proposal["value"]

    @traitlets.observe("documents")
    def _describe(self, change: Any) -> None:
        about = self.view.about
        rows = about(self.selected) if about is not None and 0 < len(self.documents) < len(self.texts) else []
        self.set_trait("about", [[int(feature), clean(text, 80), float(inside), float(outside)]
                                 for feature, text, inside, outside in rows])

    @traitlets.observe("document")
    def _read(self, change: Any) -> None:
        document = change["new"]
        text = clean(self.view.texts[document], _OPEN_CHARS) if document >= 0 else ""
        self.set_trait("reading", {"document": document, "text": text})

    @traitlets.observe("feature")
    def _find(self, change: Any) -> None:
        if self.view.find is not None and change["new"] >= 0:
            self.documents = np.asarray(self.view.find(change["new"]), dtype=np.int64)


class ScatterMap(ipywidgets.HBox):
    """A map drawn by jupyter-scatter beside the list of texts of a `MapWidget`, with the same traits.

    Attributes:
        list: the `MapWidget`.
        scatter: the `jupyter_scatter` object, to change colours and sizes with.
    """

    documents = Ids()
    document = traitlets.Int(-1)
    feature = traitlets.Int(-1)

    def __init__(self, view: ConceptMap) -> None:
        import jscatter

        self.view = view
        self.list = MapWidget(view, canvas=False)
        self._giving = False
        self._placed = np.flatnonzero(view.placed)
        frame = view.to_frame().iloc[self._placed].reset_index(drop=True)
        classes, colours = view.classes.names, view.classes.colours
        self.scatter = jscatter.Scatter(data=frame, x="x", y="y", height=_HEIGHT)
        self.scatter.color(by="class", map=dict(zip(classes, colours, strict=True)))
        self.scatter.legend(len(classes) > 1)
        self.scatter.axes(False)
        self.scatter.size(default=6 if len(frame) < 5000 else 3)
        picture = self.scatter.show()
        for part, share, width in ((picture, 3, _HEIGHT + 20), (self.list, 2, 280)):
            part.layout.flex, part.layout.min_width = f"{share} 1 {width}px", f"{width}px"  # a narrow map hides points
        super().__init__([picture, self.list], layout={"flex_flow": "row wrap"})
        for name in ("documents", "document", "feature"):
            traitlets.link((self, name), (self.list, name))
        self.scatter.widget.observe(self._take, "selection")
        self.observe(self._give, "documents")

    @property
    def selected(self) -> np.ndarray:
        """The numbers of the chosen documents, as `subset` of an embedding takes them."""
        return self.list.selected

    def _take(self, change: Any) -> None:
        if not self._giving:
            self.documents = self._placed[np.asarray(change["new"], dtype=np.int64)]

    def _give(self, change: Any) -> None:
        self._giving = True  # the map knows nothing of documents without a place
        try:
            self.scatter.selection(np.flatnonzero(np.isin(self._placed, change["new"])))
        finally:
            self._giving = False

    def __repr__(self) -> str:
        return repr(self.view)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data = super()._repr_mimebundle_(**options)
        return {**data, "text/plain": repr(self), "text/html": self.view.to_html()}


def live_map(view: ConceptMap) -> MapWidget | ScatterMap:
    """Return the map as jupyter-scatter draws it, if that is installed, else on a canvas of our own."""
    return ScatterMap(view) if importlib.util.find_spec("jscatter") else MapWidget(view)

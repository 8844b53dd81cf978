"""The live network of features that come together."""

from typing import Any

import numpy as np
import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean
from sparselens.views.networks import ROWS, CorrelationNetwork
from sparselens.views.selection import Ids
from sparselens.views.widgets import ViewWidget, checks, read_static


class NetworkWidget(ViewWidget):
    """A network to point at, a list of its pairs, and texts of the open one; made by `CorrelationNetwork.explore()`.

    Traits to read, set and observe:
        feature: the feature whose pairs are listed, -1 for all.
        pair: the two features whose texts are shown; empty for none.
        picked: the features that were marked, a tuple.
        threshold: pairs with a smaller NPMI are hidden.
    """

    _esm = read_static("shared.js", "texts.js", "network.js")
    _css = read_static("shared.css", "texts.css", "network.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    notes = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    names = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    nodes = traitlets.List(traitlets.List(), read_only=True).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    captions = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    named = traitlets.List(traitlets.Int(), read_only=True).tag(sync=True)
    xy = traitlets.Bytes(read_only=True).tag(sync=True)
    edges = traitlets.List(traitlets.List(), read_only=True).tag(sync=True)
    store = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    extra = traitlets.Dict(read_only=True).tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)
    pair = traitlets.Tuple().tag(sync=True)
    picked = Ids().tag(sync=True)
    threshold = traitlets.Float(-1.0).tag(sync=True)

    def __init__(self, view: CorrelationNetwork) -> None:
        graph, drawn = view.graph, view.drawn
        pairs = [(int(a), int(b)) for a, b in zip(drawn["feature_a"], drawn["feature_b"], strict=True)]
        self._pairs = set(pairs)
        numbers = zip(graph.edges.tolist(), drawn["npmi"], drawn["support"], strict=True)
        fixed = {
            "title": clean(view.title or ""),
            "notes": [clean(note) for note in view.notes],
            "names": [clean(name) for name in view.ends],
            "nodes": [list(node) for node in graph.nodes],
            "labels": [clean(view.label(feature), 120) for _, feature in graph.nodes],
            "captions": [clean(view.caption(i)) for i in range(len(graph.nodes))],
            "colours": [graph.classes.colours[code] for code in graph.classes.codes],
            "named": view.named,
            "xy": np.ascontiguousarray(graph.xy, dtype="<f4").tobytes(),
            "edges": [[i, j, float(npmi), int(both)] for (i, j), npmi, both in numbers],
            "store": [view.texts(a, b) for a, b in pairs[:ROWS]],
        }
        super().__init__(view, fixed, pair=pairs[0] if pairs else ())

    @property
    def selected(self) -> tuple[int, ...]:
        """The features that were marked; if none, those of the open pair."""
        return self.picked or self.pair

    @checks("pair")
    def _check_pair(self, proposal: Any) -> tuple[int, ...]:
        if proposal["value"] and tuple(proposal["value"]) not in self._pairs:
            raise InputError(f"{proposal['value']} is not among the {len(self._pairs)} pairs that are drawn.")
        return tuple(proposal["value"])

    @checks("feature")
    def _check_feature(self, proposal: Any) -> int:
        if proposal["value"] != -1 and all(feature != proposal["value"] for _, feature in self.nodes):
            raise InputError(f"feature {proposal['value']} is in none of the {len(self._pairs)} pairs that are drawn.")
        return proposal["value"]

    @traitlets.observe("pair")
    def _fetch(self, change: Any) -> None:
        if change["new"] and all(tuple(entry["pair"]) != change["new"] for entry in self.store):
            self.set_trait("extra", self.view.texts(*change["new"]))

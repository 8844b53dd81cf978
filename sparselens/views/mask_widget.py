"""The live view of attention masks."""

from typing import Any

import numpy as np
import traitlets

from sparselens.views.masks import MaskView
from sparselens.views.widgets import ViewWidget, checks, read_static

_BYTES = 1_000_000  # of all that is sent, about; a cell takes one


class MaskWidget(ViewWidget):
    """Masks of attention heads to walk through; made by `MaskView.explore()`.

    It holds the first layers, as many as fit into a megabyte. Where not even one does, its tiles are longer.

    Traits to read, set and observe:
        layer, head: the chosen head; `layer` counts the layers of the view from 0.
        query, key: the chosen tile, -1 for none.
        mark: which of the marks the small map of layers and heads shows.
    """

    _esm = read_static("shared.js", "masks.js")
    _css = read_static("shared.css", "masks.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    tile = traitlets.Int(read_only=True).tag(sync=True)
    names = traitlets.List(traitlets.Int(), read_only=True).tag(sync=True)
    n_heads = traitlets.Int(read_only=True).tag(sync=True)
    side = traitlets.Int(read_only=True).tag(sync=True)
    possible = traitlets.Bytes(read_only=True).tag(sync=True)
    kept = traitlets.Bytes(read_only=True).tag(sync=True)
    other = traitlets.Bytes(read_only=True).tag(sync=True)
    lost = traitlets.Bytes(read_only=True).tag(sync=True)
    marks = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    mark_kept = traitlets.Bytes(read_only=True).tag(sync=True)
    mark_lost = traitlets.Bytes(read_only=True).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    head = traitlets.Int(0).tag(sync=True)
    query = traitlets.Int(-1).tag(sync=True)
    key = traitlets.Int(-1).tag(sync=True)
    mark = traitlets.Int(0).tag(sync=True)

    def __init__(self, view: MaskView) -> None:
        shown, view = view, _fitting(view)
        _, n_heads, side, _ = view.kept.shape
        n = max(1, _room(view) // _cells(view))
        fixed: dict[str, Any] = {
            "title": view.title or "", "tokens": view.tokens, "tile": view.tile, "names": view.layers[:n],
            "n_heads": n_heads, "side": side, "possible": view.possible.astype(np.uint8).tobytes(),
            "kept": _bytes(view.kept[:n]),
        }
        if view.other is not None:
            fixed["other"] = _bytes(view.other[:n])
        if view.lost is not None:
            fixed["lost"] = _bytes(view.lost[:n])
        if view.marks:
            marks, lost = view.marks, [mark.lost for mark in view.marks.values()]
            fixed["marks"] = [{"name": name, "spans": [list(s) for s in mark.spans]} for name, mark in marks.items()]
            fixed["mark_kept"] = _bytes(np.stack([mark.kept[:n] for mark in marks.values()]))
            if all(x is not None for x in lost):
                fixed["mark_lost"] = _bytes(np.stack([x[:n] for x in lost if x is not None]))
        super().__init__(shown, fixed, layer=min(view.shown, len(fixed["names"]) - 1))

    @property
    def selected(self) -> tuple[int, int]:
        """The chosen layer, by its index in the model, and head."""
        return self.names[self.layer], self.head

    @checks("layer")
    def _check_layer(self, proposal: Any) -> int:
        return self._between(proposal["value"], 0, len(self.names) - 1, "layer")

    @checks("head")
    def _check_head(self, proposal: Any) -> int:
        return self._between(proposal["value"], 0, self.n_heads - 1, "head")

    @checks("query", "key")
    def _check_tile(self, proposal: Any) -> int:
        return self._between(proposal["value"], -1, self.side - 1, proposal["trait"].name)

    @checks("mark")
    def _check_mark(self, proposal: Any) -> int:
        return self._between(proposal["value"], 0, max(len(self.marks) - 1, 0), "mark")

    def __repr__(self) -> str:
        return repr(self.view).replace("MaskView(", "MaskWidget(", 1)


def _cells(view: MaskView) -> int:
    """Bytes of a layer."""
    return view.kept[0].size * (1 if view.other is None else 2)


def _room(view: MaskView) -> int:
    """Bytes that the tokens leave to the masks."""
    return _BYTES - sum(len(token.encode()) + 3 for token in view.tokens)


def _fitting(view: MaskView) -> MaskView:
    """The view, in longer tiles where a layer would not fit."""
    while _cells(view) > _room(view) and view.kept.shape[-1] > 32:
        view = view.coarser(2)
    return view


def _bytes(shares: np.ndarray) -> bytes:
    """A byte a share, 255 for all; what is above 0 stays above 0."""
    scaled = np.round(np.clip(shares, 0, 1) * 255)
    return np.where((shares > 0) & (scaled == 0), 1, scaled).astype(np.uint8).tobytes()

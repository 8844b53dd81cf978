"""One HTML file with working widgets in it: no kernel, no network, no outside script."""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from sparselens.errors import InputError
from sparselens.files import write_whole
from sparselens.views.base import View
from sparselens.views.html import document
from sparselens.views.selection import SHARED

if TYPE_CHECKING:
    from sparselens.views.widgets import ViewWidget


def export_html(views: Sequence[Union[View, "ViewWidget"]], *, title: str) -> str:
    """Return a document that runs views, one below the other. What is chosen in one is shown in the others.

    Args:
        views: views of the same texts and dictionary, or their widgets, which start from their present state.
        title: plain text.

    Raises:
        InputError: there is no view.
    """
    if not views:
        raise InputError("there is no view to save: give at least one.")
    widgets = [_portable(view) for view in views]
    data = {"views": [_data(widget) for widget in widgets], "shared": SHARED}
    # "<" as an escape: no text can then close the script element or open a comment in it
    packed = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    fallback = "\n".join(widget.view._fallback() for widget in widgets)
    body = (
        f'<div id="sparselens-view"></div>\n<noscript>{fallback}</noscript>\n'
        f'<script type="application/json" id="sparselens-data">{packed}</script>'
    )
    from sparselens.views.widgets import read_static

    return document(title, body, script=read_static("host.js"))


def save_html(views: Sequence[Union[View, "ViewWidget"]], path: str | Path, *, title: str) -> Path:
    """Write `export_html` to `path`; the file appears whole or not at all. Returns the path.

    Raises:
        InputError: there is no view.
        StorageError: the disk is full or not writable.
    """
    html = export_html(views, title=title)
    with write_whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


def _portable(thing: Any) -> "ViewWidget":
    """The widget that runs without a kernel: the given one, or that of its view."""
    from sparselens.views.widgets import ViewWidget

    if isinstance(thing, ViewWidget):
        return thing
    return (thing if isinstance(thing, View) else thing.view).portable()


def _data(widget: "ViewWidget") -> dict[str, Any]:
    state, buffers = _split(_own_state(widget))
    return {"state": state, "buffers": buffers, "esm": str(widget._esm), "css": str(widget._css)}


def _own_state(widget: "ViewWidget") -> dict[str, Any]:
    """The widget's own synced traits, without those every Jupyter widget has."""
    import ipywidgets

    shared = set(ipywidgets.DOMWidget.class_trait_names(sync=True))
    own = [key for key in widget.keys if not key.startswith("_") and key not in shared]
    return widget.get_state(own)


def _split(state: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[list[str | int], str]]]:
    """Take the bytes out of a state: the JSON part, and `(path, base64)` pairs."""
    buffers: list[tuple[list[str | int], str]] = []

    def walk(value: Any, path: list[str | int]) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            buffers.append((path, base64.b64encode(value).decode()))
            return None
        if isinstance(value, dict):
            return {key: walk(item, [*path, key]) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None  # JSON has no NaN
        if isinstance(value, (list, tuple)):
            return [walk(item, [*path, i]) for i, item in enumerate(value)]
        return value

    return walk(state, []), buffers

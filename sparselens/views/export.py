"""One HTML file with a working widget in it: no kernel, no network, no outside script."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.files import write_whole
from sparselens.views.html import document

if TYPE_CHECKING:
    import anywidget


def export_html(widget: "anywidget.AnyWidget", *, title: str, fallback: str) -> str:
    """Return a document that runs `widget` from its present state.

    Args:
        widget: any anywidget whose module is one piece of text (no imports).
        title: plain text.
        fallback: static HTML for readers without scripts; its texts must have been escaped.
    """
    state, buffers = _split(_own_state(widget))
    data = {
        "state": state,
        "buffers": buffers,
        "esm": str(widget._esm),
        "css": str(getattr(widget, "_css", "")),
    }
    # "<" as an escape: no text can then close the script element or open a comment in it
    packed = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    body = (
        f'<div id="sparselens-view"></div>\n<noscript>{fallback}</noscript>\n'
        f'<script type="application/json" id="sparselens-data">{packed}</script>'
    )
    return document(title, body, script=_host())


def save_html(widget: "anywidget.AnyWidget", path: str | Path, *, title: str, fallback: str) -> None:
    """Write `export_html` to `path`; the file appears whole or not at all."""
    html = export_html(widget, title=title, fallback=fallback)
    with write_whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


@cache
def _host() -> str:
    return (Path(__file__).parent / "static" / "host.js").read_text(encoding="utf-8")


def _own_state(widget: "anywidget.AnyWidget") -> dict[str, Any]:
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
        if isinstance(value, (list, tuple)):
            return [walk(item, [*path, i]) for i, item in enumerate(value)]
        return value

    return walk(state, []), buffers

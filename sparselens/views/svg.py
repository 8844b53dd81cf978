"""Pictures of points and lines as SVG inside an image element, which every notebook viewer keeps."""

import base64
import html
from collections.abc import Iterable

import numpy as np

from sparselens.views.html import visible

WIDTH, HEIGHT = 720, 460
_PAD = 14


def fit(xy: np.ndarray, pad: int = _PAD, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return points moved into a picture, one scale for both axes, y upwards."""
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    span = np.where(high > low, high - low, 1.0)
    scale = min((width - 2 * pad) / span[0], (height - 2 * pad) / span[1])
    middle = (low + high) / 2
    return np.array([width / 2, height / 2]) + (xy - middle) * scale * np.array([1, -1])


def dots(points: np.ndarray, colour: str, size: float) -> str:
    """Return points [n, 2] as one path of round dots."""
    path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{size:g}" stroke-linecap="round" stroke-opacity=".8"/>'


def line(a: np.ndarray, b: np.ndarray, colour: str, width: float) -> str:
    """Return a straight line."""
    x, y, u, v = a[0], a[1], b[0], b[1]
    return f'<path d="M{x:.0f} {y:.0f}L{u:.0f} {v:.0f}" stroke="{colour}" stroke-width="{width:.2g}"/>'


def label(at: np.ndarray, text: str, size: int = 12, limit: int = 32) -> str:
    """Return a text on a white halo, centred on a point."""
    said = html.escape(text if len(text) <= limit else text[: limit - 1] + "…")
    return (f'<text x="{at[0]:.0f}" y="{at[1]:.0f}" font-size="{size}" text-anchor="middle" '
            f'paint-order="stroke" stroke="#fff" stroke-width="3" fill="#000">{visible(said)}</text>')


def image(parts: Iterable[str], alt: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Return an image element on white paper: what is in it can be read in light and dark themes."""
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'font-family="system-ui,sans-serif" fill="none">'
           f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>')
    packed = base64.b64encode(svg.encode("utf-8", "replace")).decode()
    style = f"width:{width}px;max-width:100%;border:1px solid rgba(128,128,128,.35)"
    return f'<img src="data:image/svg+xml;base64,{packed}" alt="{html.escape(alt, quote=True)}" style="{style}">'

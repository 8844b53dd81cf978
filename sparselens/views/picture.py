"""A matplotlib figure inside an image element, which every notebook viewer keeps."""

import base64
import io
from typing import TYPE_CHECKING

from sparselens.views.html import escape

if TYPE_CHECKING:
    import matplotlib.figure


def picture(figure: "matplotlib.figure.Figure", alt: str, dpi: int = 100) -> str:
    """Return a figure as an image element, with its pixels in it.

    Args:
        figure: what to draw; on white paper, so that it can be read in light and dark themes.
        alt: what it shows, in words, for those who do not see it.
        dpi: pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    width = round(figure.get_figwidth() * 96)
    packed = base64.b64encode(buffer.getvalue()).decode()
    style = f"width:{width}px;max-width:100%"
    return f'<img src="data:image/png;base64,{packed}" alt="{escape(alt)}" style="{style}">'

"""A matplotlib figure inside an image element, which every notebook viewer keeps."""

import base64
import io
from typing import TYPE_CHECKING

from sparselens.views.html import escape, fragment

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


def captioned(figure: "matplotlib.figure.Figure", title: str | None, summary: str, alt: str, max_bytes: int) -> str:
    """Return a figure below its title and a sentence, as sharp as the bytes allow; without the picture if none fits.

    Args:
        figure: what to draw; it is closed.
        title, summary: plain texts. alt: what the picture is, before the summary, for those who do not see it.
        max_bytes: most bytes of the whole, in UTF-8.
    """
    import matplotlib.pyplot as plt

    plt.close(figure)
    head = f'<div style="font-weight:600">{escape(title, 200)}</div>' if title else ""
    head += f'<div style="font-size:12px;opacity:.7">{escape(summary)}</div>'
    for dpi in (100, 60, 30):
        html = fragment(head + picture(figure, f"{alt}. {summary}", dpi))
        if len(html.encode()) <= max_bytes:
            return html
    return fragment(head)

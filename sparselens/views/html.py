"""Static HTML that is safe everywhere: every text is escaped, styles are inline, nothing is fetched.

The fragments use only tags, attributes and style properties that JupyterLab keeps when it cleans the output
of an untrusted notebook: no `<style>`, `<script>` or `<svg>`, no ids, roles or data attributes.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparselens.errors import InputError, NotFiniteError

ORANGE = (230, 159, 0)  # Okabe-Ito colours, told apart by colour-blind readers
BLUE = (0, 114, 178)
VERMILLION = (213, 94, 0)
LINE = "rgba(128,128,128,.35)"  # a hairline that shows on white and on black
TOKEN_CHARS = 80
# JupyterLab gives tables columns of equal width, striped rows, and colours the row under the pointer
TABLE = "border-collapse:collapse;table-layout:auto;margin:0"
TABLE_ROW = "background-color:transparent"

# Characters that show nothing, or turn the reading direction of what follows.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_STRIP = (
    "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;line-height:1.9;"
    "white-space:pre-wrap;overflow-wrap:break-word"
)
_NOTE = "font-size:12px;opacity:.7"
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;background:Canvas;color:CanvasText;
max-width:76rem;margin:2rem auto;padding:0 1.25rem}
h1{font-size:1.5rem;font-weight:650;line-height:1.25;margin:0 0 1rem}
table{font-size:14px}
summary{cursor:pointer}
summary:focus-visible{outline:2px solid #0072B2;outline-offset:2px}
"""


def visible(text: str, limit: int | None = None) -> str:
    """Return `text` with unseen characters written as code points, cut after `limit` characters."""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


def escape(text: object, limit: int | None = None) -> str:
    """Return any object's text, safe inside an element and inside a quoted attribute."""
    return html.escape(visible(str(text), limit), quote=True)


def fragment(content: str, width: int = 960) -> str:
    """Return the outermost element of a view, `width` pixels wide at most.

    Its classes keep formula renderers away from the dollar signs in texts.
    """
    return f'<div class="mathjax_ignore tex2jax_ignore" style="max-width:{width}px">{content}</div>'


def heading(title: str | None, notes: Sequence[str] = ()) -> str:
    """Return a title and sentences to stand above a view; nothing where there are none."""
    style = "font-size:16px;font-weight:600;margin:0 0 4px"
    lines = [f'<div style="{style}">{escape(title, 200)}</div>'] if title else []
    return "".join([*lines, *(f'<div style="{_NOTE}">{escape(note)}</div>' for note in notes)])


def as_array(values: Any) -> np.ndarray:
    """Return lists, arrays and tensors of any device and dtype as a float32 array.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    if hasattr(values, "detach"):  # numpy knows neither bfloat16 nor other devices
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise NotFiniteError(f"values holds {bad} NaN or infinite numbers; there is no colour for them.")
    return array


def windows(values: np.ndarray, max_tokens: int, context: int = 8) -> list[tuple[int, int]]:
    """Return `(start, stop)` spans around the strongest values, `max_tokens` together at most.

    Short texts come back as one span. A text in which nothing fires gives its beginning.
    """
    n = len(values)
    if n <= max_tokens:
        return [(0, n)]
    context = min(context, (max_tokens - 1) // 2)
    keep, left = np.zeros(n, dtype=bool), max_tokens
    for peak in np.argsort(-np.abs(values), kind="stable")[:max_tokens]:
        span = slice(max(peak - context, 0), peak + context + 1)
        left -= int((~keep[span]).sum())
        if values[peak] == 0 or left < 0:
            break
        keep[span] = True
    if not keep.any():
        keep[:max_tokens] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


class Scale(NamedTuple):
    """What the colours mean: the magnitude of the fullest one, and whether negative values exist."""

    top: float
    signed: bool

    @classmethod
    def of(cls, *arrays: np.ndarray) -> "Scale":
        """Return the scale that all of `arrays` share."""
        top = max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=0.0)
        return cls(top, any(bool((array < 0).any()) for array in arrays))

    def opacity(self, value: float) -> float:
        """Return 0 to 1. The weakest mark still shows, and the text on a signed one stays readable."""
        share = min(abs(value) / self.top, 1.0) if self.top else 0.0
        return 0.15 + (0.7 if self.signed else 0.85) * share


def mark(text: str, value: float, scale: Scale, index: int) -> str:
    """Return one marked token. Its index and number, signed where signs exist, are in the hover title."""
    opacity = scale.opacity(value)
    title = f"{index}: {number(value, scale.signed)}"
    # Some viewers take inline styles away too: there, what fires is bold, or italic where it is negative. Not <mark>:
    # it has a text colour of its own, which an untrusted notebook cannot be told to inherit.
    tag, style = ("i", "font-style:normal") if value < 0 else ("b", "font-weight:400")
    if scale.signed:
        colour, line = (VERMILLION, "solid") if value > 0 else (BLUE, "dashed")
        style += f";background:{rgba(colour, opacity)};border-bottom:2px {line} {rgba(colour, 1.0)}"
    else:
        style += f";background:{rgba(ORANGE, opacity)}"
        if opacity >= 0.65:  # in a dark theme the text would be white
            style += ";color:#000"
    return f'<{tag} style="{style}" title="{title}">{text}</{tag}>'


def rgba(colour: tuple[int, int, int], opacity: float) -> str:
    """Return a CSS colour."""
    return f"rgba({colour[0]},{colour[1]},{colour[2]},{round(opacity, 2):g})"


def number(value: float, signed: bool = False) -> str:
    """Return a number with three significant digits, with a real minus sign; a dash for NaN."""
    if value != value:
        return "–"
    digits = ",.0f" if 1000 <= abs(value) < 1e9 else ".3g"
    return f"{value:{'+' if signed else ''}{digits}}".replace("-", "−")


def strip(
    tokens: Sequence[str],
    values: np.ndarray,
    *,
    scale: Scale,
    max_tokens: int,
    line_breaks: bool = True,
) -> str:
    """Return tokens as running text in which those with a value other than 0 are marked.

    Long texts shrink to windows around the peaks. With `line_breaks=False` a new line is drawn as an arrow
    and the text runs on.
    """
    parts, end = [], 0
    for start, stop in windows(values, max_tokens):
        parts.append(_gap(start - end))
        for i in range(start, stop):
            value = float(values[i])
            text = escape(tokens[i], TOKEN_CHARS) or ("∅" if value else "")
            if value or not line_breaks:  # a marked line break needs something to colour
                text = text.replace("\n", "↵\n" if line_breaks else "↵")
            parts.append(mark(text, value, scale, i) if value else text)
        end = stop
    parts.append(_gap(len(tokens) - end))
    return f'<div style="{_STRIP}">{"".join(parts)}</div>'


def _gap(n: int) -> str:
    if n == 0:
        return ""
    return f'<span style="{_NOTE}"> … {n:,} token{"s" if n > 1 else ""} … </span>'


def scale_bar(scale: Scale) -> str:
    """Return the legend of a strip: a small gradient between its smallest and largest value."""
    if scale.signed:
        stops = f"{rgba(BLUE, 0.85)},{rgba(BLUE, 0.15)},{rgba(VERMILLION, 0.15)},{rgba(VERMILLION, 0.85)}"
        low, high = number(-scale.top), number(scale.top, signed=True)
    else:
        stops, low, high = f"{rgba(ORANGE, 0.0)},{rgba(ORANGE, 1.0)}", "0", number(scale.top)
    box = f"display:inline-block;width:90px;height:10px;margin:0 6px;border:1px solid {LINE}"
    bar = f'<span style="{box};background-image:linear-gradient(90deg,{stops})"></span>'
    low, high = (f'<span style="{_NOTE}">{text}</span>' for text in (low, high))
    return f'<span style="white-space:nowrap">{low}{bar}{high}</span>'


def check_row(tokens: Sequence[str], values: Any) -> np.ndarray:
    """Return `values` as an array, one number a token.

    Raises:
        InputError: the lengths differ.
        NotFiniteError: a value is NaN or infinite.
    """
    array = as_array(values)
    if array.shape != (len(tokens),):
        raise InputError(
            f"values has shape {list(array.shape)}, but there are {len(tokens)} tokens. Give one number a token."
        )
    return array


def snippets(rows: Sequence[Mapping[str, Any]], *, scale: Scale | None = None, max_tokens: int = 60) -> str:
    """Return many texts as short marked snippets on one shared colour scale.

    Args:
        rows: one dict a text, with `tokens` (list of str), `values` (one number a token; 0 = does not fire)
            and `title` (str, may be left out).
        scale: what the colours mean; by default one scale that fits all rows.
        max_tokens: tokens shown of each text, around its peaks.
    """
    arrays = [check_row(row["tokens"], row["values"]) for row in rows]
    scale = Scale.of(*arrays) if scale is None else scale
    parts = []
    for row, array in zip(rows, arrays, strict=True):
        title = str(row.get("title") or "")
        head = f'<div style="{_NOTE}">{escape(title, 120)}</div>' if title else ""
        body = strip(row["tokens"], array, scale=scale, max_tokens=max_tokens, line_breaks=False)
        parts.append(f'<div style="border-top:1px solid {LINE};padding:4px 0">{head}{body}</div>')
    return fragment("".join(parts))


def page(title: str, body: str) -> str:
    """Return a whole HTML document with a heading, which works offline and may fetch nothing.

    Args:
        title: plain text; escaped here.
        body: HTML; its texts must have been escaped.
    """
    return document(title, f"<h1>{escape(title)}</h1>\n{body}")


def document(title: str, body: str, script: str | None = None) -> str:
    """Return `page` without the heading.

    Args:
        title: plain text for the tab.
        body: HTML; its texts must have been escaped.
        script: one module script. The policy allows it by its hash, and modules made from data in the page.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}' blob:"
        body += f'\n<script type="module">{script}</script>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_PAGE_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""

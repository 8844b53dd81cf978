"""Marked text as a matplotlib figure."""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.views.html import BLUE, ORANGE, TOKEN_CHARS, VERMILLION, Scale, visible, windows

if TYPE_CHECKING:
    import matplotlib.figure

_COLUMNS = 96
_MAX_TOKENS = 600
_FONT = 9.0  # points
_CHAR = 0.602 * _FONT  # advance of DejaVu Sans Mono, which comes with matplotlib
_ROW = 1.9 * _FONT


def strip_figure(tokens: list[str], values: np.ndarray, title: str) -> "matplotlib.figure.Figure":
    """Draw tokens in lines of 96 characters with a coloured box behind each that fires.

    Args:
        tokens: the text, token by token.
        values: float [T]; 0 = not active. Above 600 tokens only windows around the peaks are drawn.
        title: plain text.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    n_lines, pieces = _lay_out(tokens, values)
    scale = Scale.of(values)
    width, height = _COLUMNS * _CHAR / 72, n_lines * _ROW / 72
    font: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": _FONT}
    figure, axes = plt.subplots(figsize=(width, max(height, 0.3)))
    plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
    axes.set(xlim=(0, _COLUMNS), ylim=(n_lines, 0))
    axes.axis("off")
    axes.set_title(drawable(visible(title, TOKEN_CHARS)), loc="left", fontsize=_FONT + 1, parse_math=False)
    for row, start, text, value in pieces:
        # a text object a piece: hinting stretches a long line away from its boxes
        axes.text(start, row + 0.5, text, va="center", parse_math=False, **font)
        if not value:
            continue
        stop = start + len(text)
        colour = ORANGE if not scale.signed else VERMILLION if value > 0 else BLUE
        face = (*(part / 255 for part in colour), scale.opacity(value))
        style = "--" if value < 0 else "-"
        axes.add_patch(Rectangle((start, row + 0.08), stop - start, 0.84, facecolor=face, linewidth=0))
        if scale.signed:
            axes.plot([start, stop], [row + 0.9] * 2, style, color=face[:3], linewidth=1.2)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    return figure


def _lay_out(tokens: list[str], values: np.ndarray) -> tuple[int, list[tuple[int, int, str, float]]]:
    """Return the number of lines, and pieces of text as `(line, column, text, value)`."""
    pieces: list[tuple[int, int, str, float]] = []
    row = column = 0

    def add(text: str, value: float) -> None:
        nonlocal row, column
        while text:
            if column == _COLUMNS:
                row, column = row + 1, 0
            piece, text = text[: _COLUMNS - column], text[_COLUMNS - column :]
            pieces.append((row, column, piece, value))
            column += len(piece)

    end = 0
    for start, stop in windows(values, _MAX_TOKENS):
        if start > end:
            add(f" … {start - end:,} tokens … ", 0.0)
        for token, value in zip(tokens[start:stop], values[start:stop], strict=True):
            add(drawable(visible(token, TOKEN_CHARS).replace("\n", "↵").replace("\t", " ")), float(value))
            if token.endswith("\n"):
                row, column = row + 1, 0
        end = stop
    if end < len(tokens):
        add(f" … {len(tokens) - end:,} tokens … ", 0.0)
    return row + 1, pieces


def drawable(text: str) -> str:
    """Return `text` with a box for each character the font lacks: columns stay true and nothing warns."""
    return "".join(letter if ord(letter) in _letters() else "□" for letter in text)


@cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())

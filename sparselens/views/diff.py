"""How two sets of texts differ: a static table with the firing tokens, and two matplotlib plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsInt

import numpy as np

from sparselens.errors import InputError
from sparselens.views.curves import plain
from sparselens.views.html import (
    BLUE,
    LINE,
    TABLE,
    TABLE_ROW,
    VERMILLION,
    Scale,
    check_row,
    escape,
    fragment,
    heading,
    page,
    rgba,
    snippets,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

Sides = Mapping[str, Sequence[Mapping[str, Any]]]
Examples = Mapping[SupportsInt, Sides]

COLUMNS = (
    "feature",
    "description",
    "freq_a",
    "freq_b",
    "difference",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
)
ROWS = 30
_BYTES = 200_000  # of a notebook output
_PAGE_BYTES = 2_000_000
_CELL = f"padding:6px 10px;text-align:left;vertical-align:top;border-top:1px solid {LINE}"
_NOTE = "font-size:12px;opacity:.7"
_IN_A, _IN_B = BLUE, VERMILLION


class _Layout(NamedTuple):
    names: tuple[str, str]
    reach: float  # largest magnitude on the axis of differences
    n_examples: int
    max_tokens: int


def diff_html(
    frame: "pandas.DataFrame",
    examples: Examples,
    *,
    title: str,
    notes: Sequence[str] = (),
    names: tuple[str, str] = ("A", "B"),
    max_bytes: int = _BYTES,
) -> str:
    """Return the first 30 rows of a dataset difference as a static table.

    Args:
        frame: a row a feature, in the order to show, with the columns `feature, description, freq_a, freq_b,
            difference, ci_low, ci_high, p_value, q_value`. Frequencies are shares of texts in 0 to 1.
        examples: feature -> `{"a": rows, "b": rows}`, rows as for `snippets`. Features may be missing.
        title: a heading.
        notes: sentences shown above the table.
        names: what the two sets are called.
        max_bytes: the texts shown get fewer and shorter until the result is no larger.

    Raises:
        InputError: a column is missing, or the tokens and values of an example differ in length.
    """
    check_columns(frame)
    head = heading(title, notes)
    if frame.empty:
        return fragment(f"{head}<div>No feature fires in either set.</div>")
    shown = frame.head(ROWS)
    bounds = shown[["ci_low", "ci_high", "difference"]].to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(bounds), initial=0.0)) or 1.0
    for n_examples, max_tokens in ((5, 60), (3, 40), (2, 24), (1, 12), (1, 5), (0, 0)):
        layout = _Layout(names, reach, n_examples, max_tokens)
        html = head + _table(shown, examples, layout)
        if left := len(frame) - len(shown):
            html += f'<div style="{_NOTE};padding:6px 10px">… and {left:,} more rows: see .to_frame()</div>'
        html = fragment(html, width=1180)
        if len(html.encode()) <= max_bytes:
            break
    return html


def diff_page(
    frame: "pandas.DataFrame",
    examples: Examples,
    *,
    title: str,
    notes: Sequence[str] = (),
    names: tuple[str, str] = ("A", "B"),
) -> str:
    """Return `diff_html` as a whole HTML document that opens without a network, with more and longer texts."""
    return page(title, diff_html(frame, examples, title="", notes=notes, names=names, max_bytes=_PAGE_BYTES))


def check_columns(frame: "pandas.DataFrame") -> None:
    """Raise an InputError if a column of a difference is missing."""
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise InputError(f"the frame lacks {', '.join(missing)}. A difference has the columns {', '.join(COLUMNS)}.")


def _table(shown: "pandas.DataFrame", examples: Examples, layout: _Layout) -> str:
    a, b = (escape(name, 40) for name in layout.names)
    style = "padding:6px 10px;text-align:left;font-weight:600;white-space:nowrap"
    header = f'<th style="{style}">feature</th><th style="{style};width:36%">description</th>'
    titles = (f"in {a}", f"in {b}", "difference, with interval", "q")
    header += "".join(f'<th style="{style}">{text}</th>' for text in titles)
    rows = shown.to_dict("records")
    body = "".join(_row(row, examples.get(int(row["feature"]), {}), layout) for row in rows)
    return f'<table style="{TABLE};width:100%"><tr style="{TABLE_ROW}">{header}</tr>{body}</table>'


def _row(row: dict[str, Any], sides: Sides, layout: _Layout) -> str:
    cells = (
        f"<b>{int(row['feature'])}</b>",
        escape(row["description"], 120),
        _share(float(row["freq_a"]), _IN_A),
        _share(float(row["freq_b"]), _IN_B),
        _interval(row, layout.reach),
        f'<span style="white-space:nowrap">{_small(float(row["q_value"]))}</span>',
    )
    html = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    if folded := examples_html(sides, layout.names, layout.n_examples, layout.max_tokens):
        style = "padding:0 10px 8px;text-align:left"
        html += f'</tr><tr style="{TABLE_ROW}"><td></td><td colspan="5" style="{style}">{folded}</td>'
    return f'<tr style="{TABLE_ROW}">{html}</tr>'


def _share(share: float, colour: tuple[int, int, int]) -> str:
    """A frequency as text with a bar under it; a dash where it is not known."""
    if not np.isfinite(share):
        return "–"
    box = f"width:84px;height:6px;background:{rgba((128, 128, 128), 0.2)}"
    bar = f"height:6px;width:{100 * share:.1f}%;background:{rgba(colour, 1.0)}"
    text = f'<div style="white-space:nowrap">{100 * share:.1f}%</div>'
    return f'{text}<div style="{box}"><div style="{bar}"></div></div>'


def _interval(row: dict[str, Any], reach: float) -> str:
    """The difference as text, and its interval on an axis from -reach to reach with a line at zero."""
    difference, low, high = (float(row[key]) for key in ("difference", "ci_low", "ci_high"))
    text = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−").replace("+nan", "–")
    text = f'<div style="white-space:nowrap">{text}</div>'
    if not np.isfinite([low, high]).all():
        return text
    left, width = 50 + 50 * low / reach, max(50 * (high - low) / reach, 1.5)
    colour = _IN_A if row["freq_a"] > row["freq_b"] else _IN_B
    grey, clear = rgba((128, 128, 128), 0.9), rgba((128, 128, 128), 0.2)
    axis = f"linear-gradient(90deg,{clear} 49.5%,{grey} 49.5%,{grey} 50.5%,{clear} 50.5%)"
    box = f"width:170px;height:6px;overflow:hidden;background-image:{axis}"
    bar = f"height:6px;margin-left:{left:.1f}%;width:{width:.1f}%;background:{rgba(colour, 1.0)}"
    return f'{text}<div style="{box}"><div style="{bar}"></div></div>'


def _small(value: float) -> str:
    """A p- or q-value; a dash where it is not known."""
    if not np.isfinite(value):
        return "–"
    if value >= 0.001 or value == 0:
        return f"{value:.3f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e-", "e−")


def examples_html(sides: Sides, names: tuple[str, str], n: int, max_tokens: int) -> str:
    """Texts of both sides next to each other, folded, on one colour scale; empty if there are none.

    Args:
        sides: `{"a": rows, "b": rows}`, rows as for `snippets`.
        names: headings of the two sides.
        n: most texts a side.
        max_tokens: tokens shown of each.
    """
    chosen = [sides.get(side, [])[:n] for side in ("a", "b")]
    rows = [row for side in chosen for row in side]
    if not rows:
        return ""
    scale = Scale.of(*(check_row(row["tokens"], row["values"]) for row in rows))
    columns = []
    for name, side in zip(names, chosen, strict=True):
        body = "<i>no text fires</i>"
        if side:
            body = snippets(side, scale=scale, max_tokens=max_tokens)
        head = f'<div style="font-weight:600">{escape(name, 40)}</div>'
        columns.append(f'<div style="flex:1 1 300px;min-width:0">{head}{body}</div>')
    table = f'<div style="display:flex;flex-wrap:wrap;gap:4px 24px">{"".join(columns)}</div>'
    return f"<details><summary>texts where it fires ({len(rows)})</summary>{table}</details>"


def forest(
    frame: "pandas.DataFrame",
    ax: "matplotlib.axes.Axes | None" = None,
    top: int = 20,
    names: tuple[str, str] = ("A", "B"),
) -> "matplotlib.axes.Axes":
    """Draw the first `top` differences with their intervals, one line a feature. Returns the axes.

    Circles are more frequent in the first set, squares in the second.

    Raises:
        InputError: a column is missing.
    """
    import matplotlib.pyplot as plt

    check_columns(frame)
    shown = frame.head(top)
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1 + 0.28 * max(len(shown), 1)), layout="constrained")
    at = np.arange(len(shown))
    difference = shown["difference"].to_numpy(dtype=float)
    spread = np.abs(shown[["ci_low", "ci_high"]].to_numpy(dtype=float).T - difference)
    in_a = (shown["freq_a"] > shown["freq_b"]).to_numpy()
    for rows, style in zip((in_a, ~in_a), _styles(names), strict=True):
        if rows.any():
            ax.errorbar(difference[rows], at[rows], xerr=spread[:, rows], ms=5, capsize=2, linestyle="none", **style)
    ax.axvline(0, color="0.5", linewidth=0.8)
    labels = [f"{row.feature} · {_short(row.description)}" for row in shown.itertuples()]
    ax.set_yticks(at, labels, fontsize=9, parse_math=False)
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.set_xlabel("difference in the share of texts, with interval")
    ax.spines[["top", "right"]].set_visible(False)
    if len(shown):
        ax.legend(frameon=False, fontsize=9)
    return ax


def _styles(names: tuple[str, str]) -> list[dict[str, Any]]:
    """Colour, marker and legend of the two sets; the marker tells them apart without colour."""
    pairs = zip((_IN_A, _IN_B), "os", names, strict=True)
    return [
        {"color": [part / 255 for part in colour], "marker": marker, "label": f"more in {plain(name)}"}
        for colour, marker, name in pairs
    ]


def _short(description: object, limit: int = 44) -> str:
    text = " ".join(str(description).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def scatter_freq(
    frame: "pandas.DataFrame",
    ax: "matplotlib.axes.Axes | None" = None,
    names: tuple[str, str] = ("A", "B"),
) -> "matplotlib.axes.Axes":
    """Draw every feature by its share of texts in both sets; coloured where q < 0.05. Returns the axes.

    Raises:
        InputError: a column is missing.
    """
    import matplotlib.pyplot as plt

    check_columns(frame)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    a, b = (frame[column].to_numpy(dtype=float) for column in ("freq_a", "freq_b"))
    sure = frame["q_value"].to_numpy(dtype=float) < 0.05
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    unsure: dict[str, Any] = {
        "facecolors": "none",
        "edgecolors": "0.6",
        "linewidths": 0.7,
        "label": "q ≥ 0.05",
    }
    ax.scatter(a[~sure], b[~sure], s=10, **unsure)
    for rows, style in zip((sure & (a > b), sure & (a <= b)), _styles(names), strict=True):
        ax.scatter(a[rows], b[rows], s=18, **style)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_xlabel(f"share of texts in {plain(names[0])}")
    ax.set_ylabel(f"share of texts in {plain(names[1])}")
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return ax

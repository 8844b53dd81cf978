"""`ReasoningTimeline`: a chain of thought step by step, with what probes say of each step and what fires in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.curves import plain
from sparselens.views.html import (
    BLUE,
    LINE,
    TABLE,
    TABLE_ROW,
    VERMILLION,
    Scale,
    as_array,
    check_row,
    escape,
    fragment,
    heading,
    number,
    rgba,
    strip,
)

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    import sparselens.views.reasoning_widget

Feature = tuple[int, str, float]

_CELL = f"padding:4px 12px 4px 0;text-align:left;vertical-align:top;border-top:1px solid {LINE}"
_NOTE = "font-size:12px;opacity:.7"
_BAR = 72  # pixels of a probability of 1
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# (steps, characters of each, with tokens and features) to try in turn until the size allows
_SIZES = ((1000, 2000, True), (300, 600, True), (100, 400, True), (100, 200, False), (30, 200, False), (8, 100, False))


def timeline_view(
    steps: Sequence[str],
    scores: Mapping[str, Any] | None = None,
    *,
    ranges: Mapping[str, tuple[Any, Any]] | None = None,
    labels: Sequence[float | None] | None = None,
    verdict: bool | None = None,
    features: Sequence[Sequence[Feature]] | None = None,
    tokens: Sequence[tuple[Sequence[str], Any]] | None = None,
    threshold: float = 0.5,
    question: str = "",
    title: str | None = None,
    other: "ReasoningTimeline | None" = None,
) -> "ReasoningTimeline":
    """Show a chain of thought, a row a step.

    Args:
        steps: the text of each step.
        scores: probe -> the probability that each step is right, `[steps]`.
        ranges: probe -> lowest and highest value of the score, `[steps]` each.
        labels: for each step 1 (right), 0 (wrong) or None (not known).
        verdict: whether the final answer is right.
        features: for each step what fires in it, strongest first, as `(feature, description, value)`.
        tokens: for each step its tokens and a number for each, such as the value of a feature.
        threshold: a step whose score is below it is doubted.
        question: what was asked.
        title: a heading.
        other: another chain to lay beside this one, step by step.

    Raises:
        InputError: no steps, or something that does not fit them. NotFiniteError: a score is NaN or infinite.
    """
    n = len(steps)
    if not n:
        raise InputError("there are no steps to show.")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold} must lie between 0 and 1.")
    given = {str(name): _column(values, n, f"scores[{name!r}]") for name, values in (scores or {}).items()}
    bounds = {}
    for name, pair in (ranges or {}).items():
        if name not in given:
            raise InputError(f"ranges has {name!r}, which has no scores.{closest(name, given)}")
        bounds[name] = [_column(values, n, f"ranges[{name!r}]") for values in pair]
    for name, thing in (("labels", labels), ("features", features), ("tokens", tokens)):
        if thing is not None and len(thing) != n:
            raise InputError(f"{name} has {len(thing)} entries, and there are {n} steps.")
    table = np.stack([np.stack([column, *bounds.get(name, (column, column))]) for name, column in given.items()]) \
        if given else np.zeros((0, 3, n), dtype=np.float32)
    known: list[float | None] = [None] * n if labels is None else list(labels)
    return ReasoningTimeline(
        [clean(step) for step in steps], list(given), table, known, verdict,
        [[(int(f), str(text), float(value)) for f, text, value in row] for row in features or [[]] * n],
        None if tokens is None else [(list(row), check_row(row, values)) for row, values in tokens],
        threshold, question, title, other,
    )


def _column(values: Any, n: int, name: str) -> np.ndarray:
    array = as_array(values)
    if array.shape != (n,):
        raise InputError(f"{name} has shape {list(array.shape)}, and there are {n} steps.")
    return array


@dataclass(frozen=True, eq=False, repr=False)
class ReasoningTimeline(View):
    """A chain of thought to read step by step; made by `timeline_view`.

    Attributes:
        steps: the texts.
        probes: names of the scores.
        scores: float32 `[probes, 3, steps]`: score, lowest, highest.
        labels, verdict, features, tokens, threshold, question, title, other: as given to `timeline_view`.
    """

    steps: list[str]
    probes: list[str]
    scores: np.ndarray
    labels: list[float | None]
    verdict: bool | None
    features: list[list[Feature]]
    tokens: list[tuple[list[str], np.ndarray]] | None
    threshold: float
    question: str
    title: str | None
    other: "ReasoningTimeline | None"

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        said = {True: ", answer right", False: ", answer wrong", None: ""}[self.verdict]
        return f"ReasoningTimeline({len(self)} steps, {len(self.probes)} probes{said})"

    def first_below(self, probe: str | None = None, threshold: float | None = None) -> int:
        """Return the first step whose score is below the threshold, -1 if there is none.

        Args:
            probe: which score; the first if None.
            threshold: in place of the view's.
        """
        if probe is not None and probe not in self.probes:
            raise InputError(f"no score is called {probe!r}; there are {', '.join(self.probes) or 'none'}."
                             f"{closest(probe, self.probes)}")
        if not self.probes:
            return -1
        row = self.scores[0 if probe is None else self.probes.index(probe), 0]
        below = row < (self.threshold if threshold is None else threshold)
        return int(below.argmax()) if below.any() else -1

    def summary(self) -> list[str]:
        """Say in sentences what the chain and the first score come to."""
        verdict = {True: "The final answer is right. ", False: "The final answer is wrong. ", None: ""}[self.verdict]
        out = [f"{verdict}{len(self)} step{'s' if len(self) > 1 else ''}."]
        for probe in self.probes:
            step = self.first_below(probe)
            place = f"first below {self.threshold:g} at step {step + 1}"
            out.append(f"{probe}: {place if step >= 0 else f'never below {self.threshold:g}'}.")
        return out

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return a table with a row a step; a step opens to its tokens and features."""
        for most, characters, whole in _SIZES:
            html = self._html(most, characters, whole)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, most: int, characters: int, whole: bool) -> str:
        shown = min(most, len(self))
        head = heading(self.title, self.summary()[:6])
        if self.question:
            head += f'<div style="margin:6px 0">{escape(self.question, characters)}</div>'
        names = "".join(f'<th style="{_CELL}">{escape(name, 40)}</th>' for name in self.probes)
        beside = f'<th style="{_CELL}">the other chain</th>' if self.other else ""
        top = f'<tr style="{TABLE_ROW}"><th style="{_CELL}">step</th><th style="{_CELL}">label</th>' \
              f'<th style="{_CELL}">text</th>{names}{beside}</tr>'
        scale = Scale.of(*(values for _, values in self.tokens or []))
        firsts = [self.first_below(name) for name in self.probes]
        rows = "".join(self._row(step, characters, firsts, scale if whole else None) for step in range(shown))
        left = len(self) - shown
        more = f'<div style="{_NOTE}">… {left:,} more; see to_frame()</div>' if left else ""
        return fragment(f'{head}<table style="{TABLE}">{top}{rows}</table>{more}', 1100)

    def _row(self, step: int, characters: int, firsts: list[int], scale: Scale | None) -> str:
        cells = [f"{step + 1}", _mark(self.labels[step]), self._text(step, characters, scale)]
        for k, first in enumerate(firsts):
            value, low, high = self.scores[k, :, step].tolist()
            cells.append(_score(value, low, high, self.threshold, step == first))
        if self.other:
            cells.append(self.other._beside(step, characters))
        return f'<tr style="{TABLE_ROW}">' + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"

    def _text(self, step: int, characters: int, scale: Scale | None) -> str:
        """The text of a step; with a scale it opens to its tokens and features."""
        text = escape(self.steps[step], characters).replace("\n", "<br>")
        if scale is None:
            return text
        chips = ", ".join(f"{feature} {escape(said, 40)} ({number(value)})".replace("  ", " ")
                          for feature, said, value in self.features[step][:6])
        inner = f'<div style="{_NOTE}">fires: {chips}</div>' if chips else ""
        if self.tokens is not None:
            tokens, values = self.tokens[step]
            inner += strip(tokens, values, scale=scale, max_tokens=160)
        return f"<details><summary>{text}</summary>{inner}</details>" if inner else text

    def _beside(self, step: int, characters: int) -> str:
        if step >= len(self):
            return ""
        said = f" {self.scores[0, 0, step]:.2f}" if self.probes else ""
        return f"{_mark(self.labels[step])}{said} {escape(self.steps[step], characters)}"

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the scores along the steps, with their ranges; steps that are wrong are shaded."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(min(4 + 0.35 * len(self), 12), 3.2), layout="constrained")
        at = np.arange(1, len(self) + 1)
        for step, label in enumerate(self.labels, start=1):
            if label is not None and label < 0.5:
                axes.axvspan(step - 0.5, step + 0.5, color="#D55E00", alpha=0.15, linewidth=0)
        for k, name in enumerate(self.probes):
            colour = _COLOURS[k % len(_COLOURS)]
            axes.fill_between(at, self.scores[k, 1], self.scores[k, 2], color=colour, alpha=0.2, linewidth=0)
            axes.plot(at, self.scores[k, 0], "o-", color=colour, label=plain(name), markersize=4)
        if self.other is not None and self.other.probes:
            beside, said = self.other.scores[0, 0], "the other chain"
            axes.plot(np.arange(1, len(beside) + 1), beside, "s--", color="#777777", label=said, markersize=4)
        axes.axhline(self.threshold, color="#777777", linewidth=1, linestyle=":")
        axes.set(xlabel="step", ylabel="probability of being right", ylim=(-0.02, 1.02), xlim=(0.5, len(self) + 0.5))
        axes.set_title(plain(clean(self.title or "", 80)), loc="left", fontsize=10)
        if self.probes:
            axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        plt.close(figure)  # the caller shows it; an open figure would be shown twice in a notebook
        return figure

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step: `step` (from 0), `text`, `label`, `features`, each score with its `_low` and `_high`."""
        import pandas as pd

        frame = pd.DataFrame({
            "step": range(len(self)), "text": self.steps, "label": pd.array(self.labels, dtype="Float64"),
            "features": [[feature for feature, _, _ in row] for row in self.features]})
        for k, name in enumerate(self.probes):
            frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = self.scores[k]
        return frame

    def _widget(self) -> "sparselens.views.reasoning_widget.TimelineWidget":
        from sparselens.views.reasoning_widget import TimelineWidget

        return TimelineWidget(self)


def _mark(label: float | None) -> str:
    if label is None:
        return "–"
    if label >= 0.5:
        return '<span style="white-space:nowrap">✓ right</span>'
    return f'<span style="white-space:nowrap;color:{rgba(VERMILLION, 1.0)};font-weight:600">✗ wrong</span>'


def _score(value: float, low: float, high: float, threshold: float, first: bool) -> str:
    """A number, a bar, its range, and a sign at the first score below the threshold."""
    colour = VERMILLION if value < threshold else BLUE
    width = round(_BAR * min(max(value, 0), 1))
    bar = (f'<div style="width:{_BAR}px;height:6px;background:rgba(128,128,128,.2)">'
           f'<div style="width:{width}px;height:6px;background:{rgba(colour, 1.0)}"></div></div>')
    spread = f' <span style="{_NOTE}">{low:.2f}–{high:.2f}</span>' if high > low else ""
    sign = f'<div style="{_NOTE}">◀ first below {threshold:g}</div>' if first else ""
    return f'<div style="white-space:nowrap">{value:.2f}{spread}</div>{bar}{sign}'

"""`InterventionPanel`: set features of a dictionary by hand, and read the answer beside the untouched model's."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.html import LINE, TABLE, TABLE_ROW, VERMILLION, escape, fragment, heading, number, rgba
from sparselens.views.strip_figure import drawable

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    from sparselens.views.panel_widget import PanelWidget

Values = Mapping[int, float | int]
#: `answer(values, prompt, say)`: lets a model answer with features set, none for `{}`, and says it by `say(piece)`.
Answer = Callable[[Values, str, Callable[[str], None]], None]
#: `measure(values, prompt, untouched, steered)`: numbers about two answers, as `InterventionPanel.frame`.
Measure = Callable[[Values, str, str, str], "pandas.DataFrame"]

MOST_KNOBS = 8
COLUMNS = ("side", "position", "token", "logprob", "kl")
_CELL = f"padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-top:1px solid {LINE}"
_MONO = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;white-space:pre-wrap;overflow-wrap:break-word"
_NEW = f"border-bottom:2px solid {rgba(VERMILLION, 1.0)}"


class Knob(NamedTuple):
    """A feature to set.

    Attributes:
        feature: its number.
        label: what it is about.
        low, high: the ends of its slider.
        value: what it is set to; None leaves it to the model.
    """

    feature: int
    label: str = ""
    low: float = 0.0
    high: float = 10.0
    value: float | None = None


def panel_view(
    knobs: Sequence[Knob],
    prompt: str,
    *,
    answer: Answer | None = None,
    measure: Measure | None = None,
    code: Callable[[Values, str], str] = lambda values, prompt: "",
    find: Callable[[int], Knob] | None = None,
    title: str | None = None,
) -> "InterventionPanel":
    """Show features that can be set, and what a model answers then.

    Args:
        knobs: the features.
        prompt: what the model is asked.
        answer: lets the model answer. What `say` raises ends the answer and must be let through.
        measure: numbers about both answers, a row a token.
        code: the call that does the same, as source text.
        find: the knob of a feature that is chosen in another view; raises `InputError` where there is none.
        title: a heading.

    Raises:
        InputError: no knob, too many, one twice, or a range that is none.
    """
    known = [int(knob.feature) for knob in knobs]
    if not 0 < len(known) <= MOST_KNOBS:
        raise InputError(f"{len(known)} features to set: give 1 to {MOST_KNOBS}.")
    if len(set(known)) < len(known):
        raise InputError(f"feature {next(f for f in known if known.count(f) > 1)} is listed more than once.")
    for knob in knobs:
        if not -math.inf < knob.low < knob.high < math.inf:
            raise InputError(f"the range of feature {knob.feature} is {knob.low} to {knob.high}: it must rise.")
        if knob.value is not None and not math.isfinite(knob.value):
            raise InputError(f"feature {knob.feature} is set to {knob.value}: it must be a number, or None.")
    return InterventionPanel(tuple(knobs), prompt, answer, measure, code, find, title)


@dataclass(frozen=True, eq=False, repr=False)
class InterventionPanel(View):
    """Features to set, and the last answers; made by `panel_view` or `sparselens.intervention_panel`.

    Attributes:
        knobs: the features with their values.
        prompt: what the model is asked.
        answer, measure, code, find: as for `panel_view`.
        title: a heading, or None.
        untouched, steered: the answers, empty before the first run.
        frame: a row a token of both answers: `side` ("untouched" or "steered"), `position`, `token`, `logprob` (nats,
            by the untouched model), `kl` (nats, from the untouched to the steered model; NaN on the steered answer).
    """

    knobs: tuple[Knob, ...]
    prompt: str
    answer: Answer | None = None
    measure: Measure | None = None
    code: Callable[[Values, str], str] = lambda values, prompt: ""
    find: Callable[[int], Knob] | None = None
    title: str | None = None
    untouched: str = ""
    steered: str = ""
    frame: "pandas.DataFrame | None" = None

    def __repr__(self) -> str:
        words = ", ".join(f"{k.feature}: {'free' if k.value is None else number(k.value)}" for k in self.knobs)
        return f"InterventionPanel({words})"

    @property
    def values(self) -> dict[int, float]:
        """What is set, by feature."""
        return {knob.feature: knob.value for knob in self.knobs if knob.value is not None}

    def set(self, values: Values) -> "InterventionPanel":
        """Return the panel with other values; features that are not named are left to the model.

        Raises:
            InputError: a feature that has no knob and for which none can be found.
        """
        knobs = list(self.knobs)
        for feature in values:
            if feature not in [knob.feature for knob in knobs]:
                knobs.append(self.knob(feature))
        knobs = [knob._replace(value=None if knob.feature not in values else float(values[knob.feature]))
                 for knob in knobs]
        panel_view(knobs, self.prompt)  # checks
        return replace(self, knobs=tuple(knobs), untouched="", steered="", frame=None)

    def knob(self, feature: int) -> Knob:
        """The knob of a feature that is not here yet.

        Raises:
            InputError: there is none.
        """
        if self.find is None:
            own = ", ".join(str(knob.feature) for knob in self.knobs)
            raise InputError(f"feature {feature} has no knob here; those of {own} have.")
        return self.find(int(feature))

    def run(self, values: Values | None = None, prompt: str | None = None) -> "InterventionPanel":
        """Let the model answer twice, untouched and with the features set, and return the panel with both answers.

        Args:
            values: value by feature; by default those that are set.
            prompt: by default the panel's.

        Raises:
            InputError: no model is at hand.
        """
        if self.answer is None:
            raise InputError("there is no model to answer: make the panel with one.")
        panel = replace(self if values is None else self.set(values), prompt=self.prompt if prompt is None else prompt)
        texts = []
        for chosen in ({}, panel.values):
            said: list[str] = []
            self.answer(chosen, panel.prompt, said.append)
            texts.append("".join(said))
        return panel.answered(*texts)

    def answered(self, untouched: str, steered: str) -> "InterventionPanel":
        """Return the panel with two answers, and the numbers about them."""
        frame = None if self.measure is None else self.measure(self.values, self.prompt, untouched, steered)
        return replace(self, untouched=untouched, steered=steered, frame=frame)

    @property
    def numbers(self) -> list[tuple[str, float, float]]:
        """Name, and the number for the untouched and for the steered answer (NaN where it has no meaning)."""
        if self.frame is None:
            return []
        sides = [self.frame[self.frame["side"] == side] for side in ("untouched", "steered")]
        a, b = (math.exp(-part["logprob"].mean()) if len(part) else math.nan for part in sides)
        kl = sides[0]["kl"].mean() if len(sides[0]) else math.nan
        return [("tokens", float(len(sides[0])), float(len(sides[1]))),
                ("perplexity to the untouched model", a, b),
                ("KL to the steered model, nats a token", float(kl), math.nan)]

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the values, both answers with the words in which they differ, and the code that does it."""
        for most in (20_000, 4_000, 800, 200):
            html = self._html(most)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, most: int) -> str:
        rows = [f'<td style="{_CELL}">{knob.feature}</td><td style="{_CELL}">{escape(knob.label, 200)}</td>'
                f'<td style="{_CELL}">{"left to the model" if knob.value is None else number(knob.value)}</td>'
                for knob in self.knobs]
        head = "".join(f'<th style="padding:3px 14px 3px 0;text-align:left">{name}</th>'
                       for name in ("feature", "about", "set to"))
        table = "".join(f'<tr style="{TABLE_ROW}">{row}</tr>' for row in (head, *rows))
        parts = [heading(self.title), f'<table style="{TABLE}">{table}</table>',
                 f'<div style="margin:6px 0"><b>prompt</b> {escape(self.prompt, most)}</div>']
        if self.untouched or self.steered:
            parts.append(self._answers(most))
        else:
            parts.append("<i>not answered yet: call .run() or .explore()</i>")
        if source := self.code(self.values, self.prompt):
            parts.append(f'<div style="{_MONO};margin:6px 0;border-top:1px solid {LINE}">{escape(source, most)}</div>')
        return fragment("".join(parts), width=1080)

    def _answers(self, most: int) -> str:
        columns = []
        marked = zip(differing(self.untouched[:most], self.steered[:most]), ("untouched", "steered"), strict=True)
        for words, name in marked:
            text = "".join(_marked(word) if new else escape(word) for word, new in words)
            columns.append(f'<div style="flex:1 1 300px;min-width:0"><b>{name}</b>'
                           f'<div style="{_MONO}">{text or "∅"}</div></div>')
        lines = "".join(f'<tr style="{TABLE_ROW}"><td style="{_CELL}">{name}</td><td style="{_CELL}">{_shown(a)}</td>'
                        f'<td style="{_CELL}">{_shown(b)}</td></tr>' for name, a, b in self.numbers)
        table = f'<table style="{TABLE}">{lines}</table>' if lines else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:10px 28px">{"".join(columns)}</div>{table}'

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the log-probability of each token of both answers, by the untouched model."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        ax = figure.subplots()
        for side, style in (("untouched", "-"), ("steered", "--")):
            if self.frame is not None and (self.frame["side"] == side).any():
                part = self.frame[self.frame["side"] == side]
                ax.plot(part["position"], part["logprob"], style, label=side, marker=".")
        if ax.lines:
            ax.legend(frameon=False)
        else:
            ax.text(0.5, 0.5, "not answered yet", ha="center", transform=ax.transAxes)
        ax.set(xlabel="token of the answer", ylabel="log-probability, nats")
        ax.set_title(drawable(clean(self.title or self.prompt, 100)), loc="left", fontsize=10, parse_math=False)
        ax.spines[["top", "right"]].set_visible(False)
        return figure

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a token of both answers; without rows before the first run."""
        import pandas as pd

        return pd.DataFrame(columns=list(COLUMNS)) if self.frame is None else self.frame.copy()

    def _widget(self) -> "PanelWidget":
        from sparselens.views.panel_widget import PanelWidget

        return PanelWidget(self)

    def portable(self) -> "PanelWidget":
        """Return the widget with the last answers, and without a model."""
        return replace(self, answer=None, find=None)._widget()


def differing(a: str, b: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The words of two texts, with the space before each, and whether the word is not in the other in this order."""
    parts = [re.findall(r"\s*\S+|\s+$", text) for text in (a, b)]
    bare = [[word.strip() for word in words] for words in parts]
    new = [[True] * len(words) for words in parts]
    for i, j, n in difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False).get_matching_blocks():
        new[0][i : i + n] = new[1][j : j + n] = [False] * n
    left, right = (list(zip(words, marks, strict=True)) for words, marks in zip(parts, new, strict=True))
    return left, right


def _marked(word: str) -> str:
    bare = word.lstrip()
    return f'{word[: len(word) - len(bare)]}<span style="{_NEW}">{escape(bare)}</span>'


def _shown(value: float) -> str:
    return number(value) if math.isfinite(value) else "–"

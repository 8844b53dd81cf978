"""Watch a chain of thought while the live model writes it: each finished step is encoded and probed as it appears."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.reasoning.steps import split_steps

if TYPE_CHECKING:
    import pandas

    from sparselens.models.live import LiveModel
    from sparselens.reasoning.ssae import StepSAE

ON_LOW = ("mark", "stop")


@dataclass
class WatchedStep:
    """One finished step: its text, its place in the chain, its strongest features, its score, whether that is low."""

    text: str
    start: int
    end: int
    top: list[tuple[int, float]]
    score: float | None
    low: bool


@dataclass
class Watched:
    """What `watch_steps` gives.

    Attributes:
        question: what was asked.
        text: all that was written.
        steps: the steps, in order.
        ended: "end" (the model ended, or reached the limit), "low" (stopped at a low score) or "interrupt".
        threshold: below which a score is low.
    """

    question: str
    threshold: float
    text: str = ""
    steps: list[WatchedStep] = field(default_factory=list)
    ended: str = "end"

    @property
    def first_low(self) -> int | None:
        """The first step whose score is low, if any."""
        return next((i for i, step in enumerate(self.steps) if step.low), None)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step: `step`, `text`, `score`, `low`, `top`."""
        import pandas as pd

        rows = [(i, s.text, s.score, s.low, [f for f, _ in s.top]) for i, s in enumerate(self.steps)]
        return pd.DataFrame(rows, columns=["step", "text", "score", "low", "top"])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[tuple[Any, ...]] = [("step", "text", "score", "features")]
        for i, s in enumerate(self.steps):
            score = "" if s.score is None else f"{s.score:.2f}{' below the line' if s.low else ''}"
            rows.append((str(i + 1), s.text, score, ", ".join(str(f) for f, _ in s.top)))
        return report_html(self.question.strip()[-200:], [*rows, ("ended by", self.ended)])


class _Halt(Exception):
    """Ends the writing at a low score."""


def watch_steps(
    model: "LiveModel",
    question: Any,
    ssae: "StepSAE",
    probe: Any = None,
    *,
    threshold: float = 0.5,
    on_low: str = "mark",
    how: str | Callable[[str], Any] = "lines",
    max_new_tokens: int = 256,
    on_step: Callable[[WatchedStep], None] | None = None,
    live: bool = True,
    **sampling: Any,
) -> Watched:
    """Let the model answer, and read every step as soon as the next one begins.

    The writing happens under whatever is attached to the model; the steps are read by the bare model. An interrupt by
    the user ends the writing, and what there is so far is returned. The model is as before in every case.

    Args:
        model: the live model that writes; any that has the tokenizer you like. The one of `ssae` reads.
        question: a text, or a chat (list of messages). The steps' context is the text of its last message.
        ssae: encodes the steps.
        probe: says how good a step is, from its code: something with `predict_proba(codes [1, n])`, whose last column
            counts, or a function of the code `[n]`. None: no scores.
        threshold: scores below are low.
        on_low: "mark" them only, or "stop" writing.
        how: the rule of `split_steps`; for "lines" the answer's line stays a step of its own.
        max_new_tokens: most tokens to write.
        on_step: called with each finished step.
        live: in a notebook, show the table while it grows.
        sampling: `do_sample`, `temperature`, `top_p`, `seed` of `LiveModel.generate`.

    Raises:
        InputError: a blank question, an unknown `on_low`, or a probe that cannot be asked.
    """
    if on_low not in ON_LOW:
        raise InputError(f"on_low={on_low!r} is unknown; valid are {', '.join(ON_LOW)}.{closest(str(on_low), ON_LOW)}")
    asked = question if isinstance(question, str) else question[-1]["content"]
    if not asked.strip():
        raise InputError("the question is blank: there is nothing to answer.")
    watched = Watched(asked, threshold)
    reader = _Reader(watched, ssae, probe, on_low, how, on_step, _display() if live else None)
    try:
        model.generate(question, max_new_tokens, on_text=reader.hear, **sampling)
        reader.read(whole=True)
    except _Halt:
        watched.ended = "low"
    except KeyboardInterrupt:
        watched.ended = "interrupt"
    return watched


@dataclass
class _Reader:
    watched: Watched
    ssae: "StepSAE"
    probe: Any
    on_low: str
    how: Any
    on_step: Callable[[WatchedStep], None] | None
    show: Callable[[Watched], None] | None

    def hear(self, piece: str) -> None:
        self.watched.text += piece
        if "\n" in piece or not isinstance(self.how, str) or self.how == "math":
            self.read(whole=False)

    def read(self, whole: bool) -> None:
        """Read the steps that are finished: all but the last while the text still grows."""
        steps = _split(self.watched.text, self.how)
        # a line that ends is finished even when nothing follows it yet
        done = len(steps) if whole or (self.how != "math" and self.watched.text.endswith("\n")) else len(steps) - 1
        for text, start, end in steps[len(self.watched.steps) : done]:
            code = self.ssae.transform([(f"{self.watched.question}\n{self.watched.text[:start]}", text)], long="cut")
            score = None if self.probe is None else _ask(self.probe, code.z.numpy())
            low = score is not None and score < self.watched.threshold
            step = WatchedStep(text, start, end, code.top(0), score, low)
            self.watched.steps.append(step)
            if self.on_step is not None:
                self.on_step(step)
            if self.show is not None:
                self.show(self.watched)
            if low and self.on_low == "stop":
                raise _Halt


def _split(text: str, how: Any) -> list[tuple[str, int, int]]:
    """Steps of a text under way; a line is a step from the start, so that none changes once it was read."""
    if how == "lines":
        steps = split_steps(text if text.count("\n") else text + "\n", "code")
        return [(t.strip(), start + len(t) - len(t.lstrip()), end) for t, start, end in steps]
    return list(split_steps(text, how))


def _ask(probe: Any, code: np.ndarray) -> float:
    if hasattr(probe, "predict_proba"):
        return float(np.asarray(probe.predict_proba(code)).reshape(1, -1)[0, -1])
    if callable(probe):
        return float(probe(code[0]))
    raise InputError(f"a {type(probe).__name__} cannot be asked: give something with predict_proba, or a function.")


def _display() -> Callable[[Watched], None] | None:
    """Shows a table under the cell and replaces it as it grows; None outside a notebook."""
    from sparselens.views.curves import _in_notebook

    if not _in_notebook():
        return None
    from IPython.display import HTML, display

    handle: list[Any] = []

    def show(watched: Watched) -> None:
        table = HTML(watched._repr_html_())
        if handle:
            handle[0].update(table)
        else:
            handle.append(display(table, display_id=True))

    return show

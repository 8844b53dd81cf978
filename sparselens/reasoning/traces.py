"""Chains of thought as a small table: problem, steps with their places, labels, verdict, model."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.files import write_whole
from sparselens.reasoning.arithmetic import check_arithmetic
from sparselens.reasoning.steps import Span, Steps, split_steps

if TYPE_CHECKING:
    import pandas

Label = float | None  # 1 right, 0 wrong, None not known; numbers between are soft labels


@dataclass(frozen=True)
class Trace:
    """One chain of thought.

    Attributes:
        problem: which problem it answers; chains of one problem share it, and are never split between train and test.
        text: the chain, without the question.
        spans: characters `[start, end)` of each step in `text`.
        labels: for each step 1 (right), 0 (wrong), a number between, or None (not known).
        question: what was asked; may be empty.
        verdict: whether the final answer is right, or None.
        model: who wrote it.
        kind: what was planted in it, if anything.
    """

    problem: str
    text: str
    spans: list[Span]
    labels: list[Label]
    question: str = ""
    verdict: bool | None = None
    model: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.spans):
            raise InputError(f"problem {self.problem!r}: {len(self.spans)} steps but {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def steps(self) -> Steps:
        """The steps with their places in `text`."""
        return Steps(self.text, self.spans)

    @property
    def prompt(self) -> str:
        """What a model reads before the chain: the question and an end of line; empty without a question."""
        return self.question + "\n" if self.question else ""

    def context(self, step: int) -> str:
        """What stands before a step: the prompt and the chain up to it."""
        return self.prompt + self.text[: self.spans[step][0]]

    @property
    def first_error(self) -> int | None:
        """The first step whose label is below 0.5, -1 if every step is known to be right, None if neither is known."""
        for step, label in enumerate(self.labels):
            if label is None:
                return None
            if label < 0.5:
                return step
        return -1


@dataclass(frozen=True)
class Traces(Sequence[Trace]):
    """Chains of thought, in order; made by `read_traces` or by hand from `Trace`s.

    Attributes:
        items: the chains.
    """

    items: list[Trace]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "Traces": ...
    def __getitem__(self, index: int | slice) -> "Trace | Traces":
        return Traces(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.items)

    def __add__(self, other: "Traces") -> "Traces":
        return Traces([*self.items, *other.items])

    def __repr__(self) -> str:
        known = sum(trace.verdict is not None for trace in self)
        return (f"Traces({len(self):,} chains of {len(set(self.problems)):,} problems, {self.n_steps:,} steps, "
                f"{known:,} with a verdict)")

    @property
    def n_steps(self) -> int:
        """Steps of all chains together."""
        return sum(len(trace) for trace in self)

    @property
    def problems(self) -> list[str]:
        """The problem of each chain."""
        return [trace.problem for trace in self]

    @property
    def verdicts(self) -> list[bool | None]:
        """The verdict of each chain."""
        return [trace.verdict for trace in self]

    @property
    def models(self) -> list[str]:
        """Who wrote chains, each name once, in order of appearance."""
        return list(dict.fromkeys(trace.model for trace in self))

    def by(self, *models: str) -> "Traces":
        """The chains of some models.

        Raises:
            InputError: a model that wrote none.
        """
        for model in models:
            if model not in self.models:
                raise InputError(f"no chain is by {model!r}; they are by {', '.join(map(repr, self.models))}."
                                 f"{closest(model, self.models)}")
        return self.where(lambda trace: trace.model in models)

    def where(self, keep: Callable[[Trace], bool]) -> "Traces":
        """The chains for which a function says True."""
        return Traces([trace for trace in self if keep(trace)])

    def step_labels(self) -> np.ndarray:
        """Labels of all steps, float64 `[n_steps]`, NaN where not known."""
        return np.array([np.nan if y is None else y for trace in self for y in trace.labels], dtype=np.float64)

    def step_verdicts(self) -> np.ndarray:
        """The verdict of each step's chain, float64 `[n_steps]`, NaN where not known."""
        return np.array([np.nan if t.verdict is None else t.verdict for t in self for _ in t.spans], dtype=np.float64)

    def step_problems(self) -> np.ndarray:
        """The problem of each step, object `[n_steps]`: groups for a split."""
        return np.array([trace.problem for trace in self for _ in trace.spans], dtype=object)

    def check_arithmetic(self) -> "Traces":
        """These chains with the labels that their calculator notes give (None for steps without notes)."""
        return self.relabel(check_arithmetic)

    def relabel(self, label: Callable[[str], Label | bool]) -> "Traces":
        """These chains with labels that a function makes of the text of each step (None: not known)."""
        new = [[None if (y := label(step)) is None else float(y) for step in trace.steps.texts] for trace in self]
        return Traces([replace(trace, labels=labels) for trace, labels in zip(self, new, strict=True)])

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step: its place, text and label, and what `Trace` says of its chain (number `trace`)."""
        import pandas as pd

        columns = ["trace", "problem", "model", "step", "start", "end", "text", "label", "verdict", "kind", "question"]
        rows = [(n, trace.problem, trace.model, i, step.start, step.end, step.text, trace.labels[i], trace.verdict,
                 trace.kind, trace.question) for n, trace in enumerate(self) for i, step in enumerate(trace.steps)]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"label": "Float64", "verdict": "boolean"})

    def to_records(self) -> list[dict[str, Any]]:
        """Return a dictionary a chain, with the names of `Trace`; `read_traces` reads them back."""
        return [{**vars(trace), "spans": [list(span) for span in trace.spans]} for trace in self]

    def save(self, path: str | Path) -> Path:
        """Write a JSON object a line, which `read_traces` reads back. The file appears whole or not at all."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.to_records())
        with write_whole(path) as temporary:
            temporary.write_text(lines, encoding="utf-8")
        return Path(path)


def read_traces(
    source: Any,
    how: str | Callable[[str], Sequence[Any]] = "lines",
    *,
    model: str = "",
    merge_last: bool = True,
) -> Traces:
    """Read chains of thought from what people keep them in. What a record is follows from its names:

    - a string, or `text`, `solution`, `response`, `completion`, `output` or `chain` (a string): a chain, cut by `how`;
    - `steps` or `completions`: a list of steps, with `labels` (TRL's stepwise form) or `label`, the number of the
      first wrong one, -1 for none (ProcessBench; what follows an error is not known);
    - `question`, `answer` with "#### 18": a GSM8K reference solution, whose verdict is True;
    - `question`, `ground_truth` and models with `solution`, `is_correct`: GSM8K's example solutions, a chain each;
    - `input`, `label` with "+" or "-" at the end of each "Step n:" (Math-Shepherd);
    - `question`, `label` with `steps` and ratings (PRM800K; -1 is wrong, 0 and 1 are not);
    - a frame with a row a step, as `Traces.to_frame` gives it.

    Beside them `problem` or `id` (else the question tells problems apart), `question`, `prompt`, `verdict`,
    `is_correct` or `correct`, `model` or `generator` are read.

    Args:
        source: a string, a list of strings or records, a frame, `Traces`, or the path of a JSON Lines file (may end
            in `.gz`). A string is a chain; give a file as a `Path`.
        how, merge_last: as for `split_steps`.
        model: who wrote chains that do not say so.

    Raises:
        InputError: nothing to read, or a record of an unknown form. FileFormatError: a damaged file.
    """
    from sparselens.reasoning.records import records_of, traces_of

    if isinstance(source, Traces):
        return source
    records = records_of(source)

    def cut(text: str) -> Steps:
        return split_steps(text, how, merge_last=merge_last)

    traces = [trace for number, record in enumerate(records) for trace in traces_of(record, number, cut, model)]
    if not traces:
        raise InputError("there is no chain of thought to read: give at least one.")
    return Traces(traces)


def as_traces(source: "Traces | Iterable[Trace] | Any") -> Traces:
    """Traces as they are, or read with the usual rules."""
    if isinstance(source, list) and source and isinstance(source[0], Trace):
        return Traces(source)
    return read_traces(source)

"""What an analysis cost: tokens read by the model, and prompts, tokens, seconds and money of each stage."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError

if TYPE_CHECKING:
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding

VERIFY = "verify"


@dataclass
class Usage:
    """What a labeler or judge has used up so far. One that keeps it in an attribute `usage` has its cost accounted.

    Attributes:
        calls: prompts that were answered anew.
        cached: prompts answered from the cache.
        prompt_tokens, completion_tokens: tokens read and written.
        money: in the unit of the given prices; None when no price is known.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float | None = None


@dataclass
class Cost:
    """Tokens, seconds and money of an analysis, by stage.

    Attributes:
        reader_tokens: tokens of the documents that were read by the model, once, for this and every other analysis.
        reader_seconds: the time that took.
        stages: a row a stage.
    """

    reader_tokens: int = 0
    reader_seconds: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, *embeddings: "SAEEmbedding") -> "Cost":
        """Begin with what reading these took."""
        read = [emb.cost() for emb in embeddings]
        return cls(sum(cost.reader_tokens for cost in read), sum(cost.seconds for cost in read))

    def ask(self, stage: str, respond: Callable[[list[str]], Sequence[Any]], prompts: Sequence[str]) -> list[Any]:
        """Ask a labeler or a judge, and write down what that took.

        Raises:
            InputError: it returned another number of answers.
        """
        if not prompts:
            return []
        usage = getattr(respond, "usage", None)
        counted = usage if isinstance(usage, Usage) else None
        before = replace(counted) if counted else None
        began = time.perf_counter()
        answers = list(respond(list(prompts)))
        row = {"prompts": len(prompts), "seconds": time.perf_counter() - began}
        if counted and before:
            row |= _difference(before, counted)
        if len(answers) != len(prompts):
            raise InputError(f"{name_of(respond)} was given {len(prompts)} prompts and returned {len(answers)} "
                             "answers; it must return one each, in order.")
        self._add(stage, row)
        return answers

    def __add__(self, other: "Cost") -> "Cost":
        out = Cost(self.reader_tokens + other.reader_tokens, self.reader_seconds + other.reader_seconds)
        for cost in (self, other):
            for stage, row in cost.stages.items():
                out._add(stage, row)
        return out

    def _add(self, stage: str, row: dict[str, Any]) -> None:
        there = self.stages.setdefault(stage, {})
        for key, value in row.items():
            there[key] = there.get(key, 0) + value

    def to_frame(self) -> "pandas.DataFrame":
        """A row a stage; the last is "verify", if there is one.

        Columns: `stage`, `prompts`, `seconds`, `calls` (answered anew), `cached`, `prompt_tokens`,
        `completion_tokens` and `money`. What a labeler or judge does not tell is NaN. The stage "read" has the tokens
        of the documents as `prompt_tokens`.
        """
        import pandas as pd

        columns = ["stage", "prompts", "seconds", "calls", "cached", "prompt_tokens", "completion_tokens", "money"]
        rows: list[dict[str, Any]] = []
        if self.reader_tokens:
            rows.append({"stage": "read", "prompt_tokens": self.reader_tokens, "seconds": self.reader_seconds})
        order = sorted(self.stages, key=lambda stage: stage == VERIFY)
        return pd.DataFrame([*rows, *({"stage": stage} | self.stages[stage] for stage in order)], columns=columns)

    def __repr__(self) -> str:
        parts = [f"read {self.reader_tokens:,} tokens"] if self.reader_tokens else []
        parts += [_line(stage, row) for stage, row in self.stages.items() if stage != VERIFY]
        apart = f"; apart: {_line(VERIFY, self.stages[VERIFY])}" if VERIFY in self.stages else ""
        return f"Cost({'; '.join(parts) or 'nothing'}{apart})"

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        frame = self.to_frame()
        return report_html("Cost", [("", *frame.columns[1:]), *frame.itertuples(index=False)])


def _line(stage: str, row: dict[str, Any]) -> str:
    tokens = f", {row['prompt_tokens']:,} + {row['completion_tokens']:,} tokens" if "prompt_tokens" in row else ""
    return f"{stage} {row['prompts']:,} prompts{tokens}, {row['seconds']:.1f} s"


def _difference(before: Usage, now: Usage) -> dict[str, Any]:
    out: dict[str, Any] = {name: getattr(now, name) - getattr(before, name)
                           for name in ("calls", "cached", "prompt_tokens", "completion_tokens")}
    if now.money is not None:
        out["money"] = now.money - (before.money or 0.0)
    return out


def name_of(respond: Any) -> str:
    """What a table says about who answered: the callable's own name."""
    return str(getattr(respond, "name", None) or getattr(respond, "__name__", None) or type(respond).__name__)

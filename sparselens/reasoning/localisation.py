"""Where is the first error? Scores of steps turned into a step, and how often it is the right one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.reasoning.results import Shown
from sparselens.reasoning.scores import Score, interval, resampled
from sparselens.reasoning.traces import as_traces

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ErrorsFound(Shown):
    """How well first errors are found; shares with bootstrap intervals of 95 % over problems.

    Attributes:
        exact: wrong chains whose first step below the threshold is the first error.
        kept: right chains without a step below it.
        f1: harmonic mean of the two, as ProcessBench has it.
        told: wrong chains in which the likeliest place of the first error is right, knowing there is one: the step k
            with the largest `(1 - p_k) * p_1 ... p_(k-1)`.
        chance: the same for a step drawn evenly.
        n_wrong, n_right: chains whose first error is known, and right ones.
        threshold: below it a step is doubted.
        predicted: for each chain the first step below it, -1 for none.
    """

    exact: Score
    kept: Score
    f1: Score
    told: Score
    chance: float
    n_wrong: int
    n_right: int
    threshold: float
    predicted: list[int]

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a figure: `figure`, `value`, `ci_low`, `ci_high`."""
        import pandas as pd

        rows = [(name, *getattr(self, name)) for name in ("exact", "kept", "f1", "told")]
        rows.append(("chance", self.chance, np.nan, np.nan))
        return pd.DataFrame(rows, columns=["figure", "value", "ci_low", "ci_high"])

    def __repr__(self) -> str:
        times = self.told.value / self.chance if self.chance else float("nan")
        return (f"ErrorsFound(told {self.told.value:.2f} = {times:.1f} times chance, exact {self.exact.value:.2f}, "
                f"kept {self.kept.value:.2f}, F1 {self.f1.value:.2f}; {self.n_wrong} wrong, {self.n_right} right)")


def first_errors(traces: Any, scores: Sequence[Any], threshold: float = 0.5, seed: int = 0) -> ErrorsFound:
    """Find the first error of each chain from the scores of its steps.

    Chains of which it is not known whether and where they go wrong are left out.

    Args:
        traces: chains with labels.
        scores: for each chain the probability that each step is right, `[steps]`.
        threshold: a step with a lower probability is doubted.
        seed: seed of the resampling.

    Raises:
        InputError: scores that do not fit, or no chain whose first error is known.
    """
    traces = as_traces(traces)
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    if len(rows) != len(traces):
        raise InputError(f"there are {len(traces)} chains and scores of {len(rows)}.")
    for number, (trace, row) in enumerate(zip(traces, rows, strict=True)):
        if row.shape != (len(trace),) or not np.isfinite(row).all():
            raise InputError(f"chain {number} has {len(trace)} steps, and its scores are {row.tolist()!r:.80}: give a "
                             "number for each step.")
    truth = [trace.first_error for trace in traces]
    predicted = [int(np.argmax(row < threshold)) if (row < threshold).any() else -1 for row in rows]
    known = [i for i, (error, row) in enumerate(zip(truth, rows, strict=True)) if error is not None and len(row)]
    wrong = np.array([i for i in known if truth[i] >= 0], dtype=np.int64)  # type: ignore[operator]
    right = np.array([i for i in known if truth[i] == -1], dtype=np.int64)
    if not len(wrong):
        raise InputError("no chain has a known first error: give labels, with 0 at the first wrong step.")
    hit = np.array([predicted[i] == truth[i] for i in wrong], dtype=np.float64)
    clear = np.array([predicted[i] == -1 for i in right], dtype=np.float64)
    likeliest = np.array([_likeliest(rows[i]) == truth[i] for i in wrong], dtype=np.float64)
    problems = np.array(traces.problems, dtype=object)
    exact, kept = (_share(x, problems[own], seed) for x, own in ((hit, wrong), (clear, right)))
    return ErrorsFound(
        exact, kept, _f1(hit, clear, problems[wrong], problems[right], seed), _share(likeliest, problems[wrong], seed),
        float(np.mean([1 / len(rows[i]) for i in wrong])), len(wrong), len(right), threshold, predicted,
    )


def _likeliest(p: np.ndarray) -> int:
    """The step that is wrong while all before it are right, with the largest probability; the first of several."""
    p = p.clip(1e-6, 1 - 1e-6)
    before = np.concatenate([[0.0], np.cumsum(np.log(p))[:-1]])
    return int(np.argmax(np.log1p(-p) + before))


def _share(x: np.ndarray, groups: np.ndarray, seed: int) -> Score:
    if not len(x):
        return Score(float("nan"), float("nan"), float("nan"))
    return Score(float(x.mean()), *interval(resampled(lambda rows: float(x[rows].mean()), len(x), groups, seed)))


def _f1(hit: np.ndarray, clear: np.ndarray, wrong: np.ndarray, right: np.ndarray, seed: int) -> Score:
    both, is_wrong = np.concatenate([hit, clear]), np.arange(len(hit) + len(clear)) < len(hit)

    def harmonic(rows: np.ndarray) -> float:
        parts = [both[rows[is_wrong[rows] == side]] for side in (True, False)]
        if not all(map(len, parts)):
            return float("nan")
        a, b = (float(part.mean()) for part in parts)
        return 2 * a * b / (a + b) if a + b else 0.0

    again = resampled(harmonic, len(both), np.concatenate([wrong, right]), seed)
    return Score(harmonic(np.arange(len(both))), *interval(again))

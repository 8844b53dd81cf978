"""Which answer do several chains give? A plain majority, or one whose votes a probe of the steps weighs.

Yang et al. (2026, arXiv 2603.03031): score(a) = sum over chains with the answer a of the mean over its steps of p**tau.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.errors import InputError
from sparselens.reasoning.arithmetic import final_number
from sparselens.reasoning.results import Shown
from sparselens.reasoning.scores import Score, interval, resampled
from sparselens.reasoning.traces import Traces, as_traces

if TYPE_CHECKING:
    import pandas


class Vote(NamedTuple):
    """The answer that won, and the score of each answer; None if no chain gave one."""

    answer: str | None
    scores: dict[str, float]


def probe_vote(answers: Sequence[str | None], p_steps: Sequence[Any], tau: float = 0.8) -> Vote:
    """Weigh the votes of chains by how right a probe holds their steps.

    Args:
        answers: the answer of each chain; None does not vote.
        p_steps: for each chain the probability that each step is right, `[steps]`, at least one.
        tau: 0 is the plain majority; larger values trust the probe more. Of equal scores the answer that came first
            wins.

    Raises:
        InputError: lengths that differ, a negative tau, no steps, or numbers outside 0 to 1.
    """
    if len(answers) != len(p_steps):
        raise InputError(f"there are {len(answers)} answers and steps of {len(p_steps)} chains.")
    if not tau >= 0:
        raise InputError(f"tau={tau} must be 0 (majority) or larger.")
    scores: dict[str, float] = {}
    for number, (answer, given) in enumerate(zip(answers, p_steps, strict=True)):
        p = np.atleast_1d(np.asarray(given, dtype=np.float64))
        if not p.size or not ((p >= 0) & (p <= 1)).all():
            raise InputError(f"chain {number}: {p.tolist()!r:.80} should be probabilities, one for each step.")
        if answer is not None:
            scores[answer] = scores.get(answer, 0.0) + float((p**tau).mean())
    return Vote(next(iter(_best(scores)), None), scores)


def _best(scores: dict[str, float]) -> list[str]:
    """The answers with the highest score, in order of appearance."""
    most = max(scores.values(), default=0.0)
    # sums of the same weights in another order differ in the last digits
    return [answer for answer, score in scores.items() if score >= most - 1e-9 * max(most, 1)]


@dataclass(frozen=True)
class Votes(Shown):
    """Ways to choose among the answers of several chains, on the same problems; made by `compare_votes`.

    Attributes:
        right: way -> for each problem whether the chosen answer is right, float64 `[problems]`: 1 or 0, or the share of
            right ones among answers of equal score, any of which may be chosen.
        problems: the problems.
        tau: the power of the probe's probabilities.
        against: way -> how much more often the probe's vote is right, with a paired interval.
    """

    right: dict[str, np.ndarray]
    problems: list[str]
    tau: float
    against: dict[str, Score]

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a way: `way`, `accuracy`, and `gain`, `ci_low`, `ci_high` of the probe's vote over it."""
        import pandas as pd

        rows = [(way, float(x.mean()), *self.against.get(way, (np.nan,) * 3)) for way, x in self.right.items()]
        return pd.DataFrame(rows, columns=["way", "accuracy", "gain", "ci_low", "ci_high"])

    def __repr__(self) -> str:
        said = ", ".join(f"{way} {x.mean():.3f}" for way, x in self.right.items())
        return f"Votes({len(self.problems):,} problems: {said})"


def compare_votes(
    traces: Any, p_steps: Sequence[Any], tau: float = 0.8, best: str | None = None, seed: int = 0
) -> Votes:
    """Hold the probe's vote against the majority, the best single model and a perfect choice.

    The answer of a chain is its last number; whether an answer is right is known from the verdicts of the chains that
    gave it. Among answers of equal score any may be chosen, so that the order of the chains favours no way.

    Args:
        traces: chains with verdicts, several a problem.
        p_steps: for each chain the probability that each step (or the chain) is right.
        tau: as for `probe_vote`.
        best: the best single model, chosen on *other* problems; None takes the best of these, which flatters it.
        seed: seed of the paired resampling of problems.

    Raises:
        InputError: a missing verdict, or a model that wrote no chain.
    """
    traces = as_traces(traces)
    if any(verdict is None for verdict in traces.verdicts):
        raise InputError(f"chain {traces.verdicts.index(None)} has no verdict; votes cannot be judged without.")
    if len(p_steps) != len(traces):
        raise InputError(f"there are {len(traces)} chains and probabilities of {len(p_steps)}.")
    alone = {model: float(np.mean(traces.by(model).verdicts)) for model in traces.models}  # type: ignore[arg-type]
    best = max(alone, key=lambda model: alone[model]) if best is None else traces.by(best).models[0]
    of: dict[str, list[int]] = {}
    for number, trace in enumerate(traces):
        of.setdefault(trace.problem, []).append(number)
    rows = [_judged(traces, p_steps, own, tau, best) for own in of.values()]
    ways = ("probe", "majority", f"best single model ({best})", "perfect choice")
    right = {way: np.array([row[i] for row in rows], dtype=np.float64) for i, way in enumerate(ways)}
    against = {}
    for way in ways[1:3]:
        gain = right["probe"] - right[way]

        def mean_of(chosen: np.ndarray, gain: np.ndarray = gain) -> float:
            return float(gain[chosen].mean())

        again = resampled(mean_of, len(gain), seed=seed)
        against[way] = Score(float(gain.mean()), *interval(again))
    return Votes(right, list(of), tau, against)


def _judged(traces: Traces, p_steps: Sequence[Any], own: list[int], tau: float, best: str) -> tuple[float, ...]:
    """How right each way is about one problem."""
    answers = [final_number(traces[i].text) for i in own]
    good = {answer for answer, i in zip(answers, own, strict=True) if traces[i].verdict}
    p = [p_steps[i] for i in own]
    chosen = [_best(probe_vote(answers, p, power).scores) for power in (tau, 0.0)]
    shares = [sum(answer in good for answer in answers) / len(answers) if answers else 0.0 for answers in chosen]
    single = any(traces[i].verdict for i in own if traces[i].model == best)
    return *shares, float(single), float(bool(good))

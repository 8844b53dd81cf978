"""How good predictions are on held-out steps, with intervals that resample whole problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparselens.errors import InputError

RESAMPLES = 500
_BINS = 10
Measure = Callable[[np.ndarray, np.ndarray], float]


class Score(NamedTuple):
    """A figure on held-out rows with its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def auroc(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Chance that a row of class 1 gets a higher number than one of class 0; ties count half. NaN with one class."""
    from scipy.stats import rankdata

    ones = int((y > 0.5).sum())
    if not 0 < ones < len(y):
        return float("nan")
    return float((rankdata(said)[y > 0.5].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def accuracy(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Share of rows on whose side of 0.5 the probability lies."""
    return float(((said >= 0.5) == (y > 0.5)).mean())


def brier(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Mean squared distance of probabilities from what happened."""
    return float(((said - y) ** 2).mean())


def reliability(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share that is right, and rows, of ten bins of equal size by probability (fewer with ties)."""
    edges = np.unique(np.quantile(said, np.linspace(0, 1, _BINS + 1)[1:-1]))
    at = np.searchsorted(edges, said, side="right")
    count = np.bincount(at, minlength=len(edges) + 1)
    kept = count > 0
    mean = np.bincount(at, said, len(edges) + 1)[kept] / count[kept]
    return mean, np.bincount(at, y, len(edges) + 1)[kept] / count[kept], count[kept]


def calibration_error(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Expected calibration error: how far probabilities are from shares that are right, over bins of equal size."""
    mean, share, count = reliability(y, said)
    return float((np.abs(mean - share) * count).sum() / count.sum())


def rmse(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Root of the mean squared error, in the unit of y."""
    return float(np.sqrt(((y - said) ** 2).mean()))


def perplexity(_: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """exp of the mean negative log of the probabilities `said` that the true classes were given."""
    return float(np.exp(-np.log(np.maximum(said, 1e-12)).mean()))


def scored(
    measure: Measure, y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"], groups: Any = None, seed: int = 0
) -> Score:
    """A measure with its interval. Resampled are whole groups: steps of one problem are no independent evidence.

    Args:
        measure: a function of `y` and `said`.
        y, said: truth and prediction.
        groups: the group of each row; each row its own if None.
        seed: seed of the resampling.
    """
    again = resampled(lambda rows: measure(y[rows], said[rows]), len(y), groups, seed)
    return Score(float(measure(y, said)), *interval(again))


def resampled(figure: Callable[[np.ndarray], float], n: int, groups: Any = None, seed: int = 0) -> np.ndarray:
    """A figure of rows over bootstrap samples of groups; samples without a finite figure are left out."""
    random = np.random.default_rng(seed)
    members = group_rows(groups if groups is not None else range(n))
    found = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in random.integers(0, len(members), len(members))])
        found.append(figure(rows))
    return np.array([f for f in found if np.isfinite(f)])


def interval(again: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled figures; NaN if there are none."""
    if not len(again):
        return float("nan"), float("nan")
    low, high = np.quantile(again, [0.025, 0.975])
    return float(low), float(high)


def group_rows(groups: Any) -> list[np.ndarray]:
    """The rows of each group."""
    keys = np.unique([str(g) for g in groups], return_inverse=True)[1]
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def grouped_split(groups: Any, test: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out: whole groups, so that no problem is on both sides.

    Args:
        groups: the group (problem) of each row.
        test: share of the groups to hold out.
        seed: seed of the draw.

    Raises:
        InputError: a share out of range, or fewer than two groups.
    """
    if not 0 < test < 1:
        raise InputError(f"test={test} is the share of problems held out: it must lie between 0 and 1.")
    members = group_rows(groups)
    if len(members) < 2:
        raise InputError("all rows are of one problem, so none can be held out: give traces of several problems, each "
                         "with its own name.")
    order = np.random.default_rng(seed).permutation(len(members))
    n_test = min(max(1, round(test * len(members))), len(members) - 1)
    parts = (np.concatenate([members[i] for i in part]) for part in (order[n_test:], order[:n_test]))
    train, held = (np.sort(part) for part in parts)
    return train, held


def grouped_folds(groups: Any, n: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of each of `n` folds of whole groups (fewer if there are fewer groups)."""
    members = group_rows(groups)
    order = np.random.default_rng(seed).permutation(len(members))
    parts = np.array_split(order, min(n, len(members)))
    return [np.sort(np.concatenate([members[i] for i in part])) for part in parts]

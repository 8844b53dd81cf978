"""Which features go with a number or a class: chosen on one part of the documents, measured on another."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sparselens.embeddings.statistics import newcombe, p_values
from sparselens.errors import InputError, closest

METHODS = ("lasso", "correlation", "separation")
_SCREENED = 2000  # features that LASSO and the check of predictability look at: those that correlate most
_STRONGEST = 100  # documents in which a feature is strongest, for the separation
_SUPPORT = 5  # documents of the training part in which a feature must fire
_RESAMPLES = 500


class Score(NamedTuple):
    """How well something predicts on held-out documents: AUC or R², with a bootstrap interval of 95 %."""

    value: float
    low: float
    high: float


class Target(NamedTuple):
    """What is to be predicted.

    Attributes:
        values: float64 `[n]`; 0 and 1 for a binary one.
        binary: whether there are two classes.
        names: what 0 and 1 stand for; empty for numbers.
    """

    values: np.ndarray
    binary: bool
    names: tuple[str, ...]


def as_target(y: Any, n: int) -> Target:
    """Read y: two different values make classes (the later in order is 1), more make numbers.

    Raises:
        InputError: another length, a missing value, classes that are neither two nor numbers, or one value only.
    """
    import pandas as pd

    series = pd.Series(y.tolist() if hasattr(y, "tolist") else list(y))
    if len(series) != n:
        raise InputError(f"y has {len(series)} values, and there are {n} documents.")
    if series.isna().any():
        raise InputError(f"y is missing for document {int(np.flatnonzero(series.isna())[0])}: drop such documents.")
    levels = series.unique().tolist()
    if len(levels) < 2:
        raise InputError(f"y is {levels[0]!r} for every document: there is nothing to predict.")
    if len(levels) == 2:
        low, high = sorted(levels, key=lambda value: (str(type(value)), value))
        return Target((series == high).to_numpy(dtype=np.float64), True, (str(low), str(high)))
    values = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        bad = series[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise InputError(f"y has {len(levels)} different values, and {bad!r} is no finite number. Give numbers or two "
                         "classes; of several classes compare one with the rest, as y == 'this'.")
    return Target(values, False, ())


def split(
    target: Target, holdout: float, groups: Any, seed: int
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]]:
    """Positions of the training and the held-out documents: whole groups, or drawn evenly from both classes.

    Raises:
        InputError: a share out of range, groups of another length, or a part that lacks a class.
    """
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    n = len(target.values)
    if not 0 < holdout < 1:
        raise InputError(f"holdout={holdout} must lie between 0 and 1.")
    keys = None if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    if keys is not None and (len(keys) != n or keys.max() < 1):
        raise InputError(f"groups must name a group for each of the {n} documents, and at least two of them.")
    small = min(np.bincount(target.values.astype(int))) < 2 * _SUPPORT if target.binary else n < 4 * _SUPPORT
    if small:
        raise InputError(f"too few documents to choose features on one part and test them on another: give at least "
                         f"{2 * _SUPPORT} of each class, or {4 * _SUPPORT} with numbers.")
    kind = GroupShuffleSplit if keys is not None else StratifiedShuffleSplit if target.binary else ShuffleSplit
    splitter = kind(1, test_size=holdout, random_state=seed)
    train, test = next(splitter.split(np.zeros((n, 1)), target.values if target.binary else None, keys))
    for part in (train, test):
        if len(np.unique(target.values[part])) < 2:
            raise InputError("one part of the split has a single value of y: give another seed, holdout or groups.")
    return np.sort(train), np.sort(test)


def correlations(x: Any, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "features"]:
    """Pearson's correlation of each column of a CSR matrix with y; 0 where a column is constant."""
    n = len(y)
    mean = np.asarray(x.mean(axis=0)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0)) * y.std()
    together = np.asarray(x.T @ (y - y.mean())).ravel() / n
    # a constant column has a deviation of rounding errors only
    return np.divide(together, deviation, out=np.zeros(len(mean)), where=deviation > 1e-6 * np.sqrt(square) * y.std())


def separations(x: Any, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "features"]:
    """Mean of y over the 100 documents in which each feature is strongest, less its mean where it does not fire.

    Only documents in which it fires count among the 100. NaN where it fires in all or none.
    """
    columns = abs(x.tocsc())
    out = np.full(x.shape[1], np.nan)
    for f in range(x.shape[1]):
        span = slice(columns.indptr[f], columns.indptr[f + 1])
        rows, values = columns.indices[span], columns.data[span]
        if 0 < len(rows) < len(y):
            best = rows[np.argsort(-values, kind="stable")[:_STRONGEST]]
            out[f] = y[best].mean() - (y.sum() - y[rows].sum()) / (len(y) - len(rows))
    return out


def choose(x: Any, y: Float[np.ndarray, "n"], method: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `n` features that go with y most, best first, and the score each was chosen by.

    Features that fire in fewer than 5 documents are passed over.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"select={method!r} is unknown; valid are {', '.join(METHODS)}.{closest(method, METHODS)}")
    usable = np.flatnonzero(np.diff(x.tocsc().indptr) >= _SUPPORT)
    x = x[:, usable]
    if method == "lasso":
        score = _lasso(x, y, n)
    else:
        score = np.nan_to_num(correlations(x, y) if method == "correlation" else separations(x, y))
    order = np.argsort(-np.abs(score), kind="stable")[:n]
    order = order[score[order] != 0]
    return usable[order], score[order]


def _lasso(x: Any, y: Float[np.ndarray, "n"], n: int) -> Float[np.ndarray, "features"]:
    """Coefficients along the LASSO path where `n` are first different from zero, on columns of variance 1."""
    from sklearn.linear_model import lasso_path

    kept, dense = screened(x, y)
    out = np.zeros(x.shape[1])
    if len(kept):
        centred = y - y.mean()
        first = float(np.abs(dense.T @ centred).max()) / len(y)  # from here on every coefficient is 0
        _, paths, _ = lasso_path(dense, centred, alphas=np.geomspace(first, first / 1000, 100))
        enough = np.flatnonzero((paths != 0).sum(axis=0) >= n)
        out[kept] = paths[:, enough[0] if len(enough) else -1]
    return out


def screened(x: Any, y: Float[np.ndarray, "n"]) -> tuple[np.ndarray, Float[np.ndarray, "n kept"]]:
    """The 2,000 columns that correlate with y most, dense, with mean 0 and variance 1."""
    found = np.abs(correlations(x, y))
    kept = np.argsort(-found, kind="stable")[:_SCREENED]
    kept = np.sort(kept[found[kept] > 0])
    dense = x[:, kept].toarray().astype(np.float64)
    return kept, (dense - dense.mean(axis=0)) / dense.std(axis=0)


def predictability(x: Any, target: Target, train: np.ndarray, test: np.ndarray, seed: int = 0) -> Score:
    """How well a ridge regression on the features predicts y, or ranks two classes, on held-out documents.

    The features are the 2,000 that correlate with y most in the training part, on one scale; the penalty is chosen
    there by generalised cross-validation.
    """
    from sklearn.linear_model import RidgeCV

    y = target.values[train]
    found = np.abs(correlations(x[train], y))
    kept = np.argsort(-found, kind="stable")[:_SCREENED]
    kept = kept[found[kept] > 0]
    if not len(kept):
        return Score(0.5 if target.binary else 0.0, float("nan"), float("nan"))
    dense = x[:, kept].toarray().astype(np.float64)
    dense = (dense - dense[train].mean(axis=0)) / dense[train].std(axis=0)
    said = RidgeCV(np.logspace(-1, 6, 15)).fit(dense[train], y).predict(dense[test])
    return score(target, test, said, seed)


def score(target: Target, test: np.ndarray, said: Float[np.ndarray, "test"], seed: int = 0) -> Score:
    """AUC (two classes) or R² (numbers) on held-out documents, with a bootstrap interval over documents."""
    y = target.values[test]
    measure = auc if target.binary else r_squared
    random = np.random.default_rng(seed)
    again = []
    for _ in range(_RESAMPLES):
        rows = random.integers(0, len(y), len(y))
        if len(np.unique(y[rows])) > 1:
            again.append(measure(y[rows], said[rows]))
    low, high = np.quantile(again, [0.025, 0.975])
    return Score(float(measure(y, said)), float(low), float(high))


def auc(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """Chance that one of class 1 gets a higher number than one of class 0; ties count half."""
    from scipy.stats import rankdata

    ones = int(y.sum())
    return float((rankdata(said)[y > 0].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def r_squared(y: Float[np.ndarray, "n"], said: Float[np.ndarray, "n"]) -> float:
    """1 less the share of the variance of y that is left."""
    return float(1 - ((y - said) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def limits(x: Any, features: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """Above which value a feature counts as there: 0, or its median where it fires in more than half of the rows."""
    dense = np.abs(x[:, features].toarray())
    return np.where((dense > 0).mean(axis=0) > 0.5, np.median(dense, axis=0), 0.0)


class Tested(NamedTuple):
    """What held-out documents say about properties that are there or not, `[k]` each.

    Attributes:
        separation: mean of y where the property is there, less its mean where it is not; NaN if one of them is empty.
        low, high: interval of 95 %.
        p: two-sided; 1 where nothing can be tested.
    """

    separation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def separation_tests(there: Bool[np.ndarray, "n k"], target: Target, rows: np.ndarray) -> Tested:
    """Test each property on some documents.

    Two classes: Newcombe's interval, and Fisher's exact test where an expected count is below 10, else a z-test.
    Numbers: Welch's interval and t-test.
    """
    from scipy.stats import ttest_ind

    y = target.values[rows]
    out = np.full((4, there.shape[1]), np.nan)
    out[3] = 1.0
    for j, holds in enumerate(there.T):
        a, b = y[holds], y[~holds]
        if min(len(a), len(b)) < (1 if target.binary else 2):
            continue
        out[0, j] = a.mean() - b.mean()
        if target.binary:
            hits = [np.array([int(part.sum())]) for part in (a, b)]
            out[1:3, j] = np.ravel(newcombe(hits[0], len(a), hits[1], len(b)))
            out[3, j] = p_values(hits[0], len(a), hits[1], len(b))[0]
        elif a.std() + b.std() > 0:
            found = ttest_ind(a, b, equal_var=False)
            out[1:3, j] = found.confidence_interval(0.95)
            out[3, j] = found.pvalue
    return Tested(*out)


def joint_coefficients(
    there: Bool[np.ndarray, "n k"], y: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Least squares on all properties together: coefficients, and p-values with errors that may differ in size (HC1).

    With two classes this is the linear probability model. Properties that others add up to share their coefficient;
    where there are not more documents than properties, both are NaN.
    """
    from scipy.special import stdtr

    n, k = there.shape
    if n <= k + 1 or not k:
        return np.full(k, np.nan), np.full(k, np.nan)
    design = np.column_stack([np.ones(n), there.astype(np.float64)])
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ y
    weighted = design * (y - design @ coefficients)[:, None]
    variance = np.diag(inverse @ (weighted.T @ weighted) @ inverse) * n / (n - k - 1)
    error = np.sqrt(np.maximum(variance, 0))
    t = np.divide(coefficients, error, out=np.zeros(k + 1), where=error > 0)
    return coefficients[1:], (2 * stdtr(n - k - 1, -np.abs(t)))[1:]

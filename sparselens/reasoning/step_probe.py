"""Probes of steps: is it right, how long is it, how does it begin? After scikit-learn's conventions.

Yang et al. (2026, arXiv 2603.03031) use a three-layer MLP; replications find a linear probe as good. Both are here.
"""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sparselens.errors import InputError, NotFiniteError, closest
from sparselens.reasoning.probe_fits import Fit, LinearFit, MLPFit
from sparselens.reasoning.scores import Score, accuracy, auroc, grouped_folds, perplexity, rmse, scored

TASKS = {"correct": "binary", "logical": "binary", "verdict": "binary", "length": "number", "first_token": "class"}
KINDS = ("linear", "mlp")
OTHER = -1
_FLAT = 1e-3
_RARE = 5  # a first token with fewer rows than this counts as OTHER


class StepProbe(BaseEstimator):
    """A probe from rows of steps (or of chains) to a property of them.

    Columns are scaled to unit variance. The strength of the penalty is chosen, and the probabilities are calibrated
    (Platt), on held-out folds of whole groups.

    Args:
        task: "correct", "logical" or "verdict" (1 or 0), "length" (a number, such as tokens) or "first_token" (token
            ids; those with fewer than 5 rows count as -1, "other").
        kind: "linear" (L2-penalised) or "mlp" (layers of 256 and 128, or `hidden`; the paper has 1024 and 512).
        n_features: read only the columns that tell most, this many; None reads all. For two classes the difference
            of means in standard deviations ranks them, else the correlation.
        hidden: widths of the MLP's layers.
        seed: of folds and of the MLP's weights.

    Attributes:
        fit_: the fitted model.
        columns_: the columns it reads, int64.
        classes_: the classes, for all tasks but "length".
        platt_: slope and intercept of the calibration, for two classes.
        coef_: the linear probe's weights in units of the input `[columns]` (`[classes, columns]` for first tokens).

    Example:
        >>> probe = sl.StepProbe("correct").fit(Z, y, groups=traces.step_problems())
        >>> probe.predict_proba(Z2)[:, 1]
    """

    def __init__(
        self,
        task: str = "correct",
        *,
        kind: str = "linear",
        n_features: int | None = None,
        hidden: tuple[int, ...] = (256, 128),
        seed: int = 0,
    ):
        self.task, self.kind, self.n_features, self.hidden, self.seed = task, kind, n_features, hidden, seed

    @property
    def target(self) -> str:
        """What is predicted: "binary", "number" or "class"."""
        if self.task not in TASKS:
            raise InputError(f"task={self.task!r} is unknown; valid are {', '.join(TASKS)}."
                             f"{closest(self.task, TASKS)}")
        return TASKS[self.task]

    def fit(self, X: Any, y: Any, groups: Any = None) -> "StepProbe":
        """Fit the probe.

        Args:
            X: dense or CSR `[rows, d]`.
            y: `[rows]` of the task's kind.
            groups: the problem of each row. Without them each row counts as a problem of its own.

        Raises:
            InputError: unknown settings, lengths that differ, a missing value, or one value only.
            NotFiniteError: X has NaN or infinite entries.
        """
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} is unknown; valid are {', '.join(KINDS)}.{closest(self.kind, KINDS)}")
        x, y = _rows(X), self._targets(y)
        groups = np.arange(len(y)) if groups is None else np.asarray(groups, dtype=object)
        if not x.shape[0] == len(y) == len(groups):
            raise InputError(f"X has {x.shape[0]} rows, y {len(y)} values and groups {len(groups)}: they must agree.")
        self.columns_ = self._choose(x, y)
        folds = grouped_folds(groups, 3, self.seed)
        if len(folds) < 2:
            raise InputError("all rows are of one problem: give traces of several problems, each with its own name.")
        x = x[:, self.columns_]
        linear = self.kind == "linear"
        self.fit_: Fit = LinearFit(self.target) if linear else MLPFit(self.target, self.hidden, self.seed)
        rows, said = self.fit_.fit(x, y, folds)
        if self.target == "binary":
            self.platt_ = _platt(y[rows], said)
        self.n_features_in_ = X.shape[1]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Uncalibrated log-odds of two classes, `[rows]`."""
        self._only("binary", "decision_function")
        return self._raw(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[rows, classes]`, in the order of `classes_`."""
        if self.target == "class":
            return self._raw(X)
        self._only("binary", "predict_proba")
        p = self._calibrated(self._raw(X))
        return np.stack([1 - p, p], axis=1)

    def predict_range(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest probability of 1, `[rows]` each, of this linear probe and three fitted on two thirds of
        the problems: how much the training problems matter for a score. It is no confidence interval."""
        self._only("binary", "predict_range")
        x = self._checked(X)
        if not isinstance(self.fit_, LinearFit):
            raise AttributeError("an MLP probe has no predict_range; use kind='linear'.")
        p = np.vstack([self._calibrated(self.fit_.spread(x[:, self.columns_])), self.predict_proba(X)[:, 1]])
        return p.min(0), p.max(0)

    def _calibrated(self, log_odds: np.ndarray) -> np.ndarray:
        slope, shift = self.platt_
        return 1 / (1 + np.exp(-(slope * log_odds + shift)))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class, or the number."""
        if self.target == "number":
            return self._raw(X)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score(self, X: Any, y: Any) -> float:
        """AUROC of two classes, R² of numbers, accuracy of first tokens."""
        y = self._known(y)
        if self.target == "binary":
            return auroc(y, self.predict_proba(X)[:, 1])
        if self.target == "number":
            return float(1 - ((y - self.predict(X)) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        return float((self.predict(X) == self._seen(y)).mean())

    def evaluate(self, X: Any, y: Any, groups: Any = None) -> dict[str, Score]:
        """The task's figures on other rows (those of another model, say) with intervals that resample groups.

        AUROC and accuracy of two classes; RMSE of numbers; perplexity and accuracy of first tokens.
        """
        y = self._known(y)
        if self.target == "binary":
            p = self.predict_proba(X)[:, 1]
            return {"auroc": scored(auroc, y, p, groups), "accuracy": scored(accuracy, y, p, groups)}
        if self.target == "number":
            return {"rmse": scored(rmse, y, self.predict(X), groups)}
        p = self.predict_proba(X)
        said = p[np.arange(len(y)), np.searchsorted(self.classes_, self._seen(y))]
        right = (self.predict(X) == self._seen(y)).astype(np.float64)
        return {"perplexity": scored(perplexity, y, said, groups),
                "accuracy": scored(lambda a, _: float(a.mean()), right, right, groups)}

    transfer = evaluate

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the linear probe in units of the input."""
        check_is_fitted(self, "fit_")
        if not isinstance(self.fit_, LinearFit):
            raise AttributeError("an MLP probe has no coef_; use kind='linear'.")
        return self.fit_.coefficients()

    def _raw(self, X: Any) -> np.ndarray:
        return self.fit_.predict(self._checked(X)[:, self.columns_])

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self, "fit_")
        x = _rows(X)
        if x.shape[1] != self.n_features_in_:
            raise InputError(f"X has {x.shape[1]} columns, and the probe was fitted on {self.n_features_in_}. Are they "
                             "states of another site, or codes of another dictionary?")
        return x

    def _only(self, target: str, name: str) -> None:
        if self.target != target:
            raise AttributeError(f"{name} is not there for the task {self.task!r}.")

    def _known(self, y: Any) -> np.ndarray:
        """y as float64 without missing values."""
        values = np.array([np.nan if v is None else float(v) for v in np.asarray(y, dtype=object)], dtype=np.float64)
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(f"y is missing for row {bad}: leave out the rows whose label is not known.")
        if self.target == "binary" and not np.isin(values, (0, 1)).all():
            raise InputError(f"y has values other than 0 and 1, such as {values[~np.isin(values, (0, 1))][0]:g}.")
        return values

    def _seen(self, y: np.ndarray) -> np.ndarray:
        """Tokens that the probe does not know as OTHER."""
        return np.where(np.isin(y, self.classes_), y, OTHER).astype(np.int64)

    def _targets(self, y: Any) -> np.ndarray:
        """y to fit on; sets `classes_`."""
        values = self._known(y)
        if not len(values) or (values == values[0]).all():
            said = f"all {len(values)} are {values[0]:g}" if len(values) else "there are none"
            raise InputError(f"the labels hold nothing to learn from: {said}.")
        if self.target == "binary":
            self.classes_ = np.array([0, 1])
        elif self.target == "class":
            tokens, counts = np.unique(values.astype(np.int64), return_counts=True)
            self.classes_ = np.unique(np.append(tokens[counts >= _RARE], OTHER))
            if len(self.classes_) < 2:
                raise InputError(f"no first token has {_RARE} rows: give more steps.")
            values = np.searchsorted(self.classes_, self._seen(values)).astype(np.float64)
        return values

    def _choose(self, x: Any, y: np.ndarray) -> np.ndarray:
        """The columns to read, in order."""
        if self.n_features is None or self.n_features >= x.shape[1]:
            return np.arange(x.shape[1])
        if self.n_features < 1:
            raise InputError(f"n_features={self.n_features} must be at least 1, or None for all.")
        sides = [y == value for value in np.unique(y)] if self.target == "class" else [y > np.median(y)]
        if self.target == "binary":
            sides = [y > 0.5]
        spread = _deviation(x)
        apart = np.zeros(x.shape[1])
        for side in sides:  # the mean of a side against that of the rest
            if 0 < side.sum() < len(y):
                apart = np.maximum(apart, np.abs(_mean(x[side]) - _mean(x[~side])))
        strength = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)
        return np.sort(np.argsort(-strength, kind="stable")[: self.n_features])


def _mean(x: Any) -> np.ndarray:
    return np.asarray(x.mean(axis=0), dtype=np.float64).ravel()


def _deviation(x: Any) -> np.ndarray:
    squares = x.multiply(x) if hasattr(x, "multiply") else x * x
    return np.sqrt(np.maximum(_mean(squares) - _mean(x) ** 2, 0))


def _rows(x: Any) -> Any:
    """Dense float32 or CSR rows, finite."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().float().numpy()
    if hasattr(x, "tocsr"):
        x = x.tocsr()
        finite = np.isfinite(x.data).all()
    else:
        x = np.asarray(x, dtype=np.float32)
        finite = np.isfinite(x).all()
    if x.ndim != 2:
        raise InputError(f"X has shape {list(x.shape)}; give [rows, columns].")
    if not finite:
        raise NotFiniteError("X has NaN or infinite entries. Is the model damaged, or loaded in float16?")
    return x


def _platt(y: np.ndarray, held: np.ndarray) -> tuple[float, float]:
    """Slope and intercept that turn held-out log-odds into calibrated ones."""
    from sklearn.linear_model import LogisticRegression

    if np.ptp(held) == 0:  # nothing was found: the share of ones
        share = (y.sum() + 1) / (len(y) + 2)
        return 0.0, float(np.log(share / (1 - share)))
    scale = float(held.std())
    found = LogisticRegression(C=1e4).fit(held[:, None] / scale, y)
    slope = max(float(found.coef_[0, 0]), _FLAT)  # where nothing was found: flat, but in the probe's order
    return slope / scale, float(found.intercept_[0])

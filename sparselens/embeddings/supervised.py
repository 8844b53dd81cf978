"""What goes with a number or a class: features chosen on one part of the texts and tested on the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import made_by, named
from sparselens.embeddings.prediction import (
    Score,
    Target,
    as_target,
    choose,
    joint_coefficients,
    limits,
    predictability,
    score,
    separation_tests,
    split,
)
from sparselens.embeddings.statistics import q_values
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding



@dataclass(frozen=True, eq=False, repr=False)
class Hypotheses:
    """Features that go with y, made by `hypothesize`.

    Attributes:
        frame: a row a feature, as `to_frame` gives it.
        emb: the texts.
        target: y as it was read.
        train, test: int64, positions of the documents that features were chosen on and tested on.
        predictable: held-out AUC or R² of a regression on all features: whether y can be told from them at all.
        joint: the same of the chosen ones alone; None if none was.
        by_length: the same of the number of tokens alone.
        method: how the features were chosen.
        labelled_by: who described them.
        grouped: whether whole groups were held out.
        alpha: level of `significant`.
    """

    frame: "pandas.DataFrame"
    emb: "SAEEmbedding"
    target: Target
    train: np.ndarray
    test: np.ndarray
    predictable: Score
    joint: Score | None
    by_length: Score
    method: str
    labelled_by: str
    grouped: bool
    alpha: float

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def statements(self) -> list[str]:
        """The descriptions, to be verified by a judge."""
        return self.frame["description"].tolist()

    def to_frame(self) -> "pandas.DataFrame":
        """A row a feature, in the order chosen.

        Columns: `feature`, `description`, `labelled_by`; `chosen_by`, the score on the training part; and from held-out
        documents: `separation` (mean of y where the feature is there less where it is not) with its interval `ci_low`
        to `ci_high`, `prevalence`, `p_value`, `p_bonferroni`, `q_value` (Benjamini-Hochberg), `coefficient` and
        `coefficient_p` in a regression on all chosen features together. A feature is there where its value is above
        `limit`: 0, or the training median of one that fires in more than half of the documents.
        """
        return self.frame.copy()

    def significant(self, alpha: float | None = None) -> "pandas.DataFrame":
        """The rows whose `p_bonferroni` is below `alpha`."""
        return self.frame[self.frame["p_bonferroni"] < (self.alpha if alpha is None else alpha)].copy()

    @property
    def notes(self) -> list[str]:
        """What a reader must know: what was predicted, how well, and what the tests assume."""
        kind = "AUC" if self.target.binary else "R²"
        what = f"{self.target.names[1]!r} against {self.target.names[0]!r}" if self.target.binary else "numbers"
        notes = [f"y: {what}; {len(self.train):,} texts to choose on, {len(self.test):,} held out to test on.",
                 f"Held-out {kind}: {_shown(self.predictable)} from all features, {_shown(self.joint)} from the "
                 f"{len(self)} chosen by {self.method}, {_shown(self.by_length)} from length alone.",
                 f"{len(self.significant()):,} hold at p < {self.alpha:g} after Bonferroni. "
                 f"Descriptions: {self.labelled_by}."]
        if self.predictable.low <= (0.5 if self.target.binary else 0.0):
            notes.append("Warning: all features together do not predict y beyond chance, so little can be expected of "
                         "single ones.")
        if self.grouped:
            notes.append("Whole groups were held out; the p-values count texts of one group as independent.")
        return notes

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 20) -> "matplotlib.axes.Axes":
        """Draw the separations of the first `top` features with their intervals. Returns the axes."""
        from sparselens.views import score_bars

        shown = self.frame[:top]
        names = [f"{f} · {text}" for f, text in zip(shown["feature"], shown["description"], strict=True)]
        return score_bars(names, shown["separation"], ax, "difference in mean y, held out, with interval",
                          intervals=shown[["ci_low", "ci_high"]])

    def __repr__(self) -> str:
        return "Hypotheses: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[Any] = [("feature", "description", "separation", "interval", "p (Bonferroni)", "prevalence")]
        rows += [(str(r.feature), r.description, r.separation, f"{r.ci_low:+.3f} to {r.ci_high:+.3f}", r.p_bonferroni,
                  r.prevalence) for r in self.frame.itertuples()]
        return report_html(" ".join(self.notes), rows)


def hypothesize(
    emb: "SAEEmbedding",
    y: Any,
    *,
    select: str = "lasso",
    n: int = 20,
    holdout: float = 0.3,
    groups: Any = None,
    labels: Mapping[int, str] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Hypotheses:
    """Find features that go with y, and test each on texts it was not chosen on (after HypotheSAEs; Movva et al.).

    First a ridge regression on all features tells whether y can be predicted at all. Then `n` features are
    chosen on the training part, and on held-out texts each is tested alone (interval and p-value, with Bonferroni and
    Benjamini-Hochberg) and all together.

    Args:
        emb: embedded texts.
        y: a value each: two different ones make classes, more must be numbers.
        select: "lasso" (the first `n` features on the LASSO path, least squares for classes too), "correlation"
            (Pearson's), or "separation" (mean of y where the feature is strongest less where it is absent).
        n: most features.
        holdout: share of texts to test on.
        groups: a key each, such as the author or the prompt; texts of one group stay on one side of the split.
        labels: descriptions by feature; without them the tokens a feature fires on in the training part.
        alpha: level of `significant`.
        seed: of the split.

    Raises:
        InputError: y of another length, with missing values, constant, or neither two classes nor numbers; too few
            texts; an unknown `select`; or groups that leave a part without both classes.
    """
    import pandas as pd

    if n < 1 or not 0 < alpha < 1:
        raise InputError(f"n={n} must be at least 1 and alpha={alpha} between 0 and 1.")
    target = as_target(y, len(emb))
    train, test = split(target, holdout, groups, seed)
    x = abs(emb.matrix).tocsr()
    features, chosen_by = choose(x[train], target.values[train], select, n)
    limit = limits(x[train], features)
    there = x[:, features].toarray() > limit
    tested = separation_tests(there[test], target, test)
    coefficient, coefficient_p = joint_coefficients(there[test], target.values[test])
    texts, by = named(emb.subset(train), features.tolist(), labels)
    frame = pd.DataFrame({
        "feature": features, "description": texts, "labelled_by": by, "chosen_by": chosen_by,
        "separation": tested.separation, "ci_low": tested.low, "ci_high": tested.high,
        "prevalence": there[test].mean(axis=0), "p_value": tested.p,
        "p_bonferroni": np.minimum(tested.p * len(features), 1.0), "q_value": q_values(tested.p),
        "coefficient": coefficient, "coefficient_p": coefficient_p, "limit": limit,
    })
    length = np.log1p(emb.documents["n_tokens"].to_numpy(dtype=np.float64))[:, None]
    return Hypotheses(
        frame, emb, target, train, test,
        predictability(x, target, train, test, seed),
        _together(there.astype(np.float64), target, train, test, seed) if len(features) else None,
        _together(length, target, train, test, seed),
        select, made_by(by), groups is not None, alpha,
    )


def _together(x: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Score:
    """Held-out score of a plain regression on a few columns."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    if target.binary:
        said = LogisticRegression(max_iter=500).fit(x[train], target.values[train]).decision_function(x[test])
    else:
        said = LinearRegression().fit(x[train], target.values[train]).predict(x[test])
    return score(target, test, said, seed)


def _shown(found: Score | None) -> str:
    return "–" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

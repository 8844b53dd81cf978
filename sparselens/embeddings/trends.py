"""Which features come or go over ordered sets of texts, such as the versions of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import check_comparable, made_by, named
from sparselens.embeddings.contrasts import hits
from sparselens.embeddings.statistics import cochran_armitage, q_values
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding

_SHOWN, _LENGTHS_DIFFER = 10, 1.2


@dataclass(frozen=True, eq=False, repr=False)
class Trend:
    """Features that come or go over versions, made by `trend`.

    Attributes:
        frame: a row a feature, as `to_frame` gives it.
        versions: the sets of texts by name, in order.
        at: where each stands.
        alpha: the q-value below which a trend counts.
        tested: how many features were tested, those left out included.
        method: how the descriptions were made.
    """

    frame: "pandas.DataFrame"
    versions: Mapping[str, "SAEEmbedding"]
    at: tuple[float, ...]
    alpha: float
    tested: int
    method: str

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a feature, the largest change first.

        Columns: `feature`, `description`, `freq[name]` (share of documents of each version), `change` (last minus
        first), `slope` (of the weighted line through the shares, for each unit of `at`), `p_value` (Cochran-Armitage)
        and `q_value` (Benjamini-Hochberg over all features tested, those left out by `monotone` included).
        """
        return self.frame.copy()

    def significant(self, alpha: float | None = None) -> "pandas.DataFrame":
        """The rows with `q_value` below `alpha`."""
        return self.frame[self.frame["q_value"] < (self.alpha if alpha is None else alpha)].copy()

    def shares(self) -> np.ndarray:
        """The share of documents of each version, float `[features, versions]`, rows as in the frame."""
        return self.frame[[f"freq[{name}]" for name in self.versions]].to_numpy()

    def documents(self, feature: int, version: str, k: int = 10) -> "pandas.DataFrame":
        """The documents of a version in which a feature is strongest: `document`, `value`, and their columns.

        Raises:
            InputError: there is no such version or feature.
        """
        if version not in self.versions:
            raise InputError(f"there is no version {version!r}; there are {', '.join(self.versions)}.")
        return self.versions[version].top_documents(feature, k)

    @property
    def notes(self) -> list[str]:
        """What a reader must know: sizes and lengths, how many were tested, who described the features."""
        lengths = {name: e.documents["n_tokens"] for name, e in self.versions.items()}
        sizes = [f"{len(n):,} texts of {n.mean():.1f} tokens on average in {name}" for name, n in lengths.items()]
        notes = [f"{'; '.join(sizes)}.",
                 f"{self.tested:,} features tested, {len(self):,} shown; {len(self.significant()):,} of these have a "
                 f"trend at q < {self.alpha:g} (Cochran-Armitage).", f"Descriptions: {self.method}."]
        means = [float(n.mean()) for n in lengths.values()]
        if max(means) > _LENGTHS_DIFFER * min(means):
            notes.append("Warning: the lengths differ by more than 20 %. Longer texts fire more features, so part of "
                         "this is length.")
        return notes

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 8) -> "matplotlib.axes.Axes":
        """Draw the shares of the features that change most, a line each. Returns the axes."""
        from sparselens.views import version_lines

        first = self.frame.head(top)
        labels = [f"{r.feature} · {r.description}" for r in first.itertuples()]
        return version_lines(self.at, self.shares()[:top], labels, list(self.versions), ax)

    def __repr__(self) -> str:
        return "Trend: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[list[Any]] = [["feature", "description", *self.versions, "slope", "q"]]
        for share, r in zip(self.shares()[:_SHOWN], self.frame.head(_SHOWN).itertuples(), strict=True):
            rows.append([r.feature, r.description, *(f"{100 * s:.1f} %" for s in share), f"{r.slope:+.3g}",
                         f"{r.q_value:.2g}"])
        return report_html(" ".join(self.notes), rows)


def trend(
    versions: "Mapping[str, SAEEmbedding] | Sequence[SAEEmbedding]",
    *,
    at: Sequence[float] | None = None,
    monotone: bool = True,
    alpha: float = 0.05,
    threshold: float = 0.0,
    min_tokens: int = 1,
    min_support: int = 5,
    labels: Mapping[int, str] | None = None,
) -> Trend:
    """Find the features that come or go over ordered sets of texts (Jiang, Sun et al., 2025, add the test to it).

    Args:
        versions: embeddings in order, a list or a dict by name, made by the same model and dictionary.
        at: where each version stands, such as a date in days; 0, 1, 2, ... by default.
        monotone: keep only features whose share never falls, or never rises, from one version to the next.
        alpha: the q-value below which a trend counts.
        threshold: a token counts as firing when its code is larger than this in magnitude.
        min_tokens: tokens of a document that must fire.
        min_support: documents, of all versions together, in which a feature must fire to be tested.
        labels: descriptions of features, by number; others are described by the tokens they fire on.

    Raises:
        InputError: fewer than two versions, places that are not in order, or embeddings that cannot be compared.
    """
    import pandas as pd

    sets = dict(versions) if isinstance(versions, Mapping) else {str(i): e for i, e in enumerate(versions)}
    place = np.arange(len(sets), dtype=float) if at is None else np.asarray(at, dtype=float)
    if len(sets) < 2 or place.shape != (len(sets),) or not (np.diff(place) > 0).all():
        raise InputError(f"a trend needs at least two versions, and as many places in rising order; got {len(sets)} "
                         f"versions at {place.tolist()}.")
    embs = list(sets.values())
    for emb in embs[1:]:
        check_comparable(embs[0], emb)
    counts = np.stack([hits(e.fires(threshold, min_tokens)) for e in embs])
    features = np.flatnonzero(counts.sum(axis=0) >= max(min_support, 1))
    counts, totals = counts[:, features], np.array([len(e) for e in embs])
    slope, p = cochran_armitage(counts, totals, place)
    shares = counts / totals[:, None]
    frame = pd.DataFrame({
        "feature": features,
        **{f"freq[{name}]": share for name, share in zip(sets, shares, strict=True)},
        "change": shares[-1] - shares[0],
        "slope": slope,
        "p_value": p,
        "q_value": q_values(p),
    })
    if monotone:
        step = np.diff(shares, axis=0)
        frame = frame[(step >= 0).all(axis=0) | (step <= 0).all(axis=0)]
    order = np.lexsort((frame["feature"], frame["p_value"], -frame["change"].abs()))
    frame = frame.iloc[order].reset_index(drop=True)
    texts, by = named(embs, frame["feature"].tolist(), labels)
    frame.insert(1, "description", texts)
    return Trend(frame, sets, tuple(place.tolist()), alpha, len(features), made_by(by))

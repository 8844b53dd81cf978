"""Training data whose mean sparse codes are nearest to a few examples of a task (MONA; Ma et al., 2025, arXiv
2503.15573).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sparselens.embeddings.codes import as_codes, check_comparable, named, without_signs
from sparselens.embeddings.ranking import bm25_scores
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.views.tokens import TokenView

SIMILARITIES = ("jaccard", "cosine", "euclidean", "bm25", "random")
_ON_CODES = SIMILARITIES[:3]
_PROTOTYPES = ("mean", "per_example_max", "kmeans:m")


def generalized_jaccard(codes: Any, target: Float[np.ndarray, "d"]) -> Float[np.ndarray, "n"]:
    """Weighted Jaccard similarity `sum_k min(z_k, t_k) / sum_k max(z_k, t_k)` of each row with a target, 0 to 1.

    One pass over the entries that are not zero. Two empty rows have the similarity 0.

    Args:
        codes: a sparse or dense matrix `[n, d]`, nothing below 0.
        target: `[d]`, nothing below 0.

    Raises:
        InputError: a negative number, or widths that differ.
    """
    from scipy.sparse import csr_matrix

    codes = csr_matrix(codes)
    if codes.shape[1] != len(target):
        raise InputError(f"codes have {codes.shape[1]} columns and the target {len(target)}.")
    if (codes.data < 0).any() or (target < 0).any():
        raise InputError("the generalised Jaccard similarity needs codes that are nowhere negative: put the positive "
                         "and the negative part side by side first.")
    row = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    shared = np.bincount(row, np.minimum(codes.data, target[codes.indices]), minlength=codes.shape[0])
    whole = np.bincount(row, codes.data, minlength=codes.shape[0]) + target.sum() - shared
    return np.divide(shared, whole, out=np.zeros(len(whole)), where=whole > 0)


@dataclass(frozen=True, eq=False, repr=False)
class DataSelection:
    """Samples chosen for a task, made by `select`.

    Attributes:
        indices: int64 `[k]` positions in the pool, best first.
        scores: float64 `[n]` similarity of every sample of the pool with the target; higher is nearer.
        similarity, prototype: how it was measured.
        prototypes: CSR `[m, d]`, what the samples were held against; None for "bm25" and "random".
        nearest: int64 `[n]` which prototype each sample is nearest to.
        codes, target_codes: CSR `[n, d]` and `[M, d]`, the codes compared (positive and negative parts side by side
            where signs occur); None for "bm25" and "random".
        signed: whether the codes had signs, so that they were split.
        pool, target: the embeddings, where embeddings were given.
    """

    indices: np.ndarray
    scores: np.ndarray
    similarity: str
    prototype: str
    prototypes: "scipy.sparse.csr_matrix | None"
    nearest: np.ndarray
    codes: "scipy.sparse.csr_matrix | None"
    target_codes: "scipy.sparse.csr_matrix | None"
    signed: bool
    pool: "SAEEmbedding | None" = field(default=None)
    target: "SAEEmbedding | None" = field(default=None)

    def __len__(self) -> int:
        return len(self.indices)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a chosen sample, best first: `document`, `score`, and with an embedding its text and columns."""
        import pandas as pd

        frame = pd.DataFrame({"document": self.indices, "score": self.scores[self.indices]})
        if self.pool is not None:
            frame = frame.join(self.pool.documents.iloc[self.indices].reset_index(drop=True))
        return frame

    def subset(self) -> "SAEEmbedding":
        """The chosen samples as an embedding, best first."""
        if self.pool is None:
            raise InputError("the pool was given as a matrix: use .indices.")
        return self.pool.subset(self.indices)

    def explain(self, document: int, labels: Mapping[int, str] | None = None) -> "pandas.DataFrame":
        """What a sample of the pool shares with the target, feature by feature, most first.

        Columns: `feature`, `description`, `labelled_by`, `sign` (-1 for the negative part of a signed code), `value`,
        `target` (of the nearest prototype) and `contribution`. The contributions sum to the score with "jaccard" and
        "cosine", and to minus the squared distance with "euclidean".

        Raises:
            InputError: no such document, or a similarity that looks at no codes.
        """
        import pandas as pd

        codes, prototypes = self._codes("explain")
        if not 0 <= document < codes.shape[0]:
            raise InputError(f"there is no document {document}: the pool has {codes.shape[0]}, counted from 0.")
        z, t = codes[document].toarray()[0], prototypes[int(self.nearest[document])].toarray()[0]
        part = _contributions(z, t, self.similarity)
        order = np.lexsort((np.arange(len(part)), -np.abs(part)))[: np.count_nonzero(part)]
        width = codes.shape[1] // 2 if self.signed else codes.shape[1]
        feature = order % width
        texts, by = named(self.pool, feature.tolist(), labels)
        return pd.DataFrame({"feature": feature, "description": texts, "labelled_by": by,
                             "sign": np.where(order < width, 1, -1), "value": z[order], "target": t[order],
                             "contribution": part[order]})

    def highlight(self, document: int, n: int = 5) -> "TokenView":
        """Show a sample with the tokens marked where the `n` features fire that it shares most with the target."""
        if self.pool is None:
            raise InputError("the pool was given as a matrix: there are no tokens to show.")
        features = list(dict.fromkeys(self.explain(document)["feature"].tolist()))[:n]
        if not features:
            raise InputError(f"document {document} shares nothing with the target.")
        return self.pool.highlight(document, features)

    def coverage(self) -> "pandas.DataFrame":
        """How well each target example is served, a row each.

        Columns: `target` (position), `samples` (chosen samples that are nearer to it than to any other example),
        `nearest` (similarity of the nearest chosen sample), and its `text` if embeddings were given.
        """
        import pandas as pd

        codes, _ = self._codes("coverage")
        assert self.target_codes is not None
        close = _similarities(codes[self.indices], self.target_codes, self.similarity)
        counts = np.bincount(close.argmax(axis=1)[close.max(axis=1) > 0], minlength=close.shape[1])
        frame = pd.DataFrame({"target": np.arange(close.shape[1]), "samples": counts, "nearest": close.max(axis=0)})
        return frame if self.target is None else frame.assign(text=self.target.documents["text"].to_numpy())

    @property
    def notes(self) -> list[str]:
        """What a reader must know: sizes, the cut, lengths, samples that share nothing with the target."""
        cut = self.scores[self.indices[-1]]
        notes = [f"{len(self):,} of {len(self.scores):,} samples, by {self.similarity} (prototype {self.prototype}); "
                 f"the last has {cut:.3g}."]
        if self.pool is not None and self.target is not None:
            n_tokens = self.pool.documents["n_tokens"].to_numpy()
            notes.append(f"Mean tokens: {n_tokens[self.indices].mean():.1f} chosen, {n_tokens.mean():.1f} in the pool, "
                         f"{self.target.documents['n_tokens'].mean():.1f} in the target.")
        nothing = int((self.scores[self.indices] <= 0).sum())
        if nothing:
            notes.append(f"Warning: {nothing:,} of the chosen samples share nothing with the target; "
                         "a smaller ratio leaves them out.")
        return notes

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the scores of the pool as a histogram with the cut. Returns the axes."""
        from sparselens.views import score_histogram

        cut = float(self.scores[self.indices[-1]])
        return score_histogram(self.scores, cut, ax, f"{self.similarity} similarity with the target")

    def __repr__(self) -> str:
        return "DataSelection: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        head = self.to_frame().head(10)
        texts = head["text"] if "text" in head else [""] * len(head)
        rows: list[Any] = [("document", "score", "text")]
        rows += [(int(d), f"{s:.3f}", t) for d, s, t in zip(head["document"], head["score"], texts, strict=True)]
        return report_html(" ".join(self.notes), rows)

    def _codes(self, what: str) -> "tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]":
        if self.codes is None or self.prototypes is None:
            raise InputError(f"{what} needs codes, and similarity={self.similarity!r} looks at none.")
        return self.codes, self.prototypes


def select(
    emb_pool: Any,
    emb_target: Any,
    ratio: float = 0.05,
    *,
    similarity: str = "jaccard",
    prototype: str = "mean",
    dedup: float | None = None,
    seed: int = 0,
) -> DataSelection:
    """Choose the samples of a pool that are nearest to a few examples of a task (MONA; Ma et al., 2025).

    Each sample is the mean of the sparse codes of its tokens; the target examples make one prototype, and the samples
    with the largest generalised Jaccard similarity to it are kept. Ties go to the lower index. Codes with signs are
    split into a positive and a negative part. From embeddings the mean codes are taken, whatever their pooling was:
    sums would prefer samples that are as long as the target's.

    Which similarity is best depends on the data. Jaccard holds up where a few features are loud everywhere and samples
    differ in gain; where neither is so, cosine can be better.

    Args:
        emb_pool, emb_target: two embeddings of one model and dictionary, or two matrices `[n, d]` and `[M, d]`.
        ratio: share of the pool to keep, above 0 and at most 1; at least one sample is kept.
        similarity: "jaccard", "cosine" or "euclidean" (`1 / (1 + distance)`) on codes; or a baseline: "bm25" (the
            target's texts as queries, mean score) or "random". A sample with an empty code has similarity 0.
        prototype: "mean" of the target; "per_example_max", the nearest single example; or "kmeans:m", the nearest of m
            cluster centres, for a target with several parts.
        dedup: leave out samples whose Jaccard similarity with one already chosen is above this (such as 0.9).
        seed: of "random" and of k-means.

    Raises:
        InputError: a ratio out of range, an unknown similarity or prototype, embeddings that cannot be compared, or
            "bm25" without texts. NotFiniteError: NaN or infinite codes.
    """
    _check_arguments(ratio, similarity, prototype, dedup)
    pool, target = (e if hasattr(e, "token_mass") else None for e in (emb_pool, emb_target))
    if (pool is None) != (target is None):
        raise InputError("give two embeddings or two matrices, not one of each.")
    if pool is not None and target is not None:
        check_comparable(pool, target)
    codes, wanted = as_codes(emb_pool, "the pool"), as_codes(emb_target, "the target")
    if codes.shape[1] != wanted.shape[1]:
        raise InputError(f"the pool has {codes.shape[1]} columns and the target {wanted.shape[1]}.")
    signed = bool((codes.data < 0).any() or (wanted.data < 0).any()) and similarity in _ON_CODES
    if signed:
        codes, wanted = without_signs(codes), without_signs(wanted)
    prototypes, nearest = None, np.zeros(codes.shape[0], dtype=np.int64)
    if similarity == "random":
        scores = np.random.default_rng(seed).random(codes.shape[0])
    elif similarity == "bm25":
        scores = _by_words(pool, target)
    else:
        prototypes = _prototypes(wanted, prototype, seed)
        every = _similarities(codes, prototypes, similarity)
        nearest, scores = every.argmax(axis=1), every.max(axis=1)
    order = np.argsort(-scores, kind="stable")
    k = max(1, round(ratio * len(scores)))
    indices = order[:k] if dedup is None else _spread(order, codes, k, dedup, signed or bool((codes.data < 0).any()))
    on_codes = similarity in _ON_CODES
    return DataSelection(indices, scores, similarity, prototype if on_codes else "-", prototypes, nearest,
                     codes if on_codes else None, wanted if on_codes else None, signed, pool, target)


def _check_arguments(ratio: float, similarity: str, prototype: str, dedup: float | None) -> None:
    if not 0 < ratio <= 1:
        raise InputError(f"ratio={ratio} must be above 0 and at most 1.")
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity={similarity!r} is unknown; valid are {', '.join(SIMILARITIES)}."
                         f"{closest(similarity, SIMILARITIES)}")
    if prototype not in _PROTOTYPES[:2] and not re.fullmatch(r"kmeans:[1-9]\d*", prototype):
        raise InputError(f"prototype={prototype!r} is unknown; valid are {', '.join(_PROTOTYPES)} (m a number)."
                         f"{closest(prototype, _PROTOTYPES)}")
    if dedup is not None and not 0 < dedup < 1:
        raise InputError(f"dedup={dedup} must lie between 0 and 1, or be None.")


def _by_words(pool: "SAEEmbedding | None", target: "SAEEmbedding | None") -> np.ndarray:
    if pool is None or target is None:
        raise InputError('similarity="bm25" reads texts: give embeddings, not matrices.')
    return bm25_scores(pool.documents["text"].tolist(), target.documents["text"].tolist()).mean(axis=0)


def _prototypes(codes: "scipy.sparse.csr_matrix", prototype: str, seed: int) -> "scipy.sparse.csr_matrix":
    from scipy.sparse import csr_matrix

    if prototype == "mean":
        return csr_matrix(codes.mean(axis=0))
    if prototype == "per_example_max":
        return codes
    from sklearn.cluster import KMeans

    m = int(prototype.removeprefix("kmeans:"))
    if m > codes.shape[0]:
        raise InputError(f"prototype={prototype!r}: the target has only {codes.shape[0]} examples.")
    return csr_matrix(KMeans(m, n_init=4, random_state=seed).fit(codes).cluster_centers_)


def _similarities(
    codes: "scipy.sparse.csr_matrix", others: "scipy.sparse.csr_matrix", similarity: str
) -> Float[np.ndarray, "n m"]:
    """Similarity of each row with each of `others`; 0 where either row is empty."""
    from scipy.sparse.linalg import norm

    if similarity == "jaccard":
        return np.stack([generalized_jaccard(codes, row.toarray()[0]) for row in others], axis=1)
    dots = (codes @ others.T).toarray()
    a, b = norm(codes, axis=1)[:, None], norm(others, axis=1)[None, :]
    if similarity == "cosine":
        return np.divide(dots, a * b, out=np.zeros_like(dots), where=a * b > 0)
    close = 1 / (1 + np.sqrt(np.maximum(a**2 + b**2 - 2 * dots, 0)))
    return np.where((a > 0) & (b > 0), close, 0.0)


def _contributions(z: np.ndarray, t: np.ndarray, similarity: str) -> np.ndarray:
    """Parts of the similarity of two codes, a number a feature."""
    if similarity == "euclidean":
        return -((z - t) ** 2)
    whole = np.maximum(z, t).sum() if similarity == "jaccard" else np.linalg.norm(z) * np.linalg.norm(t)
    part = np.minimum(z, t) if similarity == "jaccard" else z * t
    return part / whole if whole else np.zeros_like(z)


def _spread(
    order: np.ndarray, codes: "scipy.sparse.csr_matrix", k: int, limit: float, negative: bool
) -> np.ndarray:
    """The first `k` samples in order that are no near-duplicates of one chosen before."""
    codes = without_signs(codes) if negative else codes
    size = np.asarray(codes.sum(axis=1)).ravel()
    chosen: list[int] = []
    for i in order.tolist():
        # the similarity is at most the ratio of the two sums
        alike = [j for j in chosen if min(size[i], size[j]) > limit * max(size[i], size[j])]
        if not alike or generalized_jaccard(codes[alike], codes[i].toarray()[0]).max() <= limit:
            chosen.append(i)
            if len(chosen) == k:
                break
    return np.array(chosen, dtype=np.int64)

"""Documents laid out on a plane, near each other where they share features."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import named
from sparselens.embeddings.contrasts import hits
from sparselens.embeddings.pairs import joint_counts
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.views.maps import ConceptMap

METRICS = ("jaccard", "cosine")
_SPREAD = 0.1  # UMAP's min_dist
_BLOCK = 512  # documents whose distances to all others are held at once
_TOLD = 5  # features named of a choice of documents


def concept_map(
    emb: "SAEEmbedding",
    colour: Any = None,
    *,
    metric: str = "jaccard",
    features: Sequence[int] | np.ndarray | None = None,
    n_neighbors: int = 15,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    title: str | None = None,
) -> "ConceptMap":
    """Lay out documents on a plane by the features that they share (UMAP; McInnes et al., 2018).

    The nearest neighbours are exact, so time grows with the square of the number of documents. A document in which no
    feature in use fires gets no place.

    Args:
        emb: the documents.
        colour: what to colour them by: the name of a column of `emb.documents`, what `cluster` gave, or one label or
            number a document.
        metric: "jaccard" of the sets of features that fire, or "cosine" of the pooled values.
        features: lay out by these features only, such as those of one axis; by default by all.
        n_neighbors: of each document, that should stay near it.
        seed: of the layout. The same seed gives the same map on the same machine.
        labels: descriptions of features, by number; others are described by the tokens they fire on.
        title: a heading.

    Returns:
        A map to look at, with `.explore()` to choose documents on it: `emb.subset(widget.selected)`.

    Raises:
        InputError: an unknown metric, no such column or feature, a colour of another length, or fewer than four
            documents to lay out.
        ImportError: umap-learn is not installed.
    """
    from sparselens.views import map_view

    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is unknown; valid are {', '.join(METRICS)}.{closest(metric, METRICS)}")
    matrix = emb.matrix if features is None else emb.matrix[:, [emb._feature(int(f)) for f in features]]
    placed = np.flatnonzero(np.diff(matrix.indptr))
    if len(placed) < 4:
        raise InputError(f"a map needs at least four documents in which features fire; here are {len(placed)}.")
    values, name = _colour(emb, colour)
    xy = np.full((len(emb), 2), np.nan, dtype=np.float32)
    xy[placed] = layout(matrix[placed], metric, n_neighbors, seed)
    used = "all features" if features is None else f"{matrix.shape[1]:,} chosen features"
    notes = [f"UMAP of {len(placed):,} documents by {metric} distance over {used}, seed {seed}. Near documents share "
             "features; how far apart the groups lie means little."]
    if left := len(emb) - len(placed):
        notes.append(f"{left:,} documents in which none of these features fires have no place.")
    guide = _Guide(emb, labels)
    return map_view(xy, emb.documents["text"].tolist(), values, name=name, title=title, notes=notes,
                    about=guide.about, find=guide.find)


def _colour(emb: "SAEEmbedding", colour: Any) -> tuple[Any, str]:
    """One value a document, and what the values are called."""
    if colour is None:
        return None, ""
    if isinstance(colour, str):
        columns = [str(name) for name in emb.documents.columns]
        if colour not in columns:
            raise InputError(f"the documents have no column {colour!r}; they have {', '.join(columns)}."
                             f"{closest(colour, columns)}")
        return emb.documents[colour], colour
    if hasattr(colour, "centrality"):  # what `cluster` gave
        return colour.labels, "cluster"
    return colour, str(getattr(colour, "name", None) or "")


def layout(matrix: "scipy.sparse.csr_matrix", metric: str, n_neighbors: int, seed: int) -> np.ndarray:
    """Places of documents on a plane, float32 `[n, 2]`.

    Raises:
        ImportError: umap-learn is not installed.
    """
    import warnings

    try:
        import umap
    except ImportError as error:
        raise ImportError("the map needs umap-learn, which is not installed: run `pip install 'sparselens[map]'` and "
                          "restart the kernel.") from error
    k = min(n_neighbors, matrix.shape[0] - 1)
    near = neighbours(matrix, metric, k)
    start = "spectral" if matrix.shape[0] > 2 * k else "random"  # the former needs more points than a handful
    reducer = umap.UMAP(n_neighbors=k, min_dist=_SPREAD, metric=metric, random_state=seed, n_jobs=1, init=start,
                        precomputed_knn=near, force_approximation_algorithm=True)
    with warnings.catch_warnings():  # that new documents cannot be added to the map; they never are
        warnings.simplefilter("ignore")
        return reducer.fit_transform(matrix).astype(np.float32)


def neighbours(matrix: "scipy.sparse.csr_matrix", metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each, itself the first, as UMAP wants them.

    Args:
        matrix: `[n, d]`, no row empty.
        metric: "jaccard" of which entries are not 0, or "cosine".
        k: how many.

    Returns:
        Their numbers `[n, k]` and distances float32 `[n, k]`, nearest first; of equal ones the lower number.
    """
    rows = (matrix != 0).astype(np.float32) if metric == "jaccard" else matrix.astype(np.float32)
    size = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    columns = rows.T.tocsr()
    index, distance = [], []
    for start in range(0, rows.shape[0], _BLOCK):
        span = slice(start, start + _BLOCK)
        common = joint_counts(rows[span].T.tocsr(), columns)
        if metric == "jaccard":
            apart = 1 - common / (size[span, None] + size - common)
        else:
            apart = 1 - common / np.sqrt(size[span, None] * size)
        itself = np.arange(len(apart))
        apart[itself, start + itself] = -1.0
        best = np.argsort(apart, axis=1, kind="stable")[:, :k]
        index.append(best)
        distance.append(np.take_along_axis(apart, best, axis=1).clip(0, None).astype(np.float32))
    return np.concatenate(index), np.concatenate(distance)


class _Guide:
    """Answers what a map asks about documents and features."""

    def __init__(self, emb: "SAEEmbedding", labels: Mapping[int, str] | None):
        self.emb, self.labels = emb, labels

    @cached_property
    def fires(self) -> "scipy.sparse.csr_matrix":
        return self.emb.fires()

    @cached_property
    def total(self) -> np.ndarray:
        return hits(self.fires)

    @cached_property
    def columns(self) -> "scipy.sparse.csc_matrix":
        return self.fires.tocsc()

    def about(self, documents: np.ndarray) -> list[tuple[int, str, float, float]]:
        """The features with the largest z-score of their share inside against their share outside."""
        n, inside = len(self.emb), hits(self.fires[documents])
        n_in, n_out = len(documents), n - len(documents)
        share, other = inside / n_in, (self.total - inside) / n_out
        pooled = self.total / n
        error = np.sqrt(pooled * (1 - pooled) * (1 / n_in + 1 / n_out))
        z = np.divide(share - other, error, out=np.zeros_like(share), where=error > 0)
        best = [int(f) for f in np.argsort(-z, kind="stable")[:_TOLD] if z[f] > 0]
        texts, _ = named(self.emb, best, self.labels)
        return [(f, text, float(share[f]), float(other[f])) for f, text in zip(best, texts, strict=True)]

    def find(self, feature: int) -> np.ndarray:
        """The documents in which a feature fires."""
        feature = self.emb._feature(feature)
        return np.sort(self.columns.indices[self.columns.indptr[feature] : self.columns.indptr[feature + 1]])

"""Features that fire in the same documents: joint counts, and pairs that one token explains."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparselens.embeddings.contrasts import hits
from sparselens.embeddings.statistics import npmi
from sparselens.embeddings.store import entries_of

if TYPE_CHECKING:
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding

_ROWS = 512  # of the matrix of joint counts that are looked at, or of documents that are multiplied, at once
_DENSE = 0.08  # share of entries above which a dense product is faster than a sparse one
_CHUNK = 4096  # pairs whose peaks are compared at once


class Pairs(NamedTuple):
    """Pairs of features.

    Attributes:
        a, b: int64 `[pairs]` the features.
        both, n_a, n_b: int64 `[pairs]` documents with both, and with each.
        npmi: float64 `[pairs]`.
        tests: number of all candidate pairs.
    """

    a: np.ndarray
    b: np.ndarray
    both: np.ndarray
    n_a: np.ndarray
    n_b: np.ndarray
    npmi: np.ndarray
    tests: int


def candidates(fires: "scipy.sparse.csr_matrix", support: int, max_frequency: float, top: int) -> Int[np.ndarray, "n"]:
    """The `top` most frequent features among those with `support` documents and no more than `max_frequency`."""
    n = hits(fires)
    inside = np.flatnonzero((n >= max(support, 1)) & (n <= max_frequency * fires.shape[0]))
    return np.sort(inside[np.argsort(-n[inside], kind="stable")[:top]])


def joint_counts(
    a: "scipy.sparse.csr_matrix", b: "scipy.sparse.csr_matrix"
) -> Float[np.ndarray, "f_a f_b"]:
    """In how many rows each feature of one side meets each of the other, float32 `[f_a, f_b]` (exact to 16 million).

    Args:
        a, b: bool, as many rows.
    """
    out = np.zeros((a.shape[1], b.shape[1]), dtype=np.float32)
    size = a.shape[0] * max(a.shape[1], 1), b.shape[0] * max(b.shape[1], 1)
    if a.nnz / max(size[0], 1) * b.nnz / max(size[1], 1) > _DENSE**2:
        for start in range(0, a.shape[0], _ROWS):
            left, right = (m[start : start + _ROWS].toarray().astype(np.float32) for m in (a, b))
            out += left.T @ right
        return out
    columns, right = a.astype(np.float32).T.tocsr(), b.astype(np.float32)
    for start in range(0, a.shape[1], _ROWS):
        out[start : start + _ROWS] = (columns[start : start + _ROWS] @ right).toarray()
    return out


def find_pairs(
    a: "scipy.sparse.csr_matrix",
    b: "scipy.sparse.csr_matrix | None",
    *,
    min_support: int,
    min_npmi: float,
    max_frequency: float,
    top: int,
) -> Pairs:
    """The pairs of features that meet in enough documents and go together strongly enough.

    Args:
        a: which features fire in which documents, bool `[documents, d_sae]`.
        b: the same of the other side of each document; None for pairs within `a`, each counted once.
        min_support, min_npmi, max_frequency, top: as for `correlate`.
    """
    sides = [a] if b is None else [a, b]
    chosen = [candidates(fires, min_support, max_frequency, top) for fires in sides]
    parts = [fires[:, features] for fires, features in zip(sides, chosen, strict=True)]
    n_a, n_b = hits(parts[0]), hits(parts[-1])
    joint = joint_counts(parts[0], parts[-1])
    found = []
    for start in range(0, len(joint), _ROWS):
        i, j = np.nonzero(joint[start : start + _ROWS] >= max(min_support, 1))
        i += start
        if b is None:
            i, j = i[i < j], j[i < j]
        both = joint[i, j].astype(np.int64)
        strength = npmi(both, n_a[i], n_b[j], a.shape[0])
        kept = strength >= min_npmi
        found.append((i[kept], j[kept], both[kept], strength[kept]))
    empty = np.zeros(0, dtype=np.int64)
    i, j, both, strength = (np.concatenate(x) for x in zip(*found, (empty, empty, empty, empty * 1.0), strict=True))
    sizes = len(chosen[0]), len(chosen[-1])
    tests = sizes[0] * (sizes[0] - 1) // 2 if b is None else sizes[0] * sizes[1]
    return Pairs(chosen[0][i], chosen[-1][j], both, n_a[i], n_b[j], strength, tests)


def same_token(
    emb: "SAEEmbedding", fires: "scipy.sparse.csr_matrix", a: Int[np.ndarray, "pairs"], b: Int[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """The share of the documents with both features in which they are strongest on the same or on adjacent tokens.

    Args:
        emb: the documents.
        fires: which features count as firing, bool `[documents, d_sae]`.
        a, b: the features of each pair.
    """
    features, at = np.unique(np.r_[a, b], return_inverse=True)
    peak = _peaks(emb, features).multiply(fires[:, features]).tocsc()
    left, right = at[: len(a)], at[len(a) :]
    out = np.zeros(len(a))
    for start in range(0, len(a), _CHUNK):
        span = slice(start, start + _CHUNK)
        x, y = peak[:, left[span]], peak[:, right[span]]
        x, y = x.multiply(y != 0).tocsc(), y.multiply(x != 0).tocsc()
        x.sort_indices()
        y.sort_indices()
        column = np.repeat(np.arange(x.shape[1]), np.diff(x.indptr))
        near = np.abs(x.data - y.data) <= 1
        both = np.bincount(column, minlength=x.shape[1])
        out[span] = np.bincount(column, near, minlength=x.shape[1]) / np.maximum(both, 1)
    return out


def _peaks(emb: "SAEEmbedding", features: np.ndarray) -> "scipy.sparse.csr_matrix":
    """Where each feature is strongest in each document, int64 `[documents, n]`: token number plus 1, of the first."""
    from scipy.sparse import csr_matrix

    place = np.full(emb.d_sae, -1)
    place[features] = np.arange(len(features))
    rows, columns, tokens = [], [], []
    for where, table in emb._tables():
        entries = entries_of(table)
        kept = np.flatnonzero(place[entries.feature] >= 0)
        document, token, feature, value = (part[kept] for part in entries)
        order = np.lexsort((token, -np.abs(value), feature, document))
        document, feature = document[order], feature[order]
        first = np.r_[True, (np.diff(document) != 0) | (np.diff(feature) != 0)][: len(order)]
        rows.append(where[document[first]])
        columns.append(place[feature[first]])
        tokens.append(token[order][first] + 1)
    at = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((np.concatenate(tokens), at), shape=(len(emb), len(features)))

"""Rankings: by words (BM25), joined (reciprocal rank fusion), and judged (average precision, rank-biased overlap)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from sparselens.errors import InputError

RRF = 60  # Cormack et al., 2009


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> Float[np.ndarray, "queries texts"]:
    """BM25 scores of each text for each query, `[queries, texts]`, by bm25s with English stop words left out.

    A text that shares no word with the query has 0.
    """
    import bm25s

    out = np.zeros((len(queries), len(texts)))
    words = _words(texts)
    if not any(words):
        return out
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    for row, query in zip(out, _words(queries), strict=True):
        known = [word for word in query if word in index.vocab_dict]
        if known:
            row[:] = index.get_scores(known)
    return out


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)


def ranks_of(scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Rank of each, 1 for the highest score; ties go to the lower index, and what has no score above 0 has `inf`."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    return np.where(scores > 0, ranks, np.inf)


def fuse_ranks(ranks: Sequence[Float[np.ndarray, "n"]], constant: float = RRF) -> Float[np.ndarray, "n"]:
    """Reciprocal rank fusion, `sum of 1 / (constant + rank)` (Cormack et al., 2009); a rank of `inf` adds nothing."""
    return np.sum([1 / (constant + r) for r in ranks], axis=0)


def average_precision(scores: Shaped[np.ndarray, "n"], relevant: Any) -> float:
    """Mean over the relevant items of the precision at their rank.

    Items with equal scores share the rank of the last of them, so their order does not matter.

    Args:
        scores: higher is better, one an item.
        relevant: bool, one an item.

    Raises:
        InputError: nothing is relevant, or the lengths differ.
    """
    truth = _truth(scores, relevant)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # the last of each group of ties
    found = np.cumsum(truth[order])[ends]
    return float((np.diff(np.r_[0, found]) * found / (ends + 1)).sum() / truth.sum())


def precision_at(scores: Shaped[np.ndarray, "n"], relevant: Any, k: int) -> float:
    """Share of relevant items among the first k; ties go to the lower index.

    Raises:
        InputError: the lengths differ, nothing is relevant, or k is below 1.
    """
    if k < 1:
        raise InputError(f"k={k} must be at least 1.")
    return float(_truth(scores, relevant)[np.argsort(-scores, kind="stable")[:k]].mean())


def _truth(scores: np.ndarray, relevant: Any) -> Bool[np.ndarray, "n"]:
    truth = np.asarray(relevant, dtype=bool)
    if truth.shape != scores.shape:
        raise InputError(f"there are {len(scores)} scores and {truth.size} marks of relevance.")
    if not truth.any():
        raise InputError("no item is relevant, so no precision can be told.")
    return truth


def rank_biased_overlap(a: Sequence[int], b: Sequence[int], p: float = 0.98) -> float:
    """How much two rankings agree, 0 to 1, the top counting more (extrapolated RBO; Webber et al., 2010, eq. 32).

    Args:
        a, b: items, best first; cut to the shorter of the two.
        p: weight of depth d is `p ** d`.

    Raises:
        InputError: an empty ranking, an item that comes twice, or p out of range.
    """
    depth = min(len(a), len(b))
    if not depth or not 0 < p < 1 or len(set(a)) < len(a) or len(set(b)) < len(b):
        raise InputError("give two rankings of at least one item, each item once, and p between 0 and 1.")
    overlap = np.array([len(set(a[:d]) & set(b[:d])) for d in range(1, depth + 1)])
    d = np.arange(1, depth + 1)
    return float(overlap[-1] / depth * p**depth + (1 - p) / p * (overlap / d * p**d).sum())

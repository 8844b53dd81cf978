"""Codes of tokens pooled to one sparse vector per document."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparselens.errors import InputError, closest

POOLINGS = ("max", "mean", "sum", "binarize", "count")


class Entries(NamedTuple):
    """Active codes, one entry each: `value` of `feature` at `token`, and the `document` of that token.

    All `[n]`, sorted by token; the tokens of a document stand together. Small integer types sort much faster.
    """

    document: Int[np.ndarray, "n"]
    token: Int[np.ndarray, "n"]
    feature: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]


class Pooled(NamedTuple):
    """One entry for each feature that fires in a document, all `[n]`, sorted by document, then by feature."""

    document: Int[np.ndarray, "n"]
    feature: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]


def check_pooling(pooling: str, threshold: float = 0.0, min_tokens: int = 1) -> None:
    """Raise `InputError` for an unknown pooling (with the valid ones) or limits that make no sense."""
    if pooling not in POOLINGS:
        raise InputError(f"pooling={pooling!r} is unknown; valid are {', '.join(POOLINGS)}."
                         f"{closest(pooling, POOLINGS)}")
    if not threshold >= 0 or min_tokens < 1:
        raise InputError(f"threshold={threshold} and min_tokens={min_tokens}: they must be at least 0 and 1.")


def pool(
    entries: Entries,
    pooling: str,
    n_tokens: Int[np.ndarray, "documents"],
    threshold: float = 0.0,
    min_tokens: int = 1,
) -> Pooled:
    """Pool the codes of the tokens of each document.

    `max` is the value of largest magnitude, with its sign: for codes that are never negative, the largest. `mean`
    divides the sum by all pooled tokens of the document, active or not. `binarize` is 1 where a feature fires at
    all, and `count` the number of tokens it fires on. A feature that fires has an entry, even if its sum is zero.

    Args:
        entries: active codes (values not zero).
        pooling: one of `POOLINGS`.
        n_tokens: how many tokens of each document are pooled.
        threshold: a token counts when the magnitude of its code is above this; other codes are left out.
        min_tokens: a feature has an entry in a document when this many of its tokens count.
    """
    check_pooling(pooling, threshold, min_tokens)
    if threshold:
        kept = np.abs(entries.value) > threshold
        entries = Entries(*(column[kept] for column in entries))
    if not len(entries.value):
        return Pooled(entries.document, entries.feature, entries.value.astype(np.float32))
    order = np.lexsort((entries.feature, entries.document))  # stable: tokens stay in order
    document, feature, value = entries.document[order], entries.feature[order], entries.value[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(document) != 0) | (np.diff(feature) != 0)])
    document, feature = document[starts], feature[starts]
    times = np.diff(np.r_[starts, len(value)])
    if pooling == "max":
        high, low = np.maximum.reduceat(value, starts), np.minimum.reduceat(value, starts)
        out = np.where(high >= -low, high, low)
    elif pooling == "binarize":
        out = np.ones(len(starts), dtype=np.float32)
    elif pooling == "count":
        out = times
    else:
        out = np.add.reduceat(value, starts, dtype=np.float64)
        if pooling == "mean":
            out /= n_tokens[document]
    enough = times >= min_tokens
    return Pooled(document[enough], feature[enough], out[enough].astype(np.float32))

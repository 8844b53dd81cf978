"""Documents counted in several sets and tested feature by feature: the arithmetic of `diff`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparselens.embeddings.statistics import mcnemar, newcombe, newcombe_paired, p_values, q_values
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding

COLUMNS = ["feature", "description", "freq_a", "freq_b", "difference", "ci_low", "ci_high", "p_value", "q_value"]
OTHERS = ("max_freq", "any_aligned")


class Tested(NamedTuple):
    """Two sets compared, a number a feature each."""

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def hits(fires: "scipy.sparse.csr_matrix") -> np.ndarray:
    """In how many documents each feature fires, int64 `[d_sae]`."""
    return np.bincount(fires.indices, minlength=fires.shape[1])


def contrast(
    a: "scipy.sparse.csr_matrix",
    others: Mapping[str, "scipy.sparse.csr_matrix"],
    *,
    way: str,
    paired: bool,
    alpha: float,
    min_support: int,
) -> "pandas.DataFrame":
    """Compare a set with one or several others.

    Args:
        a, others: which features fire in which documents, bool `[documents, d_sae]`.
        way: with several others, one of `OTHERS`.
        paired: rows of all sets belong together.
        alpha: 1 minus the confidence of the intervals.
        min_support: documents of all sets together in which a feature must fire to be tested.

    Returns:
        The columns of `diff` but for the description, and `freq[name]` for each of several others, by feature.
    """
    import pandas as pd

    counts = {name: hits(fires) for name, fires in others.items()}
    total = hits(a) + np.sum(list(counts.values()), axis=0)
    features = np.flatnonzero(total >= max(min_support, 1))
    against = _any_and_all(list(others.values())) if way == "any_aligned" else list(others.values())
    paired = paired or way == "any_aligned"
    tests = [_two_sets(a, b, features, paired, alpha / len(against)) for b in against]
    tested = _nearest(tests) if len(tests) > 1 else tests[0]
    freq_a = hits(a)[features] / a.shape[0]
    columns = {
        "feature": features,
        "freq_a": freq_a,
        "freq_b": freq_a - tested.difference if len(tests) > 1 else hits(against[0])[features] / against[0].shape[0],
        "difference": tested.difference,
        "ci_low": tested.low,
        "ci_high": tested.high,
        "p_value": tested.p,
        "q_value": q_values(tested.p),
    }
    if len(others) > 1:
        columns |= {f"freq[{name}]": n[features] / others[name].shape[0] for name, n in counts.items()}
    return pd.DataFrame(columns)


def _two_sets(
    a: "scipy.sparse.csr_matrix", b: "scipy.sparse.csr_matrix", features: np.ndarray, paired: bool, alpha: float
) -> Tested:
    n_a, n_b = a.shape[0], b.shape[0]
    hits_a, hits_b = hits(a)[features], hits(b)[features]
    if paired:
        both = hits(a.multiply(b).tocsr())[features]
        low, high = newcombe_paired(both, hits_a, hits_b, n_a, alpha)
        p = mcnemar(hits_a - both, hits_b - both)
    else:
        low, high = newcombe(hits_a, n_a, hits_b, n_b, alpha)
        p = p_values(hits_a, n_a, hits_b, n_b)
    return Tested(hits_a / n_a - hits_b / n_b, low, high, p)


def _nearest(tests: Sequence[Tested]) -> Tested:
    """The distance from the range of several others: 0 inside, else from the nearest of them.

    It grows with each single difference, so intervals that hold for all differences together give one for it. Above
    (below) all others it counts as found only if it is against each of them: the largest p-value.
    """
    difference, low, high, p = (np.stack(parts) for parts in zip(*tests, strict=True))

    def distance(x: np.ndarray) -> np.ndarray:
        return np.maximum(x.min(axis=0), 0) + np.minimum(x.max(axis=0), 0)

    outside = (difference.min(axis=0) > 0) | (difference.max(axis=0) < 0)
    return Tested(distance(difference), distance(low), distance(high), np.where(outside, p.max(axis=0), 1.0))


def _any_and_all(others: Sequence["scipy.sparse.csr_matrix"]) -> list["scipy.sparse.csr_matrix"]:
    """In which rows any of the others fires, and in which all of them do."""
    times = sum((fires.astype(np.int32) for fires in others[1:]), others[0].astype(np.int32))
    both = [(times > 0).tocsr(), (times >= len(others)).tocsr()]
    for fires in both:
        fires.eliminate_zeros()
    return both


def arranged(
    frame: "pandas.DataFrame", coverage: tuple[float, float], relative: bool
) -> "pandas.DataFrame":
    """Rows whose frequencies lie within `coverage`, the largest difference first."""
    shares = frame[["freq_a", "freq_b"]]
    frame = frame[(shares.min(axis=1) >= coverage[0]) & (shares.max(axis=1) <= coverage[1])]
    size = frame["difference"]
    if relative:
        largest = frame[["freq_a", "freq_b"]].max(axis=1)
        size = (frame["difference"] / largest.where(largest > 0, 1.0)).rename("relative")
        frame = frame.join(size)
    order = np.lexsort((frame["feature"], frame["p_value"], -size.abs()))
    return frame.iloc[order].reset_index(drop=True)


def how(n_others: int, way: str, paired: bool) -> str:
    """How the p-values were made, in a few words."""
    if way == "any_aligned":
        return f"McNemar's exact test, row by row, against rows where any and where all of {n_others} others fire"
    test = "McNemar's exact test, row by row" if paired else "Fisher's exact test, or a z-test for large counts"
    return test if n_others == 1 else f"{test}, against each of {n_others} others"


def check_way(way: str, coverage: tuple[float, float], min_support: int, alpha: float) -> None:
    """Check arguments of `diff`."""
    if way not in OTHERS:
        raise InputError(f"others={way!r} is unknown; valid are {', '.join(OTHERS)}.{closest(way, OTHERS)}")
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} must lie between 0 and 1.")
    if not 0 <= coverage[0] <= coverage[1] <= 1 or min_support < 1:
        raise InputError(f"coverage={coverage} must be two shares in order, from 0 to 1, and min_support={min_support} "
                         "at least 1.")


def check_aligned(sets: Mapping[str, "SAEEmbedding"], column: str | None) -> None:
    """Refuse sets whose rows do not belong together.

    Args:
        sets: embeddings by name.
        column: a carried column that must agree row by row; None to look at the numbers of texts only.

    Raises:
        InputError: the numbers of texts differ, a set has no such column, or a row disagrees.
    """
    sizes = {name: len(e) for name, e in sets.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{n:,} in {name}" for name, n in sizes.items())
        raise InputError(f"row by row needs as many texts in each set, in the same order; there are {said}. Take "
                         "subsets that belong together, or compare the sets as wholes.")
    if column is None:
        return
    first, *rest = [carried(e, column) for e in sets.values()]
    for name, values in zip(list(sets)[1:], rest, strict=True):
        if (bad := np.flatnonzero(values != first)).size:
            raise InputError(f"row {bad[0]} does not belong together: {column} is {first[bad[0]]!s:.60} in "
                             f"{next(iter(sets))} and {values[bad[0]]!s:.60} in {name}. Bring both in the same order.")


def carried(emb: "SAEEmbedding", column: str) -> np.ndarray:
    """A carried column of an embedding.

    Raises:
        InputError: there is no such column.
    """
    names = [str(c) for c in emb.documents.columns]
    if column not in names:
        raise InputError(f"the documents have no column {column!r}; they have {', '.join(names)}. Columns of a frame "
                         f"given to sl.embed are carried along.{closest(column, names)}")
    return emb.documents[column].to_numpy()

"""Proportions compared and counts that go together, for thousands of features at once."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from sparselens.errors import InputError

_SMALL = 10  # expected counts below this are tested exactly


def wilson(
    hits: Int[np.ndarray, "n"], total: int, alpha: float = 0.05
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Wilson's score interval of a proportion `hits / total` (Wilson, 1927). Returns the lower and upper bounds.

    Args:
        hits: how many of `total` documents.
        total: number of documents.
        alpha: 1 minus the confidence.
    """
    from scipy.special import ndtri

    z = float(ndtri(1 - alpha / 2))
    p = hits / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def newcombe(
    hits_a: Int[np.ndarray, "n"], n_a: int, hits_b: Int[np.ndarray, "n"], n_b: int, alpha: float = 0.05
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Interval of the difference of two proportions from their Wilson intervals (Newcombe, 1998, method 10).

    Args:
        hits_a, hits_b: how many of the `n_a` and `n_b` documents.
        alpha: 1 minus the confidence.
    """
    a, b = hits_a / n_a, hits_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(hits_a, n_a, alpha), wilson(hits_b, n_b, alpha)
    low = a - b - np.hypot(a - low_a, high_b - b)
    return low, a - b + np.hypot(high_a - a, b - low_b)


def p_values(
    hits_a: Int[np.ndarray, "n"], n_a: int, hits_b: Int[np.ndarray, "n"], n_b: int
) -> Float[np.ndarray, "n"]:
    """Two-sided p-values that two proportions are equal.

    Fisher's exact test where an expected count is below 10, else the two-proportion z-test with pooled variance. Each
    pair of counts is worked out once.

    Args:
        hits_a, hits_b: how many of the `n_a` and `n_b` documents.
    """
    if not len(hits_a):
        return np.zeros(0)
    pairs, back = np.unique(np.stack([hits_a, hits_b]), axis=1, return_inverse=True)
    both = pairs.sum(axis=0)
    out = _z_test(pairs, n_a, n_b)
    expected = np.minimum(both, n_a + n_b - both) * min(n_a, n_b) / (n_a + n_b)
    for total in np.unique(both[expected < _SMALL]):
        same = both == total
        out[same] = _fisher(pairs[0, same], int(total), n_a, n_b)
    return out[back.reshape(-1)]


def _z_test(pairs: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    from scipy.special import ndtr

    p = pairs.sum(axis=0) / (n_a + n_b)
    deviation = np.sqrt(p * (1 - p) * (1 / n_a + 1 / n_b))
    z = np.divide(pairs[0] / n_a - pairs[1] / n_b, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return 2 * ndtr(-np.abs(z))


def _fisher(hits_a: np.ndarray, total: int, n_a: int, n_b: int) -> np.ndarray:
    """Fisher's test for tables that share their margins: the chance of all tables no likelier than the one seen."""
    from scipy.stats import hypergeom

    first, last = max(0, total - n_b), min(total, n_a)
    chance = hypergeom.pmf(np.arange(first, last + 1), n_a + n_b, total, n_a)
    seen = chance[hits_a - first]
    as_rare = chance[None, :] <= seen[:, None] * (1 + 1e-7)  # equal chances differ in the last digits
    return np.minimum((chance * as_rare).sum(axis=1), 1.0)


def newcombe_paired(
    both: Int[np.ndarray, "n"],
    hits_a: Int[np.ndarray, "n"],
    hits_b: Int[np.ndarray, "n"],
    total: int,
    alpha: float = 0.05,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Interval of the difference of two proportions of the same documents (Newcombe, 1998, paired data, method 10).

    As `newcombe`, less what the correlation of the two sides takes away.

    Args:
        both: documents in which both sides are hit.
        hits_a, hits_b: documents in which each side is.
        total: number of documents.
        alpha: 1 minus the confidence.
    """
    a, b = hits_a / total, hits_b / total
    (low_a, high_a), (low_b, high_b) = wilson(hits_a, total, alpha), wilson(hits_b, total, alpha)
    # (both * neither - only a * only b) is total * both - hits_a * hits_b
    cross = total * both.astype(np.float64) - hits_a.astype(np.float64) * hits_b
    cross = np.where(cross > 0, np.maximum(cross - total / 2, 0), cross)
    scale = np.sqrt(hits_a * (total - hits_a)) * np.sqrt(hits_b * (total - hits_b))
    phi = np.divide(cross, scale, out=np.zeros(len(cross)), where=scale > 0)

    def reach(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x**2 - 2 * phi * x * y + y**2, 0))

    return a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)


def mcnemar(only_a: Int[np.ndarray, "n"], only_b: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Two-sided p-values that two proportions of the same documents are equal: McNemar's test, exact.

    Args:
        only_a, only_b: documents in which one side is hit and the other is not.
    """
    from scipy.special import bdtr

    return np.minimum(2 * bdtr(np.minimum(only_a, only_b), only_a + only_b, 0.5), 1.0)


def cochran_armitage(
    hits: Int[np.ndarray, "versions n"], totals: Int[np.ndarray, "versions"], at: Float[np.ndarray, "versions"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Slope of proportions over ordered versions, and the two-sided p-value that there is none (Armitage, 1955).

    With two versions the test is the two-proportion z-test. A proportion of 0 or 1 throughout has p-value 1.

    Args:
        hits: how many documents of each version.
        totals: documents of each version.
        at: where each version stands; not all at the same place.

    Returns:
        The slope of the weighted least-squares line (share of documents for each unit of `at`), and the p-values.
    """
    from scipy.special import ndtr

    n = totals.sum()
    share = hits.sum(axis=0) / n
    centred = at - (totals * at).sum() / n
    spread = (totals * centred**2).sum()
    score = centred @ hits
    deviation = np.sqrt(share * (1 - share) * spread)
    z = np.divide(score, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return score / spread, 2 * ndtr(-np.abs(z))


def joint_p_values(
    both: Int[np.ndarray, "n"], hits_a: Int[np.ndarray, "n"], hits_b: Int[np.ndarray, "n"], total: int
) -> Float[np.ndarray, "n"]:
    """P-values that two independent features meet in as many documents: Fisher's exact test, one-sided.

    The chance of the count seen, and of each larger one from the one before, until they add nothing.

    Args:
        both: documents with both features.
        hits_a, hits_b: documents with each, at least `both`.
        total: number of documents.
    """
    from scipy.special import betaln

    def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        return -betaln(n - k + 1, k + 1) - np.log(n + 1)

    rest = np.full(len(both), total, dtype=np.float64) - hits_a
    first = log_choose(hits_a, both) + log_choose(rest, hits_b - both)
    out = np.exp(first - log_choose(rest + hits_a, hits_b))
    active = np.arange(len(both))
    term, x = out.copy(), both.astype(np.float64)
    a, b = hits_a.astype(np.float64), hits_b.astype(np.float64)
    while len(active):
        term = term * (a - x) * (b - x) / ((x + 1) * (total - a - b + x + 1))
        out[active] += term
        x = x + 1
        # terms fall ever faster once they fall at all
        alive = (term > 1e-14 * out[active]) | ((a - x) * (b - x) > (x + 1) * (total - a - b + x + 1))
        alive &= (x < a) & (x < b)
        active, term, x, a, b = (v[alive] for v in (active, term, x, a, b))
    return np.minimum(out, 1.0)


def npmi(
    both: Int[np.ndarray, "*n"], hits_a: Int[np.ndarray, "*n"], hits_b: Int[np.ndarray, "*n"], total: int
) -> Float[np.ndarray, "*n"]:
    """Normalised pointwise mutual information, `ln(p_ab / (p_a p_b)) / -ln p_ab` (Bouma, 2009).

    1 where neither occurs without the other, 0 where they are independent, -1 where they never meet; NaN where one of
    them never occurs at all.

    Args:
        both: documents with both features.
        hits_a, hits_b: documents with each.
        total: number of documents.
    """
    both, hits_a, hits_b = np.broadcast_arrays(both, hits_a, hits_b)
    meet = (both > 0) & (both < total)
    p = both[meet] / total
    out = np.where(both > 0, 1.0, -1.0)
    out[meet] = np.log(p / (hits_a[meet] / total) / (hits_b[meet] / total)) / -np.log(p)
    out[(hits_a == 0) | (hits_b == 0)] = np.nan
    return out


def q_values(p: Float[np.ndarray, "n"], tests: int | None = None) -> Float[np.ndarray, "n"]:
    """Benjamini-Hochberg q-values.

    Args:
        p: p-values.
        tests: number of all tests, where `p` holds only some of them; the others count as p = 1.
    """
    from scipy.stats import false_discovery_control

    if not len(p):
        return p
    q = np.asarray(false_discovery_control(p))
    return q if tests is None else np.minimum(q * (tests / len(p)), 1.0)


def match_lengths(
    a: Shaped[np.ndarray, "n_a"], b: Shaped[np.ndarray, "n_b"], seed: int = 0
) -> tuple[Bool[np.ndarray, "n_a"], Bool[np.ndarray, "n_b"]]:
    """Choose as many documents of each length from both sides.

    Lengths within 10 % of each other count as the same (up to 10 tokens they must be equal). Of each length as many
    are drawn at random from either side as the other has.

    Args:
        a, b: lengths of the documents.
        seed: of the draw.

    Returns:
        Masks of the chosen documents.

    Raises:
        InputError: no length occurs on both sides.
    """
    random = np.random.default_rng(seed)
    masks = np.zeros(len(a), dtype=bool), np.zeros(len(b), dtype=bool)
    bins_a, bins_b = _length_bins(a), _length_bins(b)
    for one in np.intersect1d(bins_a, bins_b):
        there = np.flatnonzero(bins_a == one), np.flatnonzero(bins_b == one)
        n = min(map(len, there))
        for mask, where in zip(masks, there, strict=True):
            mask[random.permutation(where)[:n]] = True
    if not masks[0].any():
        raise InputError("no text of one set is as long as a text of the other, so lengths cannot be matched.")
    return masks


def _length_bins(lengths: np.ndarray) -> np.ndarray:
    """A number for each length, the same for lengths within 10 % of each other."""
    wide = 10 + np.floor(np.log(np.maximum(lengths, 10) / 10) / np.log(1.1) + 1e-9)
    return np.where(lengths < 10, lengths, wide).astype(np.int64)

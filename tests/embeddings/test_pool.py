"""Pooling by hand."""

import numpy as np
import pytest

from sparselens.embeddings.pool import POOLINGS, Entries, pool
from sparselens.errors import InputError

# two documents: three tokens, then two (of which the second has no active feature)
CODES = np.array([[1.0, 0.0, 2.0, -3.0], [4.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0], [0.0] * 4])
DOCUMENT = np.array([0, 0, 0, 1, 1])
N_TOKENS = np.array([3, 2])
EXPECTED = {
    "max": [[4, 0, 2, -3], [0, 5, 0, 0]],  # the largest magnitude, with its sign
    "mean": [[5 / 3, 0, 1, 0], [0, 2.5, 0, 0]],
    "sum": [[5, 0, 3, 0], [0, 5, 0, 0]],
    "binarize": [[1, 0, 1, 1], [0, 1, 0, 0]],
    "count": [[2, 0, 2, 3], [0, 1, 0, 0]],
}


def entries(codes=CODES, document=DOCUMENT):
    token, feature = np.nonzero(codes)
    return Entries(document[token], token, feature, codes[token, feature].astype(np.float32))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_by_hand(pooling):
    got = pool(entries(), pooling, N_TOKENS)
    dense = np.zeros((2, 4), dtype=np.float32)
    dense[got.document, got.feature] = got.value
    np.testing.assert_allclose(dense, EXPECTED[pooling], rtol=1e-6)
    # every feature that fires has an entry, also where its sum is zero
    assert list(zip(got.document.tolist(), got.feature.tolist(), strict=True)) == [(0, 0), (0, 2), (0, 3), (1, 1)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_against_loops(pooling):
    random = np.random.default_rng(0)
    codes = random.normal(size=(60, 20)) * (random.random((60, 20)) < 0.2)
    document = np.sort(random.integers(0, 7, 60))
    counts = np.bincount(document, minlength=8)
    got = pool(entries(codes, document), pooling, counts)
    dense = np.zeros((8, 20))
    dense[got.document, got.feature] = got.value
    for d in range(8):
        for f in range(20):
            column = codes[document == d, f].astype(np.float32)
            fired = column[column != 0]
            expected = 0.0
            if len(fired):
                expected = {"max": max(fired, key=abs), "mean": column.mean(), "sum": column.sum(), "binarize": 1,
                            "count": len(fired)}[pooling]
            assert dense[d, f] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("threshold", "min_tokens"), [(0.7, 1), (0.0, 2), (0.5, 3)])
def test_limits_against_loops(pooling, threshold, min_tokens):
    random = np.random.default_rng(1)
    codes = (random.normal(size=(60, 20)) * (random.random((60, 20)) < 0.4)).astype(np.float32)
    document = np.sort(random.integers(0, 7, 60))
    counts = np.bincount(document, minlength=7)
    got = pool(entries(codes, document), pooling, counts, threshold, min_tokens)
    dense = np.zeros((7, 20))
    dense[got.document, got.feature] = got.value
    for d in range(7):
        for f in range(20):
            column = codes[document == d, f]
            fired = column[abs(column) > threshold]
            expected = 0.0
            if len(fired) >= min_tokens:
                expected = {"max": max(fired, key=abs), "mean": fired.sum() / len(column), "sum": fired.sum(),
                            "binarize": 1, "count": len(fired)}[pooling]
            assert dense[d, f] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if (threshold, min_tokens) == (0.0, 2):
        assert 0 < len(got.value) < len(pool(entries(codes, document), pooling, counts).value)


@pytest.mark.parametrize("limits", [(-1.0, 1), (float("nan"), 1), (0.0, 0)])
def test_impossible_limits(limits):
    with pytest.raises(InputError, match="at least 0 and 1"):
        pool(entries(), "max", N_TOKENS, *limits)


def test_nothing_fires():
    got = pool(entries(np.zeros((5, 4))), "max", N_TOKENS)
    assert len(got.value) == 0


def test_unknown_pooling_names_the_valid_ones():
    with pytest.raises(InputError, match="binarize"):
        pool(entries(), "binarise", N_TOKENS)

"""Rankings against closed forms, loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from sparselens.embeddings.ranking import (
    average_precision,
    bm25_scores,
    fuse_ranks,
    precision_at,
    rank_biased_overlap,
    ranks_of,
)
from sparselens.errors import InputError


def test_average_precision_by_hand():
    # relevant at ranks 1 and 3: (1/1 + 2/3) / 2
    assert average_precision(np.array([4.0, 3, 2, 1]), [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([1.0, 2, 3, 4]), [1, 0, 0, 0]) == pytest.approx(1 / 4)
    assert precision_at(np.array([4.0, 3, 2, 1]), [1, 0, 1, 0], 3) == pytest.approx(2 / 3)


def test_average_precision_with_ties_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        scores, relevant = random.integers(0, levels, 200).astype(float), random.random(200) < 0.2
        assert average_precision(scores, relevant) == pytest.approx(average_precision_score(relevant, scores))


def test_all_tied_is_the_base_rate():
    relevant = np.arange(100) < 7  # the order of the items must not count
    assert average_precision(np.zeros(100), relevant) == pytest.approx(0.07)


def test_rank_biased_overlap():
    items = list(range(20))
    assert rank_biased_overlap(items, items) == pytest.approx(1)
    assert rank_biased_overlap(items, list(range(20, 40))) == 0
    # by hand, depth 2, same items swapped: X = [0, 2]
    assert rank_biased_overlap([1, 2], [2, 1], p=0.9) == pytest.approx(0.9**2 + (0.1 / 0.9) * 0.9**2)
    top, bottom = items.copy(), items.copy()
    top[0], top[1], bottom[-1], bottom[-2] = 1, 0, 18, 19
    assert rank_biased_overlap(items, top) < rank_biased_overlap(items, bottom) < 1
    for a, b, p in (([], [1], 0.9), ([1, 1], [1, 2], 0.9), ([1], [1], 1.0)):
        with pytest.raises(InputError):
            rank_biased_overlap(a, b, p)


def test_ranks_and_fusion():
    ranks = ranks_of(np.array([0.5, 2.0, 0.0, 0.5]))
    assert ranks.tolist() == [2, 1, np.inf, 3]
    fused = fuse_ranks([ranks, np.array([np.inf, 1, np.inf, 2])])
    assert fused.tolist() == pytest.approx([1 / 62, 2 / 61, 0, 1 / 63 + 1 / 62])


def bm25_by_hand(texts, query, k1=1.5, b=0.75):
    """The formula, Lucene's variant, over words of two letters or more."""
    words = [text.lower().split() for text in texts]
    mean = np.mean([len(w) for w in words])
    out = np.zeros(len(texts))
    for term in query.lower().split():
        n = sum(term in w for w in words)
        idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for i, w in enumerate(words):
            tf = w.count(term)
            out[i] += idf * tf / (tf + k1 * (1 - b + b * len(w) / mean)) if n else 0
    return out


def test_bm25_is_the_formula():
    texts = ["cat sat mat", "dog dog ran far away", "cat dog", "bird"]
    for query in ("cat", "dog cat", "zebra", "dog zebra"):
        assert bm25_scores(texts, [query])[0] == pytest.approx(bm25_by_hand(texts, query), rel=1e-5)


def test_bm25_of_odd_texts():
    odd = ["", "the", "<script>alert(1)</script>", "half \ud83d pair", "שלום עולם", "cat " * 20_000, "cat"]
    scores = bm25_scores(odd, ["cat", "", "the", "שלום", "zebra"])
    assert scores.shape == (5, 7)
    assert np.flatnonzero(scores[0]).tolist() == [5, 6]
    assert np.flatnonzero(scores[3]).tolist() == [4]
    assert (scores[[1, 2, 4]] == 0).all()
    assert (bm25_scores(["", "the"], ["cat"]) == 0).all()


def test_what_metrics_refuse():
    for scores, relevant in ((np.ones(3), [0, 0, 0]), (np.ones(3), [1, 0])):
        with pytest.raises(InputError):
            average_precision(scores, relevant)
    with pytest.raises(InputError):
        precision_at(np.ones(3), [1, 0, 0], 0)

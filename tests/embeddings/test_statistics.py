"""Intervals and p-values against published numbers, scipy and counting by hand."""

import numpy as np
import pytest
import scipy.stats

from sparselens.embeddings.statistics import (
    cochran_armitage,
    joint_p_values,
    match_lengths,
    mcnemar,
    newcombe,
    newcombe_paired,
    npmi,
    p_values,
    q_values,
    wilson,
)
from sparselens.errors import InputError


def test_wilson_by_hand():
    low, high = wilson(np.array([8, 0, 10]), 10)
    assert low == pytest.approx([0.4902, 0.0, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.9433, 0.2775, 1.0], abs=1e-4)
    low, high = wilson(np.array([5]), 10, alpha=0.5)
    assert high[0] - low[0] < 0.25


@pytest.mark.parametrize(
    ("counts", "interval"),
    [  # Newcombe (1998), table II, method 10
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_newcombe_published_values(counts, interval):
    a, n_a, b, n_b = counts
    low, high = newcombe(np.array([a]), n_a, np.array([b]), n_b)
    assert (low[0], high[0]) == pytest.approx(interval, abs=1e-4)
    back, forth = newcombe(np.array([b]), n_b, np.array([a]), n_a)
    assert (back[0], forth[0]) == pytest.approx((-high[0], -low[0]))


@pytest.mark.parametrize(("n_a", "n_b"), [(40, 40), (12, 90), (5, 5)])
def test_small_counts_are_fishers_test(n_a, n_b):
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(n_a + 1), np.arange(n_b + 1)))
    small = np.minimum(a + b, n_a + n_b - a - b) * min(n_a, n_b) / (n_a + n_b) < 10
    picked = np.flatnonzero(small)[:: max(1, small.sum() // 150)]
    got = p_values(a[picked], n_a, b[picked], n_b)
    for p, x, y in zip(got, a[picked], b[picked], strict=True):
        exact = scipy.stats.fisher_exact([[x, n_a - x], [y, n_b - y]]).pvalue
        assert p == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_large_counts_are_the_z_test():
    a, b = np.array([100, 250, 200]), np.array([130, 250, 90])
    got = p_values(a, 500, b, 400)
    for p, x, y in zip(got, a, b, strict=True):
        chi2 = scipy.stats.chi2_contingency([[x, 500 - x], [y, 400 - y]], correction=False).pvalue
        assert p == pytest.approx(chi2, rel=1e-6)


def test_order_and_repeats_do_not_matter():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 51, 400), random.integers(0, 51, 400)
    whole = p_values(a, 50, b, 50)
    assert whole.tolist() == [p_values(a[i : i + 1], 50, b[i : i + 1], 50)[0] for i in range(400)]
    assert p_values(a[:0], 50, b[:0], 50).shape == (0,)
    np.testing.assert_allclose(whole, p_values(b, 50, a, 50), rtol=1e-12)


def test_p_values_under_the_null_are_not_too_small():
    random = np.random.default_rng(0)
    rate = random.beta(0.4, 8, 4000)
    p = p_values(random.binomial(300, rate), 300, random.binomial(200, rate), 200)
    for level in (0.05, 0.01):
        assert (p < level).mean() <= 1.25 * level


def test_paired_interval_published_value():
    # 41 patients, responses under two treatments: 14 to both, 5 to the first only (Altman et al., 2000, chapter 6)
    low, high = newcombe_paired(np.array([14]), np.array([19]), np.array([14]), 41)
    assert (low[0], high[0]) == pytest.approx((0.011, 0.226), abs=5e-4)
    back = newcombe_paired(np.array([14]), np.array([14]), np.array([19]), 41)
    assert (back[0][0], back[1][0]) == pytest.approx((-high[0], -low[0]))


def test_paired_interval_covers_the_truth_and_is_narrower():
    random = np.random.default_rng(0)
    n, cells = 80, [0.3, 0.15, 0.05, 0.5]  # both, only a, only b, neither
    both, only_a, only_b, _ = random.multinomial(n, cells, 4000).T
    low, high = newcombe_paired(both, both + only_a, both + only_b, n)
    assert 0.93 <= ((low <= 0.1) & (high >= 0.1)).mean() <= 0.98
    wide = newcombe(both + only_a, n, both + only_b, n)
    assert (high - low).mean() < 0.75 * (wide[1] - wide[0]).mean()


def test_mcnemar_is_the_binomial_test_of_those_that_disagree():
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(12), np.arange(12)))
    for p, x, y in zip(mcnemar(a, b), a, b, strict=True):
        assert p == pytest.approx(scipy.stats.binomtest(x, x + y).pvalue if x + y else 1.0)


def test_trend_of_two_versions_is_the_z_test():
    hits = np.array([[100, 250, 200], [130, 250, 90]])
    slope, p = cochran_armitage(hits, np.array([500, 400]), np.array([0.0, 1.0]))
    assert p == pytest.approx(p_values(hits[0], 500, hits[1], 400))
    assert slope == pytest.approx(hits[1] / 400 - hits[0] / 500)


def test_trend_against_a_regression():
    # the z-score is the correlation of the places with the single 0/1 outcomes, times sqrt(n)
    random = np.random.default_rng(0)
    at, totals = np.array([0.0, 1.0, 4.0, 5.0]), np.array([60, 50, 80, 40])
    hits = random.binomial(totals, [0.2, 0.3, 0.35, 0.5])
    outcome = np.concatenate([np.arange(n) < h for n, h in zip(totals, hits, strict=True)]).astype(float)
    fit = scipy.stats.linregress(np.repeat(at, totals), outcome)
    slope, p = cochran_armitage(hits[:, None], totals, at)
    assert slope[0] == pytest.approx(fit.slope)
    assert p[0] == pytest.approx(2 * scipy.stats.norm.sf(abs(fit.rvalue) * np.sqrt(totals.sum())))


def test_trend_p_values_under_the_null():
    random = np.random.default_rng(0)
    totals = np.array([200, 120, 300, 150])
    hits = random.binomial(totals[:, None], random.beta(2, 8, 5000))
    _, p = cochran_armitage(hits, totals, np.arange(4.0))
    for level in (0.5, 0.05, 0.01):
        assert (p < level).mean() == pytest.approx(level, rel=0.3)
    assert cochran_armitage(np.zeros((4, 1), int), totals, np.arange(4.0))[1][0] == 1


def test_joint_p_values_are_the_hypergeometric_tail():
    random = np.random.default_rng(0)
    n = 400
    a, b = random.integers(1, n + 1, 2000), random.integers(1, n + 1, 2000)
    both = random.integers(np.maximum(0, a + b - n), np.minimum(a, b) + 1)
    np.testing.assert_allclose(joint_p_values(both, a, b, n), scipy.stats.hypergeom.sf(both - 1, n, a, b), rtol=1e-9,
                               atol=1e-290)


def test_npmi_by_hand_and_at_the_edges():
    both, a, b = np.array([10, 0, 100, 0, 5]), np.array([10, 7, 100, 0, 20]), np.array([40, 9, 100, 5, 25])
    got = npmi(both, a, b, 100)
    assert got[0] == pytest.approx(np.log(0.1 / 0.04) / -np.log(0.1))  # contained: 0.398
    assert got[:3].round(3).tolist() == [0.398, -1.0, 1.0]
    assert np.isnan(got[3])
    assert got[4] == pytest.approx(0)  # independent
    assert npmi(np.array([7]), np.array([7]), np.array([7]), 100)[0] == pytest.approx(1)


def test_q_values_of_a_part_count_all_tests():
    p = np.array([0.001, 0.2, 0.0001, 0.03])
    whole = q_values(np.r_[p, np.ones(96)])
    assert q_values(p, 100) == pytest.approx(whole[:4])


def test_q_values_by_hand():
    # p * m / rank, then the smallest of those at or after each rank
    assert q_values(np.array([0.01, 0.04, 0.03, 0.5])) == pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert len(q_values(np.zeros(0))) == 0


def test_matched_lengths():
    random = np.random.default_rng(0)
    a, b = random.poisson(60, 500), random.poisson(75, 400)
    mask_a, mask_b = match_lengths(a, b, seed=1)
    assert mask_a.sum() == mask_b.sum() > 50
    assert a[mask_a].mean() == pytest.approx(b[mask_b].mean(), rel=0.05)
    assert a.mean() < 0.85 * b.mean()
    again = match_lengths(a, b, seed=1)
    assert (again[0] == mask_a).all()
    assert (match_lengths(a, b, seed=2)[0] != mask_a).any()


def test_short_lengths_match_exactly():
    a, b = np.array([1, 2, 3, 3, 9]), np.array([3, 2, 2, 8])
    mask_a, mask_b = match_lengths(a, b)
    assert sorted(a[mask_a]) == sorted(b[mask_b]) == [2, 3]


def test_no_common_length():
    with pytest.raises(InputError, match="cannot be matched"):
        match_lengths(np.array([5]), np.array([50]))

"""The statistics of `hypothesize` against closed forms, scipy and scikit-learn."""

import numpy as np
import pytest
import scipy.stats
from scipy.sparse import csr_matrix

from sparselens.embeddings.prediction import (
    as_target,
    choose,
    correlations,
    joint_coefficients,
    limits,
    predictability,
    separation_tests,
    separations,
    split,
)
from sparselens.errors import InputError


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.exponential(size=(300, 40)) * (random.random((300, 40)) < 0.3)
    x[:, 39], x[:, 38] = 0, 1
    return x, random.normal(size=300)


def test_correlations_are_numpys(data):
    x, y = data
    got = correlations(csr_matrix(x), y)
    assert got[:38] == pytest.approx([np.corrcoef(x[:, j], y)[0, 1] for j in range(38)])
    assert got[38:].tolist() == [0, 0]  # constant columns


def test_separations_by_a_loop(data):
    x, y = data
    got = separations(csr_matrix(x), y)
    for j in range(38):
        order = [i for i in np.argsort(-x[:, j], kind="stable") if x[i, j] > 0][:100]
        assert got[j] == pytest.approx(y[order].mean() - y[x[:, j] == 0].mean())
    assert np.isnan(got[38:]).all()


def test_rare_features_are_not_padded_with_zeros():
    # feature 0 fires in 3 documents, all of y = 1; the other 97 of "the strongest 100" would dilute it
    x, y = np.zeros((300, 1)), np.arange(300) % 2 * 1.0
    x[[1, 3, 5], 0] = 1
    assert separations(csr_matrix(x), y)[0] == pytest.approx(1 - (147 / 297))


@pytest.mark.parametrize("method", ["lasso", "correlation", "separation"])
def test_planted_features_are_chosen(method):
    random = np.random.default_rng(1)
    x = random.exponential(size=(600, 200)) * (random.random((600, 200)) < 0.2)
    y = 2.0 * (x[:, 17] > 0) - 2.0 * (x[:, 60] > 0) + random.normal(size=600)
    features, score = choose(csr_matrix(x), y, method, 2)
    assert set(features.tolist()) == {17, 60}
    assert {int(f): bool(s > 0) for f, s in zip(features, score, strict=True)} == {17: True, 60: False}
    assert len(choose(csr_matrix(x), y, method, 10)[0]) == 10
    with pytest.raises(InputError, match="Closest: lasso"):
        choose(csr_matrix(x), y, "laso", 2)


def test_lasso_does_not_take_the_same_twice():
    random = np.random.default_rng(2)
    x = random.exponential(size=(500, 50)) * (random.random((500, 50)) < 0.3)
    y = 3.0 * x[:, 0] + 1.0 * x[:, 1] + 0.1 * random.normal(size=500)
    x[:, 2:10] = x[:, [0]] + 0.05 * x[:, 2:10]  # eight near-copies of the stronger one
    assert 1 in choose(csr_matrix(x), y, "lasso", 4)[0]
    assert 1 not in choose(csr_matrix(x), y, "correlation", 4)[0]


def test_targets():
    binary = as_target(["pos", "neg", "pos"], 3)
    assert (binary.values.tolist(), binary.binary, binary.names) == ([1, 0, 1], True, ("neg", "pos"))
    assert as_target(np.array([True, False]), 2).values.tolist() == [1, 0]
    assert as_target([3, 1, 2], 3).values.tolist() == [3, 1, 2]
    assert not as_target(["3", "1", "2.5"], 3).binary
    for y, says in (([1, 2], "2 values"), ([1, None, 2], "document 1"), ([1, float("nan"), 2], "document 1"),
                    ([1, 1, 1], "every document"), (["a", "b", "c"], "'a'"), ([1.0, 2.0, float("inf")], "finite")):
        with pytest.raises(InputError, match=says):
            as_target(y, 3)


def test_splits():
    target = as_target(np.arange(100) % 10 == 0, 100)
    train, test = split(target, 0.3, None, 0)
    assert sorted([*train, *test]) == list(range(100))
    assert target.values[test].sum() == 3  # as in the whole
    again = split(target, 0.3, None, 0)
    assert again[0].tolist() == train.tolist()
    assert split(target, 0.3, None, 1)[0].tolist() != train.tolist()
    groups = np.arange(100) // 4
    train, test = split(as_target(np.arange(100) % 2, 100), 0.3, groups, 0)
    assert not set(groups[train]) & set(groups[test])
    for arguments, says in (((target, 0.0, None, 0), "holdout"), ((target, 0.3, [1] * 100, 0), "groups"),
                            ((target, 0.3, [1, 2], 0), "groups"), ((as_target([1, 0] * 3, 6), 0.3, None, 0), "too few"),
                            ((as_target(np.arange(100) < 50, 100), 0.5, np.arange(100) < 50, 0), "single value")):
        with pytest.raises(InputError, match=says):
            split(*arguments)


def test_binary_tests_are_fishers_and_newcombes():
    y = as_target(np.r_[np.ones(10), np.zeros(10)], 20)
    there = np.zeros((20, 3), dtype=bool)
    there[:9, 0], there[10:13, 0] = True, True  # 9 of 12 where it is there, 1 of 8 where not
    there[:, 1] = True
    got = separation_tests(there, y, np.arange(20))
    assert got.separation[0] == pytest.approx(9 / 12 - 1 / 8)
    assert got.p[0] == pytest.approx(scipy.stats.fisher_exact([[9, 3], [1, 7]]).pvalue)
    assert got.low[0] < got.separation[0] < got.high[0]
    assert np.isnan(got.separation[1:]).all()
    assert got.p[1:].tolist() == [1, 1]


def test_real_tests_are_welchs(data):
    x, y = data
    target = as_target(y, 300)
    there = x > 0
    rows = np.arange(0, 300, 2)
    got = separation_tests(there[rows], target, rows)
    for j in range(5):
        a, b = y[rows][there[rows][:, j]], y[rows][~there[rows][:, j]]
        assert got.separation[j] == pytest.approx(a.mean() - b.mean())
        assert got.p[j] == pytest.approx(scipy.stats.ttest_ind(a, b, equal_var=False).pvalue)


def test_p_values_of_noise_are_even(data):
    random = np.random.default_rng(3)
    there = random.random((200, 2000)) < 0.3
    for target in (as_target(random.random(200) < 0.5, 200), as_target(random.normal(size=200), 200)):
        p = separation_tests(there, target, np.arange(200)).p
        assert (p < 0.05).mean() < 0.065
        assert (joint_coefficients(there[:, :20], target.values)[1] < 0.05).mean() < 0.25


def test_joint_coefficients_are_least_squares():
    random = np.random.default_rng(4)
    there = random.random((400, 3)) < 0.4
    y = 1 + there @ np.array([2.0, 0, -1]) + random.normal(size=400) * (1 + there[:, 0])
    coefficients, p = joint_coefficients(there, y)
    design = np.column_stack([np.ones(400), there])
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    assert coefficients == pytest.approx(expected[1:])
    residual = y - design @ expected
    inverse = np.linalg.inv(design.T @ design)
    error = np.sqrt(np.diag(inverse @ (design.T * residual**2) @ design @ inverse) * 400 / 396)
    assert p == pytest.approx(2 * scipy.stats.t.sf(np.abs(expected / error), 396)[1:])
    assert np.isnan(joint_coefficients(there[:3], y[:3])[0]).all()
    twice, _ = joint_coefficients(there[:, [0, 0]], y)  # the same property twice
    assert twice[0] == pytest.approx(twice[1])


def test_limits():
    x = np.array([[0.0, 1], [0, 2], [3, 3], [0, 4]])
    assert limits(csr_matrix(x), np.array([0, 1])).tolist() == [0, 2.5]


def test_what_can_be_predicted_and_what_not():
    random = np.random.default_rng(5)
    x = random.exponential(size=(400, 300)) * (random.random((400, 300)) < 0.2)
    train, test = np.arange(280), np.arange(280, 400)
    signal = x[:, :30].sum(axis=1)
    for y in (signal > np.median(signal), 2 * signal + 0.1 * random.normal(size=400)):
        target = as_target(y, 400)
        good = predictability(csr_matrix(x), target, train, test)
        chance = 0.5 if target.binary else 0.0
        assert chance < good.low < good.value < good.high
        noise = as_target(random.permutation(target.values), 400)
        assert predictability(csr_matrix(x), noise, train, test).low < chance
    nothing = predictability(csr_matrix((400, 3)), as_target(np.arange(400) % 2, 400), train, test)
    assert nothing.value == 0.5

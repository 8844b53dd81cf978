"""Step probes on planted rows: what they find, what they refuse, honest intervals."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

import sparselens as sl
from sparselens.errors import InputError, NotFiniteError
from sparselens.reasoning import scores


def planted(n=600, d=12, noise=1.0, seed=0):
    """Rows whose first column tells the class; groups of four rows."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n)
    x = random.normal(size=(n, d)).astype(np.float32)
    x[:, 0] += 2 / noise * (y - 0.5)
    return x * np.linspace(1, 100, d, dtype=np.float32), y, np.arange(n) // 4


def test_auroc_is_scikit_learns():
    random = np.random.default_rng(0)
    for _ in range(20):
        y, said = random.integers(0, 2, 30).astype(float), random.integers(0, 5, 30).astype(float)
        assert scores.auroc(y, said) == pytest.approx(roc_auc_score(y, said))
    assert np.isnan(scores.auroc(np.ones(3), np.ones(3)))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_planted_direction_is_found_and_calibrated(kind, sparse):
    x, y, groups = planted()
    wrap = csr_matrix if sparse else np.asarray
    probe = sl.StepProbe("correct", kind=kind).fit(wrap(x[:400]), y[:400], groups[:400])
    p = probe.predict_proba(wrap(x[400:]))[:, 1]
    found = probe.evaluate(wrap(x[400:]), y[400:], groups[400:])
    best = scores.auroc(y[400:].astype(float), x[400:, 0].astype(float))
    assert best - 0.04 < found["auroc"].value and found["auroc"].low < found["auroc"].value < found["auroc"].high
    assert scores.calibration_error(y[400:].astype(float), p) < 0.13
    assert probe.score(wrap(x[400:]), y[400:]) == pytest.approx(found["auroc"].value)
    assert (probe.predict(wrap(x[400:])) == (p > 0.5)).all()


def test_noise_gives_chance_and_calibration_says_so():
    x, _, groups = planted()
    y = np.random.default_rng(3).permutation(np.arange(600) % 2)
    probe = sl.StepProbe().fit(x[:400], y[:400], groups[:400])
    p = probe.predict_proba(x[400:])[:, 1]
    assert abs(probe.score(x[400:], y[400:]) - 0.5) < 0.1 and np.abs(p - 0.5).max() < 0.25


def test_few_features_are_the_telling_ones():
    x, y, groups = planted()
    probe = sl.StepProbe(n_features=1).fit(x, y, groups)
    assert probe.columns_.tolist() == [0] and probe.coef_.shape == (1,)
    assert sl.StepProbe(n_features=1).fit(csr_matrix(x), y, groups).columns_.tolist() == [0]
    assert sl.StepProbe("length", n_features=1).fit(x, x[:, 0] + 0.1 * x[:, 1] / 10, groups).columns_.tolist() == [0]


def test_coefficients_are_in_units_of_the_input():
    x, y, groups = planted()
    probe = sl.StepProbe().fit(x, y, groups)
    shifted = probe.decision_function(x + np.eye(12, dtype=np.float32)[3] * 5)
    np.testing.assert_allclose(shifted - probe.decision_function(x), 5 * probe.coef_[3], atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_lengths(kind):
    x, _, groups = planted()
    y = 20 + 5 * x[:, 0]
    probe = sl.StepProbe("length", kind=kind).fit(x[:400], y[:400], groups[:400])
    assert probe.score(x[400:], y[400:]) > 0.9
    assert probe.evaluate(x[400:], y[400:])["rmse"].value < 0.4 * y.std()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_first_tokens(kind):
    random = np.random.default_rng(0)
    token = random.choice([3, 40, 500], 600)
    token[:3] = 9000  # too rare
    x = (np.eye(3)[np.searchsorted([3, 40, 500], token).clip(max=2)] + 0.3 * random.normal(size=(600, 3)))
    probe = sl.StepProbe("first_token", kind=kind).fit(x[:400], token[:400])
    assert probe.classes_.tolist() == [-1, 3, 40, 500]
    found = probe.evaluate(x[400:], token[400:])
    assert found["accuracy"].value > 0.85 and 1 < found["perplexity"].value < 1.7
    assert probe.evaluate(x[400:], np.full(200, 7777))["perplexity"].value > 20  # never seen: rare, not an error


def test_grouped_splits_share_nothing():
    groups = np.random.default_rng(0).integers(0, 30, 500)
    for seed in range(20):
        train, test = scores.grouped_split(groups, 0.3, seed)
        assert not set(groups[train]) & set(groups[test]) and sorted([*train, *test]) == list(range(500))
        assert len(set(groups[test])) == round(0.3 * len(set(groups)))
    folds = scores.grouped_folds(groups, 3)
    assert sorted(np.concatenate(folds)) == list(range(500))
    assert not set(groups[folds[0]]) & set(groups[folds[1]])
    for test in (0.0, 1.0):
        with pytest.raises(InputError, match="between 0 and 1"):
            scores.grouped_split(groups, test)
    with pytest.raises(InputError, match="one problem"):
        scores.grouped_split(["p"] * 5)


def test_intervals_widen_when_rows_of_a_group_say_the_same():
    random = np.random.default_rng(0)
    y = np.repeat(random.integers(0, 2, 40), 10).astype(float)
    said = np.repeat(random.random(40), 10)
    alone, grouped = scores.scored(scores.auroc, y, said), scores.scored(scores.auroc, y, said, np.arange(400) // 10)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_calibration_error_by_hand():
    said, y = np.repeat([0.2, 0.8], 50), np.array([1.0] * 20 + [0.0] * 30 + [1.0] * 40 + [0.0] * 10)
    assert scores.calibration_error(y, said) == pytest.approx(0.1)
    mean, share, count = scores.reliability(y, said)
    assert mean.tolist() == pytest.approx([0.2, 0.8]) and share.tolist() == [0.4, 0.8] and count.tolist() == [50, 50]


def test_estimator_conventions():
    probe = sl.StepProbe("length", kind="mlp", hidden=(8,), seed=3)
    assert clone(probe).get_params() == probe.get_params()
    before = torch.random.get_rng_state()
    x, y, groups = planted(100)
    once = sl.StepProbe(kind="mlp", hidden=(8,)).fit(x, y, groups).predict_proba(x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(once, sl.StepProbe(kind="mlp", hidden=(8,)).fit(torch.tensor(x), y, groups).predict_proba(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"y": [1] * 100}, "all 100 are 1"), ({"y": [1, None] * 50}, "missing for row 1"),
     ({"y": [1, 2] * 50}, "other than"), ({"y": [0, 1]}, "must agree"), ({"groups": [0] * 100}, "one problem"),
     ({"kind": "mpl"}, "Closest: mlp"),
     ({"task": "corect"}, "Closest: correct"), ({"n_features": 0}, "at least 1"), ({"x": np.zeros(100)}, "shape"),
     ({"task": "first_token", "y": list(range(100))}, "5 rows")],
)
def test_what_is_wrong_is_named(change, said):
    x, y, groups = planted(100)
    given = {"x": x, "y": y, "groups": groups, "kind": "linear", "task": "correct", "n_features": None} | change
    with pytest.raises(InputError, match=said):
        sl.StepProbe(given["task"], kind=given["kind"], n_features=given["n_features"]).fit(
            given["x"], given["y"], given["groups"])


def test_rows_of_another_width_and_broken_rows():
    x, y, groups = planted(100)
    probe = sl.StepProbe().fit(x, y, groups)
    with pytest.raises(InputError, match="fitted on 12"):
        probe.predict(x[:, :5])
    x[3, 4] = np.nan
    with pytest.raises(NotFiniteError):
        probe.predict(x)


def test_the_range_of_a_score_holds_the_score():
    random = np.random.default_rng(0)
    x, groups = random.normal(size=(300, 6)), np.repeat(np.arange(60), 5)
    y = (x[:, 0] + random.normal(size=300) > 0).astype(float)
    probe = sl.StepProbe("correct").fit(x, y, groups=groups)
    low, high = probe.predict_range(x)
    p = probe.predict_proba(x)[:, 1]
    assert ((low <= p) & (p <= high)).all() and (high - low).mean() > 1e-3

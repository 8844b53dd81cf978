"""`trend`: a planted rise, identities, a null, and what is shown."""

import numpy as np
import pytest

from sparselens.embeddings import diff, trend
from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of

FEATURES, RISING, FALLING, HUMP = 300, 5, 9, 11


def versions(seed=0, sizes=(200, 150, 250, 200), planted=True):
    random = np.random.default_rng(seed)
    rate = random.beta(1, 6, FEATURES)
    out = {}
    for i, n in enumerate(sizes):
        now = rate.copy()
        if planted:
            now[[RISING, FALLING, HUMP]] = 0.2 + 0.15 * i, 0.7 - 0.15 * i, (0.2, 0.7, 0.7, 0.2)[i]
        out[f"v{i}"] = embedding_of(random.random((n, FEATURES)) < now)
    return out


def test_a_planted_rise_and_fall_are_found():
    found = trend(versions())
    frame = found.frame
    assert set(frame.feature[:2]) == {RISING, FALLING}
    up, down = (frame[frame.feature == f].iloc[0] for f in (RISING, FALLING))
    assert up.slope == pytest.approx(0.15, abs=0.03)
    assert down.slope == pytest.approx(-0.15, abs=0.03)
    assert max(up.q_value, down.q_value) < 1e-6
    assert HUMP not in set(frame.feature)
    assert HUMP in set(trend(versions(), monotone=False).frame.feature)
    assert len(set(found.significant().feature) - {RISING, FALLING}) <= 1


def test_numbers_by_hand():
    sets = versions(sizes=(40, 30))
    found = trend(sets, monotone=False, min_support=1)
    assert found.frame.columns.tolist() == ["feature", "description", "freq[v0]", "freq[v1]", "change", "slope",
                                            "p_value", "q_value"]
    on = [e.matrix.toarray() != 0 for e in sets.values()]
    for row in found.frame.itertuples():
        first, last = (x[:, row.feature].mean() for x in on)
        assert (row._3, row._4, row.change) == pytest.approx((first, last, last - first))
    assert found.shares().shape == (len(found), 2)
    assert found.frame.change.abs().is_monotonic_decreasing
    # of two versions it is the difference of the two, with another sign
    two = diff(sets["v0"], sets["v1"]).frame.set_index("feature").difference
    np.testing.assert_allclose(found.frame.set_index("feature").change.sort_index(), -two.sort_index())


def test_monotone_keeps_those_that_never_turn():
    frame = trend(versions(), monotone=False).frame
    kept = trend(versions()).frame
    steps = np.diff(frame.filter(like="freq[").to_numpy(), axis=1)
    straight = (steps >= 0).all(axis=1) | (steps <= 0).all(axis=1)
    assert set(kept.feature) == set(frame.feature[straight])
    q = frame.set_index("feature").q_value
    assert (kept.set_index("feature").q_value == q[kept.feature]).all()  # all tests count


@pytest.mark.parametrize("seed", range(4))
def test_versions_that_do_not_differ_have_no_trend(seed):
    assert len(trend(versions(seed, planted=False), monotone=False).significant()) <= 1


def test_support_and_places():
    sets = versions()
    found = trend(sets, min_support=60, monotone=False)
    total = sum((e.matrix.toarray() != 0).sum(axis=0) for e in sets.values())
    assert set(found.frame.feature) == set(np.flatnonzero(total >= 60))
    apart = trend(sets, at=[0.0, 10.0, 20.0, 30.0], monotone=False, min_support=60).frame
    np.testing.assert_allclose(apart.slope, found.frame.slope / 10)
    np.testing.assert_allclose(apart.p_value, found.frame.p_value)


def test_what_cannot_be_used():
    sets = list(versions(sizes=(20, 20)).values())
    with pytest.raises(InputError, match="at least two"):
        trend(sets[:1])
    with pytest.raises(InputError, match="rising order"):
        trend(sets, at=[3.0, 1.0])
    with pytest.raises(InputError, match="sae_sha256"):
        trend([sets[0], embedding_of(np.ones((3, FEATURES)), sae_sha256="1")])
    with pytest.raises(InputError, match="no version 'v9'"):
        trend(versions(sizes=(20, 20))).documents(RISING, "v9")


def test_what_is_shown():
    found = trend(versions(), labels={RISING: "<b>offers</b>"})
    assert found.plot() is not None
    html = found._repr_html_()
    assert "&lt;b&gt;offers" in html
    assert "<b>offers" not in html
    assert "Cochran-Armitage" in repr(found)
    top = found.documents(RISING, "v3", k=3)
    assert top.columns[:2].tolist() == ["document", "value"]
    assert "Warning" not in repr(found)
    long = [embedding_of(np.ones((20, 3)), n_tokens=[n] * 20) for n in (4, 9)]
    assert "lengths differ" in repr(trend(long))

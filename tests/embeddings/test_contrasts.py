"""`diff` against several sets, row by row, by a column: brute force, identities, planted differences."""

import numpy as np
import pandas as pd
import pytest

import sparselens as sl
from sparselens.embeddings import diff
from sparselens.embeddings.contrasts import COLUMNS
from sparselens.embeddings.statistics import mcnemar, newcombe_paired
from sparselens.errors import FitError, InputError
from tests import tiny
from tests.embeddings.synthetic import embedding_of

FEATURES = 40


@pytest.fixture(scope="module")
def sets():
    """Four aligned sets of 120 documents."""
    random = np.random.default_rng(0)
    rate = random.beta(1, 3, FEATURES)
    base = random.random((120, FEATURES))
    noise = [0.6 * base + 0.4 * random.random((120, FEATURES)) for _ in range(4)]
    return [embedding_of(x < 0.5 * rate + 0.3, block=50, columns=pd.DataFrame({"prompt": np.arange(120)}))
            for x in noise]


def on(emb):
    return emb.matrix.toarray() != 0


def by_feature(found):
    return found.frame.set_index("feature").sort_index()


def test_one_against_many_is_the_nearest(sets):
    a, *others = sets
    frame = by_feature(diff(a, others))
    single = [by_feature(diff(a, b)) for b in others]
    rates = np.stack([on(b).mean(axis=0) for b in others])
    for f, row in frame.iterrows():
        in_a, low, high = row.freq_a, rates[:, f].min(), rates[:, f].max()
        nearest = np.clip(in_a, low, high)
        assert (row.freq_b, row.difference) == pytest.approx((nearest, in_a - nearest))
        outside = in_a > high or in_a < low
        assert row.p_value == pytest.approx(max(s.p_value[f] for s in single) if outside else 1.0)
        assert row.ci_low - 1e-12 <= row.difference <= row.ci_high + 1e-12
        assert [row[f"freq[{name}]"] for name in "BCD"] == pytest.approx(rates[:, f])
    assert (frame.difference > 0).any()
    assert (frame.difference < 0).any()
    assert (frame.difference == 0).any()


def test_a_list_of_one_is_that_one(sets):
    one, listed = diff(sets[0], sets[1]), diff(sets[0], [sets[1]])
    assert one.frame.equals(listed.frame)
    assert listed.frame.columns.tolist() == COLUMNS
    assert by_feature(diff(sets[0], [sets[1]] * 3))[COLUMNS[1:5]].equals(by_feature(one)[COLUMNS[1:5]])


def test_any_aligned_by_hand_and_never_larger(sets):
    a, *others = sets
    strict, loose = by_feature(diff(a, others, others="any_aligned")), by_feature(diff(a, others))
    some = np.any([on(b) for b in others], axis=0)
    every = np.all([on(b) for b in others], axis=0)
    for f, row in strict.iterrows():
        in_a = on(a)[:, f].mean()
        nearest = np.clip(in_a, every[:, f].mean(), some[:, f].mean())
        assert (row.freq_a, row.difference) == pytest.approx((in_a, in_a - nearest))
        if row.difference > 0:
            both = (on(a) & some)[:, f].sum()
            assert row.p_value == mcnemar(*(np.array([x - both]) for x in (on(a)[:, f].sum(), some[:, f].sum())))[0]
    assert (strict.difference.abs() <= loose.difference.abs() + 1e-12).all()
    assert (strict.difference * loose.difference >= 0).all()


def test_paired_is_mcnemar_row_by_row(sets):
    a, b = sets[:2]
    frame = by_feature(diff(a, b, paired="prompt"))
    plain = by_feature(diff(a, b))
    for f, row in frame.iterrows():
        x, y = on(a)[:, f], on(b)[:, f]
        assert row.p_value == pytest.approx(mcnemar(np.array([(x & ~y).sum()]), np.array([(y & ~x).sum()]))[0])
        counts = (np.array([v.sum()]) for v in (x & y, x, y))
        low, high = newcombe_paired(*counts, 120)
        assert (row.ci_low, row.ci_high) == pytest.approx((low[0], high[0]))
    assert (frame.difference == plain.difference).all()
    # the sets are correlated row by row, so the paired interval is narrower
    assert (frame.ci_high - frame.ci_low).mean() < 0.95 * (plain.ci_high - plain.ci_low).mean()
    assert "McNemar" in diff(a, b, paired=True).test


def test_pairing_finds_what_two_samples_cannot():
    random = np.random.default_rng(0)
    base = random.random((200, 50)) < 0.5
    flipped = base.copy()
    rows = np.flatnonzero(~base[:, 0])[:12]
    flipped[rows, 0] = True  # feature 0 fires in 12 rows more, and nowhere less
    a, b = embedding_of(flipped), embedding_of(base)
    assert diff(a, b, paired=True).significant().feature.tolist() == [0]
    assert len(diff(a, b).significant()) == 0


def test_rows_that_do_not_belong_together_are_refused(sets):
    a, b = sets[:2]
    with pytest.raises(InputError, match="120 in A, 60 in B"):
        diff(a, b.subset(range(60)), paired=True)
    with pytest.raises(InputError, match="120 in A, 120 in B, 119 in C"):
        diff(a, [b, b.subset(range(119))], others="any_aligned")
    with pytest.raises(InputError, match="row 0 does not belong together: prompt is 0 in A and 119 in B"):
        diff(a, b.subset(range(119, -1, -1)), paired="prompt")
    with pytest.raises(InputError, match="no column 'promt'.*Closest: prompt"):
        diff(a, b, paired="promt")
    with pytest.raises(InputError, match="match_length"):
        diff(a, [b, b], match_length=True)


def test_by_a_column_is_each_value_against_the_rest():
    random = np.random.default_rng(1)
    genre = random.choice(["news", "story", "letter"], 300)
    fires = random.random((300, 60)) < 0.2
    fires[genre == "story", 7] = random.random((genre == "story").sum()) < 0.9
    emb = embedding_of(fires, words=[f"w{i % 9}" for i in range(300)], columns=pd.DataFrame({"genre": genre}))
    found = diff(emb, by="genre")
    assert list(found) == ["letter", "news", "story"]
    assert found["story"].frame.feature[0] == 7
    alone = diff(emb.subset(genre == "story"), emb.subset(genre != "story"), names=("story", "the rest"))
    pd.testing.assert_frame_equal(found["story"].frame, alone.frame)
    assert found["story"].names == ("story", "the rest")
    frame = found.to_frame()
    assert frame.columns.tolist() == ["genre", *COLUMNS]
    assert len(frame) == sum(len(part) for part in found.values())
    summary = found.summary()
    assert summary.documents.sum() == 300
    assert summary.features[2].startswith("7 fires on")
    assert found.plot() is not None
    assert "genre" in found._repr_html_()


def test_a_missing_value_is_on_neither_side():
    column = pd.DataFrame({"kind": ["a", "b", None, "a"]})
    found = diff(embedding_of(np.ones((4, 2)), columns=column), by="kind")
    assert [len(found["a"].a), len(found["a"].b)] == [2, 1]


def test_by_refuses_what_makes_no_groups():
    emb = embedding_of(np.ones((150, 2)), columns=pd.DataFrame({"id": np.arange(150), "one": 1}))
    for column in ("id", "one"):
        with pytest.raises(InputError, match="2 to 100"):
            diff(emb, by=column)
    with pytest.raises(InputError, match="give no second"):
        diff(emb, emb, by="id")
    with pytest.raises(InputError, match="give a second"):
        diff(emb)


def test_support_and_coverage_leave_rows_out(sets):
    a, b = sets[0].subset(range(12)), sets[1].subset(range(12))
    whole = by_feature(diff(a, b))
    total = (whole.freq_a + whole.freq_b) * 12
    supported = by_feature(diff(a, b, min_support=6))
    assert set(supported.index) == set(whole.index[total.round() >= 6])
    assert len(supported) < len(whole)
    assert (supported.q_value <= whole.q_value[supported.index] + 1e-12).all()  # fewer tests
    covered = by_feature(diff(a, b, coverage=(0.2, 0.6)))
    shares = whole[["freq_a", "freq_b"]]
    assert set(covered.index) == set(whole.index[(shares.min(axis=1) >= 0.2) & (shares.max(axis=1) <= 0.6)])
    assert (covered.q_value == whole.q_value[covered.index]).all()
    with pytest.raises(InputError, match="coverage"):
        diff(a, b, coverage=(0.6, 0.2))
    with pytest.raises(InputError, match="'max_feq'.*Closest: max_freq"):
        diff(a, b, others="max_feq")


def test_relative_differences_by_hand(sets):
    frame = diff(sets[0], sets[1], relative=True).frame
    expected = frame.difference / frame[["freq_a", "freq_b"]].max(axis=1)
    assert frame.relative.tolist() == pytest.approx(expected.tolist())
    assert frame.relative.abs().is_monotonic_decreasing


def test_top_takes_from_both_directions(sets):
    found = diff(sets[0], sets[1])
    top = found.top(5)
    assert [(top.difference > 0).sum(), (top.difference < 0).sum()] == [3, 2]
    assert top.difference.abs().is_monotonic_decreasing
    assert top.feature[top.difference < 0].tolist() == found.frame.query("difference < 0").feature[:2].tolist()


def test_many_sets_show_their_texts_and_names(sets):
    a, b, c, _ = sets
    found = diff(a, {"gamma": b, "delta": c}, names=None)
    assert list(found.others) == ["gamma", "delta"]
    assert found.names == ("A", "the nearest of 2 others")
    rows = found.examples(3, k=4)["b"]
    assert all(row["values"].max() > 0 for row in rows)
    from_c = embedding_of(np.zeros((5, FEATURES)))
    late = diff(a, {"gamma": from_c, "delta": c}).examples(3, k=2)["b"]
    assert min(row["document"] for row in late) >= 5  # numbers go on through the sets
    assert "gamma" in found._repr_html_()
    with pytest.raises(InputError, match="gamma, delta"):
        _ = found.b
    with pytest.raises(InputError, match="different names"):
        diff(a, [b, c], names=("x", "y", "y"))


def test_texts_without_tokens_are_reported():
    a = embedding_of(np.r_[np.zeros((2, 3)), np.ones((4, 3))], n_tokens=[0, 0, 1, 1, 1, 1])
    b = embedding_of(np.ones((4, 3)))
    assert any("2 in A" in note for note in diff(a, b).notes)
    assert not any("without a pooled token" in note for note in diff(b, b).notes)


def test_near_duplicates_are_collapsed_by_documents():
    random = np.random.default_rng(0)
    fires = random.random((200, 6)) < 0.3
    fires[:100, 0] |= random.random(100) < 0.6
    fires[:, 4] = fires[:, 0]
    fires[0, 4] = not fires[0, 4]  # nearly the same documents
    emb = embedding_of(fires)
    found = diff(emb.subset(range(100)), emb.subset(range(100, 200)))
    assert set(found.frame.feature[:2]) == {0, 4}
    first, second = found.frame.feature[:2]
    less = found.distinct()
    assert len(less) == len(found) - 1
    assert less.frame.feature[0] == first
    assert less.frame.repeats[0] == [second]
    assert less.frame.repeats[1:].map(len).sum() == 0
    assert less.frame.q_value[0] == found.frame.q_value[0]
    assert len(found.distinct(jaccard=1.0)) == len(found)
    assert len(found.distinct(top=3)) == 2


def test_near_duplicates_are_collapsed_by_decoder():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=64, k=4, site="blocks.1.hook_resid_post")
    emb = sl.embed([f"the cat {i} sat on {i * 7} mats" for i in range(40)], m, sae, progress=False)
    found = diff(emb.subset(range(20)), emb.subset(range(20, 40)))
    first, other = found.frame.feature[0], found.frame.feature[5]
    assert other not in found.distinct(sae).frame.repeats[0]
    sae.W_dec.data[other] = 3 * sae.W_dec.data[first]
    emb.info["sae_sha256"] = found.a.info["sae_sha256"] = found.b.info["sae_sha256"] = _hash(sae)
    assert other in found.distinct(sae).frame.repeats[0]
    with pytest.raises(FitError, match="not the one"):
        found.distinct(sl.SAE("topk", d_in=32, d_sae=64, k=4))


def _hash(sae):
    from sparselens.embeddings.reader import sae_hash

    return sae_hash(sae)

"""`correlate`: brute force, injected pairs, trivial pairs, two sides, and what is shown."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import sparselens as sl
from sparselens.embeddings import correlate
from sparselens.embeddings.pairs import joint_counts
from sparselens.errors import FitError, InputError
from tests import tiny
from tests.embeddings.synthetic import embedding_of


def spread(fires, seed=0, **more):
    """Documents of 40 tokens, each feature on one of them at random."""
    at = np.random.default_rng(seed).integers(0, 40, fires.shape)
    return embedding_of(fires, n_tokens=[40] * len(fires), at=at, **more)


def injected(seed, n=1000, features=300, share=0.01):
    """Independent features, and two that fire together in 1 % of the documents."""
    random = np.random.default_rng(seed)
    fires = random.random((n, features)) < random.beta(0.5, 15, features)
    fires[:, [3, 8]] = random.random((n, 2)) < 0.002
    rows = random.choice(n, round(share * n), replace=False)
    fires[rows[:, None], [3, 8]] = True
    return fires


@pytest.fixture(scope="module")
def fires():
    random = np.random.default_rng(0)
    topic = random.random((150, 3)) < 0.3
    return random.random((150, 25)) < np.where(topic[:, np.arange(25) % 3], 0.4, 0.1)


def test_against_brute_force(fires):
    emb = spread(fires)
    frame = correlate(emb, min_npmi=-1.0, min_support=1, max_frequency=1.0, drop_trivial=False).frame
    found = {(r.feature_a, r.feature_b): r for r in frame.itertuples()}
    n, tests = len(fires), 25 * 24 // 2
    p = []
    for i, j in itertools.combinations(range(25), 2):
        both = (fires[:, i] & fires[:, j]).mean()
        if both == 0:
            assert (i, j) not in found
            p.append(1.0)
            continue
        row, a, b = found[i, j], fires[:, i].mean(), fires[:, j].mean()
        assert row.npmi == pytest.approx(np.log(both / (a * b)) / -np.log(both))
        assert row.co_occurrence == pytest.approx(max(both / a, both / b))
        assert (row.support, row.freq_a, row.freq_b) == pytest.approx((both * n, a, b))
        table = [[x, y - x] for x, y in ((both * n, a * n), ((b - both) * n, (1 - a) * n))]
        assert row.p_value == pytest.approx(scipy.stats.fisher_exact(np.round(table), "greater").pvalue)
        p.append(row.p_value)
    assert len(p) == tests
    q = np.sort(scipy.stats.false_discovery_control(p))
    np.testing.assert_allclose(np.sort(frame.q_value), q[: len(frame)], rtol=1e-9)
    assert frame.npmi.is_monotonic_decreasing


def test_joint_counts_dense_and_sparse_agree():
    from scipy.sparse import csr_matrix

    random = np.random.default_rng(0)
    for share in (0.02, 0.4):
        a, b = random.random((700, 60)) < share, random.random((700, 45)) < share
        got = joint_counts(csr_matrix(a), csr_matrix(b))
        assert (got == a.T.astype(int) @ b.astype(int)).all()


def test_filters(fires):
    emb = spread(fires)
    everything = correlate(emb, min_npmi=-1.0, min_support=1, max_frequency=1.0, drop_trivial=False).frame
    kept = correlate(emb, min_npmi=0.1, min_support=8, max_frequency=0.25, drop_trivial=False).frame
    wanted = everything[(everything.npmi >= 0.1) & (everything.support >= 8)
                        & (everything[["freq_a", "freq_b"]].max(axis=1) <= 0.25)]
    assert set(zip(kept.feature_a, kept.feature_b, strict=True)) == set(
        zip(wanted.feature_a, wanted.feature_b, strict=True))
    most = np.sort(np.argsort(-fires.sum(axis=0), kind="stable")[:6])
    few = correlate(emb, top=6, min_npmi=-1.0, min_support=1, max_frequency=1.0, drop_trivial=False)
    assert set(few.frame.feature_a) | set(few.frame.feature_b) <= set(most)
    assert few.tests == 15
    with pytest.raises(InputError, match="min_support"):
        correlate(emb, min_support=0)


@pytest.mark.parametrize("seed", range(5))
def test_an_injected_pair_comes_first_when_support_is_asked_for(seed):
    emb = spread(injected(seed))
    first = correlate(emb, min_npmi=0.6).frame
    assert (first.feature_a[0], first.feature_b[0]) == (3, 8)
    assert len(first) <= 2
    loose = correlate(emb, min_npmi=0.6, min_support=1).frame
    assert len(loose) > 5 * len(first)  # rare features that met once or twice


@pytest.mark.parametrize("seed", range(3))
def test_independent_features_have_no_pair(seed):
    random = np.random.default_rng(seed)
    fires = random.random((2000, 150)) < random.beta(1, 12, 150)
    found = correlate(spread(fires), min_npmi=-1.0, drop_trivial=False)
    assert found.tests > 8000
    assert len(found.significant()) <= 1
    common = found.frame[found.frame[["freq_a", "freq_b"]].min(axis=1) > 0.15]
    assert common.npmi.abs().max() < 0.1


def test_pairs_on_the_same_or_adjacent_tokens_are_trivial():
    random = np.random.default_rng(0)
    n = 200
    fires = random.random((n, 6)) < 0.05
    fires[:60, :] |= (random.random((60, 1)) < 0.9) & (np.arange(6) < 5)
    at = np.tile(np.array([3, 4, 20, 30, 30, 0]), (n, 1))  # 0 and 1 adjacent, 3 and 4 on one token
    at[:, 2] += random.integers(0, 2, n)
    near = np.arange(n) < n // 4
    at[:, 3] = np.where(near, 30, 35)
    emb = embedding_of(fires * (1 + random.random((n, 6))), n_tokens=[40] * n, at=at, block=70)
    kept = correlate(emb)
    whole = correlate(emb, drop_trivial=False)
    share = {(r.feature_a, r.feature_b): r.same_token for r in whole.frame.itertuples()}
    assert share[0, 1] == 1
    assert share[0, 2] == 0
    both = fires[:, 3] & fires[:, 4]
    assert share[3, 4] == pytest.approx(near[both].mean())
    assert 0.5 < share[3, 4] < 1
    gone = {(0, 1), (3, 4)}
    assert set(share) - set(zip(kept.frame.feature_a, kept.frame.feature_b, strict=True)) == gone
    assert kept.trivial == 2
    assert "2 pairs left out" in repr(kept)


def test_the_peak_of_a_feature_decides_its_token():
    from sparselens.embeddings.pairs import _peaks

    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=64, k=4, site="blocks.1.hook_resid_post")
    emb = sl.embed([f"the cat {i} sat" for i in range(5)], m, sae, progress=False)
    got = _peaks(emb, np.arange(64)).toarray()
    starts = np.cumsum([0, *(len(emb.tokens(d)) for d in range(4))])
    for d in range(5):
        values = np.abs(emb.activations(d, range(64)))
        peak = np.where(values.max(axis=0) > 0, starts[d] + values.argmax(axis=0) + 1, 0)
        assert (got[d] == peak).all()


def test_two_sides_with_themselves_are_one(fires):
    emb = spread(fires)
    settings = {"min_npmi": -1.0, "min_support": 1, "max_frequency": 1.0}
    one = correlate(emb, drop_trivial=False, **settings).frame.set_index(["feature_a", "feature_b"])
    two = correlate(emb, emb, **settings).frame.set_index(["feature_a", "feature_b"])
    columns = ["npmi", "support", "co_occurrence", "similarity", "p_value"]
    pd.testing.assert_frame_equal(two.loc[one.index, columns], one[columns])
    for f in range(25):
        assert two.loc[(f, f), "npmi"] == pytest.approx(1)
    assert two.same_token.isna().all()


def test_prompts_and_responses(fires):
    random = np.random.default_rng(0)
    answer = random.random((150, 25)) < 0.2
    answer[:, 4] = fires[:, 9]
    columns = pd.DataFrame({"id": np.arange(150)})
    prompts = spread(fires, columns=columns, role="user")
    answers = spread(answer, columns=columns, role="assistant", words=["odd"] * 150)
    found = correlate(prompts, answers, paired="id")
    first = found.frame.iloc[0]
    assert (first.feature_a, first.feature_b) == (9, 4)
    assert first.npmi == pytest.approx(1)
    assert found.tests <= 25 * 25
    documents = found.documents((9, 4))
    assert documents.document.sort_values().tolist() == np.flatnonzero(fires[:, 9]).tolist()
    assert documents.other_text.str.startswith("odd").all()
    with pytest.raises(InputError, match="150 in the first, 149 in the other"):
        correlate(prompts, answers.subset(range(149)))
    with pytest.raises(InputError, match="sae_sha256"):
        correlate(prompts, embedding_of(np.ones((150, 25)), sae_sha256="1"))


def test_documents_behind_a_pair(fires):
    random = np.random.default_rng(3)
    values = fires * (0.1 + random.random(fires.shape))
    found = correlate(spread(values), min_npmi=-1.0, drop_trivial=False)
    for which, rows in (("both", fires[:, 0] & fires[:, 3]), ("a", fires[:, 0] & ~fires[:, 3]),
                        ("b", fires[:, 3] & ~fires[:, 0])):
        got = found.documents((0, 3), which)
        assert sorted(got.document) == np.flatnonzero(rows).tolist()
        np.testing.assert_allclose(got.value_a, values[got.document, 0], rtol=1e-6)
        np.testing.assert_allclose(got.value_b, values[got.document, 3], rtol=1e-6)
    both = found.documents((0, 3))
    assert (both.value_a * both.value_b).is_monotonic_decreasing
    examples = found.examples(0, 3, k=2)
    for side, feature in (("a", 0), ("b", 3)):
        assert [row["document"] for row in examples[side]] == both.document[:2].tolist()
        assert [row["values"].max() for row in examples[side]] == pytest.approx(
            values[both.document[:2], feature], rel=1e-3)
    with pytest.raises(InputError, match="'boht'.*Closest: both"):
        found.documents((0, 3), "boht")
    with pytest.raises(InputError, match="no feature 99"):
        found.documents((0, 99))


def test_similarity_by_tokens_and_by_decoder():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=128, k=6, site="blocks.1.hook_resid_post")
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "garden", "with", "zebra", "quick"]
    emb = sl.embed([" ".join(random.choice(words, 9)) for _ in range(60)], m, sae, progress=False)
    settings = {"min_npmi": 0.05, "max_frequency": 0.9, "drop_trivial": False}
    found = correlate(emb, sae=sae, **settings)
    rows = sae.W_dec.detach().numpy()
    for r in found.frame.head(30).itertuples():
        x, y = rows[r.feature_a], rows[r.feature_b]
        assert r.similarity == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
    assert found.similarity == "cosine of decoder rows"
    plain = correlate(emb, **settings)
    assert plain.frame.similarity.between(-1e-9, 1 + 1e-9).all()
    mass, r = emb.token_mass, plain.frame.iloc[3]
    scores = []
    for f in (r.feature_a, r.feature_b):
        share = mass.mass[f].toarray().ravel() / mass.mass[f].sum()
        common = (mass.counts + 1) / (mass.counts.sum() + len(mass.counts))
        scores.append(np.where(share > 0, np.maximum(share * np.log(np.maximum(share, 1e-300) / common), 0), 0))
    assert r.similarity == pytest.approx(np.dot(*scores) / np.linalg.norm(scores[0]) / np.linalg.norm(scores[1]))
    sae.W_dec.data[0] += 1
    with pytest.raises(FitError, match="not the one"):
        correlate(emb, sae=sae)


def test_what_is_shown():
    emb = spread(injected(0), words=["<script>"] * 1000)
    found = correlate(emb, min_npmi=0.2, labels={3: "<b>emoji</b>"})
    best = found.interesting(max_similarity=1.1)
    assert (best.feature_a.iloc[0], best.feature_b.iloc[0]) == (3, 8)
    assert len(found.interesting(max_similarity=0.0)) == 0
    html = found._repr_html_()
    assert "&lt;b&gt;emoji" in html
    assert "<script>" not in html
    assert "<b>emoji" not in html
    assert found.plot() is not None
    assert found.explore() is not None
    nothing = correlate(embedding_of(np.zeros((4, 5))))
    assert len(nothing) == 0
    assert nothing.plot() is not None
    assert "0 pairs" in repr(nothing)

"""`diff`: identities, a planted difference, a null split, and what is shown."""

import numpy as np
import pytest

import sparselens as sl
from sparselens.embeddings import diff
from sparselens.embeddings.contrasts import COLUMNS
from sparselens.errors import InputError
from tests import tiny
from tests.embeddings.synthetic import embedding_of

FEATURES, DOCUMENTS, PLANTED = 2000, 500, 20


def corpus(seed, documents=DOCUMENTS):
    """Two sets of documents over the same base rates; 20 features fire in 10 % more documents of the first."""
    random = np.random.default_rng(seed)
    rate = random.beta(0.4, 8, FEATURES)
    planted = random.choice(FEATURES, PLANTED, replace=False)
    raised = rate.copy()
    raised[planted] += 0.1
    a = random.random((documents, FEATURES)) < raised
    b = random.random((documents, FEATURES)) < rate
    return a, b, set(planted.tolist())


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    a = (random.random((30, 12)) < 0.3) * random.random((30, 12))
    b = (random.random((20, 12)) < 0.5) * random.random((20, 12))
    a[:, 11] = b[:, 11] = 0
    return embedding_of(a, block=7), embedding_of(b, words=["<script>alert(1)</script>"] * 20, block=7)


def test_numbers_by_hand(pair):
    a, b = pair
    frame = diff(a, b).to_frame()
    assert frame.columns.tolist() == COLUMNS
    assert sorted(frame.feature) == list(range(11))  # feature 11 fires nowhere
    for row in frame.itertuples():
        in_a, in_b = ((e.matrix.toarray()[:, row.feature] != 0).mean() for e in (a, b))
        assert (row.freq_a, row.freq_b, row.difference) == pytest.approx((in_a, in_b, in_a - in_b))
        assert row.ci_low <= row.difference <= row.ci_high
        assert row.q_value >= row.p_value
    assert frame.difference.abs().is_monotonic_decreasing


def test_the_other_way_round_changes_the_sign(pair):
    a, b = pair
    forth, back = (d.to_frame().set_index("feature").sort_index() for d in (diff(a, b), diff(b, a)))
    np.testing.assert_allclose(forth.difference, -back.difference)
    np.testing.assert_allclose(forth.ci_low, -back.ci_high)
    np.testing.assert_allclose(forth.p_value, back.p_value)


def test_nothing_differs_from_itself(pair):
    itself = diff(pair[0], pair[0])
    assert (itself.frame.difference == 0).all()
    assert len(itself.significant()) == 0
    np.testing.assert_allclose(itself.frame.p_value, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_difference_is_found(seed):
    a, b, planted = corpus(seed)
    found = diff(embedding_of(a), embedding_of(b))
    top = found.frame.feature[:PLANTED]
    assert len(planted & set(top)) / PLANTED >= 0.8
    assert len(planted & set(found.significant().feature)) / PLANTED >= 0.5
    assert len(set(found.significant().feature) - planted) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_differs_in_nothing(seed):
    a, b, _ = corpus(seed)
    both = embedding_of(np.concatenate([a, a]))
    mask = np.random.default_rng(seed).permutation(len(both)) < len(both) // 2
    assert len(diff(both.subset(mask), both.subset(~mask)).significant(0.05)) <= 2


def test_threshold_and_min_tokens_decide_what_fires():
    values = np.array([[0.5, 2.0], [0.0, 2.0]])
    a, b = embedding_of(values), embedding_of(values[::-1])
    assert set(diff(a, b).frame.feature) == {0, 1}
    assert set(diff(a, b, threshold=1.0).frame.feature) == {1}
    assert len(diff(a, b, min_tokens=2)) == 0


def test_length_is_confounded_and_can_be_matched():
    random = np.random.default_rng(0)
    sides = []
    for mean in (40, 60):  # every token fires a feature with the same chance: longer texts fire more
        lengths = random.poisson(mean, 400)
        fired = random.random((400, 200)) < 1 - (1 - 0.01) ** lengths[:, None]
        sides.append(embedding_of(fired, n_tokens=lengths))
    plain = diff(*sides)
    assert len(plain.significant()) > 50
    assert "Warning: the lengths differ" in repr(plain)
    matched = diff(*sides, match_length=True)
    assert len(matched.significant()) <= 2
    assert "Warning" not in repr(matched)
    assert len(matched.a) == len(matched.b) > 60
    assert matched.frame.equals(diff(*sides, match_length=True).frame)


def test_other_models_and_dictionaries_are_refused(pair):
    a, b = pair
    for key, value in (("model", "other"), ("sae_sha256", "1"), ("site", "there"), ("role", "user")):
        with pytest.raises(InputError, match=key):
            diff(a, embedding_of(np.ones((2, 12)), **{key: value}))
    with pytest.raises(InputError, match="alpha"):
        diff(a, b, alpha=5.0)


def test_labels_and_methods(pair):
    found = diff(*pair, labels={3: "about cats"})
    text = dict(zip(found.frame.feature, found.frame.description, strict=True))
    assert text[3] == "about cats"
    assert text[4].startswith("fires on: ")
    assert "labels" in found.method


def test_examples_are_the_strongest_texts(pair):
    a, b = pair
    got = diff(a, b).examples(2, k=2)
    for side, emb in (("a", a), ("b", b)):
        column = emb.matrix.toarray()[:, 2]
        best = np.argsort(-column)[:2]
        assert [row["values"][0] for row in got[side]] == pytest.approx(column[best], rel=1e-3)
        assert [row["title"].split(",")[0] for row in got[side]] == [f"text {i}" for i in best]
    assert diff(a, b).examples(11) == {"a": [], "b": []}
    with pytest.raises(InputError, match="no feature 12"):
        diff(a, b).examples(12)


def test_shown_and_saved_texts_are_escaped(pair, tmp_path):
    found = diff(*pair, names=("left", "right"))
    html = found._repr_html_()
    assert "left against right" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    page = found.save(tmp_path / "d.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "11 features compared" in page
    with pytest.raises(InputError, match=".html"):
        found.save(tmp_path / "d.pdf")
    assert [p.name for p in tmp_path.iterdir()] == ["d.html"]


def test_plot_and_explore(pair):
    found = diff(*pair)
    assert found.plot(top=5) is not None
    widget = found.explore()
    assert widget is not None


def test_nothing_fires():
    empty = embedding_of(np.zeros((3, 4)))
    found = diff(empty, empty)
    assert len(found) == 0
    assert "No feature fires" in found._repr_html_()
    with pytest.raises(InputError, match="no feature fires"):
        found.explore()


def test_on_a_real_transformer_a_planted_word_is_found():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=1024, k=2, site="blocks.0.hook_resid_post")
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "he", "ate", "garden", "with", "them"]
    texts = [" ".join(random.choice(words, 12)) for _ in range(120)]
    plain = sl.embed(texts[:60], m, sae, progress=False)
    odd = sl.embed([t + " ZZ QQ" for t in texts[60:]], m, sae, progress=False)
    found = diff(odd, plain)
    top = found.frame.iloc[0]
    assert top.difference > 0.5
    assert top.q_value < 1e-6
    assert "Z" in top.description or "Q" in top.description
    described = found.describe(m, sae, top=3)
    assert "promotes" in described.frame.description[0]
    assert "promotes" not in described.frame.description[3]
    assert "logit lens" in described.method
    assert "promotes" not in found.frame.description[0]
    half = sl.embed(texts, m, sae, progress=False)
    mask = np.arange(120) % 2 == 0
    assert len(diff(half.subset(mask), half.subset(~mask)).significant()) <= 2

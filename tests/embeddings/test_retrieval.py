"""`retrieve`: identities of the weights, normalisation, each way to match a query, fusion, queries that miss."""

import numpy as np
import pytest

import sparselens as sl
from sparselens.embeddings import KeywordJudge, average_precision
from sparselens.embeddings.query import normalised
from sparselens.errors import InputError, NotFiniteError
from tests import tiny
from tests.embeddings.synthetic import embedding_of


@pytest.fixture(scope="module")
def emb():
    random = np.random.default_rng(0)
    values = np.exp(random.normal(0, 1, (80, 30))) * (random.random((80, 30)) < 0.3)
    values[:, 29] = 0
    return embedding_of(values, words=[f"word{i % 9}" for i in range(80)], block=33)


FEATURES = [3, 11, 7, 20, 5]


def by_hand(values, features, temperature):
    scores = np.zeros(len(values))
    for rank, f in enumerate(features):
        column = np.abs(values[:, f])
        scores += np.exp(-(rank / len(features)) / temperature) * column / np.quantile(column[column > 0], 0.9)
    return scores


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.5])
def test_against_a_plain_loop(emb, temperature):
    found = sl.retrieve(emb, FEATURES, temperature=temperature, k=80)
    expected = by_hand(emb.matrix.toarray().astype(float), FEATURES, temperature)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    assert (np.diff(found.scores[found.documents]) <= 0).all()
    assert len(found) == (expected > 0).sum()


def test_normalised_by_the_percentile_of_each_column(emb):
    matrix, got = emb.matrix.toarray().astype(float), normalised(emb).toarray()
    for f in range(29):
        column = matrix[:, f]
        np.testing.assert_allclose(got[:, f], column / np.quantile(column[column > 0], 0.9), rtol=1e-9)
    assert (got[:, 29] == 0).all()
    one = normalised(embedding_of(np.array([[5.0, -3], [0, 0]]))).toarray()
    assert one.tolist() == [[1, 1], [0, 0]]
    assert normalised(embedding_of(np.zeros((2, 3)))).nnz == 0


def test_cold_is_the_first_feature_and_hot_is_the_sum(emb):
    values = normalised(emb)
    cold = sl.retrieve(emb, FEATURES, temperature=1e-4, k=80)
    first = values[:, [3]].toarray()[:, 0]
    fires = [d for d in cold.documents if first[d] > 0]
    assert fires == sorted(np.flatnonzero(first), key=lambda d: -first[d])
    assert cold.documents[: len(fires)].tolist() == fires
    hot = sl.retrieve(emb, FEATURES, temperature=1e6, k=80)
    np.testing.assert_allclose(hot.scores, np.asarray(values[:, FEATURES].sum(axis=1)).ravel(), rtol=1e-5)


def test_a_loud_feature_changes_nothing(emb):
    loud = emb.matrix.toarray().copy()
    loud[:, 7] *= 1000
    found = sl.retrieve(embedding_of(loud, words=emb.documents.text), FEATURES, k=80)
    assert found.documents.tolist() == sl.retrieve(emb, FEATURES, k=80).documents.tolist()


def test_contributions_sum_to_the_score(emb):
    found = sl.retrieve(emb, FEATURES)
    for document in found.documents[:4]:
        parts = found.explain(int(document))
        assert parts.contribution.sum() == pytest.approx(found.scores[document])
        assert parts.contribution.is_monotonic_decreasing
        assert set(parts.labelled_by) == {"top tokens by activation-weighted frequency ratio"}
    assert found.highlight(int(found.documents[0])).tokens
    with pytest.raises(InputError, match="no document 80"):
        found.explain(80)


@pytest.fixture(scope="module")
def animals():
    """90 texts with one of three words; a feature fires on each word, another on all."""
    words = [["cat", "dog", "bird"][i % 3] for i in range(90)]
    values = np.zeros((90, 6))
    values[np.arange(90), np.arange(90) % 3] = np.linspace(1, 2, 90)
    values[:, 3] = 1
    return embedding_of(values, words=words)


def test_a_text_is_matched_by_the_words_of_descriptions(animals):
    found = sl.retrieve(animals, "DOG", k=100)
    assert found.features.feature.tolist() == [1]
    assert set(found.documents % 3) == {1}
    assert len(found) == 30
    assert average_precision(found.scores, np.arange(90) % 3 == 1) == 1
    assert "BM25" in found.method
    labelled = sl.retrieve(animals, "feline", labels={0: "a feline", 1: "a canine"}, k=5)
    assert set(labelled.documents % 3) == {0}
    assert labelled.features.labelled_by.tolist() == ["given labels"]


def test_nothing_matched_is_a_clear_result(animals):
    found = sl.retrieve(animals, "zebra crossing")
    assert (len(found), len(found.features), found.scores.max()) == (0, 0, 0)
    assert "Nothing matched" in repr(found)
    assert "Nothing matched" in found._repr_html_()
    assert len(found.to_frame()) == 0
    assert found.to_frame().columns.tolist() == ["document", "score", "text", "n_tokens"]
    assert len(found.explain(0)) == 0
    assert found.plot() is not None
    with pytest.raises(InputError, match="none of the query's features"):
        found.highlight(0)
    assert len(sl.retrieve(animals, [4])) == 0  # fires nowhere
    assert len(sl.retrieve(embedding_of(np.zeros((3, 4))), "w")) == 0


def test_an_encoder_compares_the_query_with_labels(animals):
    vectors = {"pet": [1.0, 0.2], "a feline": [1, 0], "a canine": [0.5, 0.8], "": [1, 1]}

    def encoder(texts):
        return np.array([vectors[text] for text in texts])

    found = sl.retrieve(animals, "pet", labels={0: "a feline", 1: "a canine"}, encoder=encoder, k=90)
    assert found.features.feature.tolist() == [0, 1]  # those without a label do not count
    assert found.features.similarity[0] == pytest.approx(1 / np.hypot(1, 0.2))
    assert found.documents[0] % 3 == 0
    for bad, error in ((lambda t: np.ones(3), InputError), (lambda t: np.full((len(t), 2), np.nan), NotFiniteError)):
        with pytest.raises(error):
            sl.retrieve(animals, "pet", encoder=bad)


def test_a_judge_leaves_features_out(animals):
    labels = {0: "pets: cats", 1: "pets: dogs", 2: "pets: birds"}
    every = sl.retrieve(animals, "pets", labels=labels)
    assert len(every.features) == 3
    judge = KeywordJudge({"pets": "dogs|birds"})
    chosen = sl.retrieve(animals, "pets", labels=labels, judge=judge)
    assert sorted(chosen.features.feature) == [1, 2]
    assert "2 of 3 kept by keywords" in chosen.method
    assert chosen.cost.stages["select"]["prompts"] == 3


def test_examples_find_what_they_share(animals):
    for examples in (animals.subset([2, 5, 8]), animals.subset([2])):
        found = sl.retrieve(animals, examples, k=30)
        assert found.features.feature.tolist() == [2]  # the feature that always fires says nothing
        assert set(found.documents % 3) == {2}
    with pytest.raises(InputError, match="m= and sae="):
        sl.retrieve(animals, ["a bird"])
    with pytest.raises(InputError, match="pooled by mean"):
        sl.retrieve(animals, embedding_of(np.ones((1, 6)), pooling="mean"))


def test_fusion_is_the_sum_of_reciprocal_ranks(animals):
    found = sl.retrieve(animals, "cat", fuse="bm25", k=90)
    ranks = found.to_frame().set_index("document")
    assert (ranks.score == 1 / (60 + ranks.features_rank) + 1 / (60 + ranks.bm25_rank)).all()
    assert list(found.parts) == ["features", "bm25"]
    table = np.eye(3)

    def encoder(texts):
        return np.array([table[["cat", "dog", "bird"].index(t)] if t in ("cat", "dog", "bird") else np.ones(3)
                         for t in texts])

    dense = sl.retrieve(animals, "cat", fuse="dense", encoder=encoder, labels={0: "cat"}, k=90)
    assert len(dense) == 90  # a dense ranking places every document
    assert set(dense.documents[:30] % 3) == {0}
    words_only = sl.retrieve(animals, "zebra", labels={0: "zebra"}, fuse="bm25")
    assert words_only.documents[0] % 3 == 0


def test_k_and_columns(animals):
    assert len(sl.retrieve(animals, [0], k=10**6)) == 30
    found = sl.retrieve(animals, 0, k=3)
    assert found.to_frame().columns.tolist() == ["document", "score", "text", "n_tokens"]
    assert found.subset().documents.text.tolist() == ["cat"] * 3
    assert found.plot() is not None


def test_texts_and_queries_are_escaped():
    values = np.array([[1.0], [0]])
    found = sl.retrieve(embedding_of(values, words=["<script>alert(1)</script>", "\x1b[31m\u202e"]), [0])
    html = found._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    odd = sl.retrieve(embedding_of(values), "<b>\ud83d")
    assert "<b>" not in odd._repr_html_()


@pytest.mark.parametrize(
    ("query", "settings", "says"),
    [("", {}, "empty"), ("  \n", {}, "empty"), ([], {}, "empty"), (3.5, {}, "float"), ({"a": 1}, {}, "dict"),
     ([1, "a"], {}, "list"), ([99], {}, "no feature 99"), ("a", {"k": 0}, "above 0"),
     ("a", {"temperature": 0.0}, "above 0"), ("a", {"temperature": float("nan")}, "above 0"),
     ("a", {"n_features": 0}, "above 0"), ("a", {"fuse": "bm52"}, "Closest: bm25"), ("a", {"fuse": "dense"}, "encoder"),
     ([1], {"fuse": "bm25"}, "words"), ([True], {}, "list")],
)
def test_bad_queries(animals, query, settings, says):
    with pytest.raises(InputError, match=says):
        sl.retrieve(animals, query, **settings)


def test_reading_the_query_with_the_model():
    m = tiny.live("llama")  # before the first layer a token has the same features in any company
    sae = sl.SAE("topk", d_in=32, d_sae=256, k=2, site="blocks.0.hook_resid_pre")
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "he", "ate"]
    texts = [" ".join(random.choice(words, 8)) + (" ZZ QQ" if i % 4 == 0 else "") for i in range(60)]
    emb = sl.embed(texts, m, sae, progress=False)
    relevant = np.arange(60) % 4 == 0
    assert average_precision(sl.retrieve(emb, "ZZ QQ", m, sae, k=60).scores, relevant) > 0.9
    assert average_precision(sl.retrieve(emb, ["a ZZ QQ", "he ZZ QQ"], m, sae, k=60).scores, relevant) > 0.9
    assert "fire on the query" in sl.retrieve(emb, "ZZ", m, sae).method
    with pytest.raises(InputError, match="both"):
        sl.retrieve(emb, "ZZ", m)
    other = sl.SAE("topk", d_in=32, d_sae=256, k=2, site="blocks.0.hook_resid_pre", seed=1)
    with pytest.raises(InputError, match="sae_sha256"):
        sl.retrieve(emb, "ZZ", m, other)

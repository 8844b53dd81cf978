"""`select`: the similarity against a dense loop, closed forms, planted tasks, ties, signs and bad input."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack

import sparselens as sl
from sparselens.embeddings import generalized_jaccard
from sparselens.embeddings.codes import mean_codes, without_signs
from sparselens.errors import InputError, NotFiniteError
from tests import tiny
from tests.embeddings.synthetic import embedding_of


def jaccard(z, t):
    return np.minimum(z, t).sum() / np.maximum(z, t).sum() if np.maximum(z, t).sum() else 0.0


def test_closed_forms():
    x = np.array([1.0, 0, 2])
    assert generalized_jaccard(x[None], x) == pytest.approx([1])
    assert generalized_jaccard(x[None], np.array([0.0, 3, 0])) == pytest.approx([0])
    assert generalized_jaccard(x[None], np.array([0.5, 1, 2])) == pytest.approx([2.5 / 4])
    assert generalized_jaccard(np.array([[0.5, 1, 2]]), x) == pytest.approx([2.5 / 4])
    for c in (0.2, 1.0, 5.0):
        assert generalized_jaccard(c * x[None], x) == pytest.approx([min(c, 1 / c)])
    assert generalized_jaccard(np.zeros((1, 3)), x).tolist() == [0]
    assert generalized_jaccard(np.zeros((1, 3)), np.zeros(3)).tolist() == [0]


def test_sparse_equals_dense():
    random = np.random.default_rng(0)
    z = random.exponential(size=(50, 30)) * (random.random((50, 30)) < 0.2)
    t = random.exponential(size=30) * (random.random(30) < 0.4)
    assert generalized_jaccard(csr_matrix(z), t) == pytest.approx([jaccard(row, t) for row in z], abs=1e-12)


@pytest.mark.parametrize("bad", [(np.ones((2, 3)), np.ones(4)), (-np.ones((2, 3)), np.ones(3)),
                                 (np.ones((2, 3)), -np.ones(3))])
def test_what_jaccard_refuses(bad):
    with pytest.raises(InputError):
        generalized_jaccard(*bad)


def test_mean_codes_do_not_depend_on_pooling():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=64, k=4, site="blocks.1.hook_resid_post")
    texts = ["the cat sat on a mat", "", "in the beginning there was a word", "a", "he ate the thing"]
    expected = sl.embed(texts, m, sae, pooling="mean", progress=False)
    for pooling in ("max", "sum", "binarize", "count"):
        got = mean_codes(sl.embed(texts, m, sae, pooling=pooling, progress=False))
        assert abs(got - expected.matrix).max() < 2e-3  # the stored codes of tokens are float16
    assert (mean_codes(expected) != expected.matrix).nnz == 0


def test_mean_codes_of_repeated_tokens():
    # every token twice: the mean is the same, a sum doubles
    once = embedding_of(np.array([[2.0, 0, 6]]), n_tokens=[2])
    assert mean_codes(once).toarray().tolist() == [[1, 0, 3]]
    twice = embedding_of(np.array([[4.0, 0, 12]]), n_tokens=[4])
    assert mean_codes(twice).toarray().tolist() == [[1, 0, 3]]


def tasks(seed, n=200, d=60, n_tasks=4):
    """Samples of several tasks; each task has its own 10 features and all share 20."""
    random = np.random.default_rng(seed)
    task = random.integers(0, n_tasks, n)
    z = np.zeros((n, d))
    for i, t in enumerate(task):
        own = 20 + 10 * t + random.choice(10, 4, replace=False)
        z[i, own] = random.exponential(size=4) + 1
        z[i, random.choice(20, 5, replace=False)] = random.exponential(size=5)
    return z, task


@pytest.mark.parametrize("similarity", ["jaccard", "cosine", "euclidean"])
@pytest.mark.parametrize("prototype", ["mean", "per_example_max", "kmeans:2"])
def test_planted_tasks_are_found(similarity, prototype):
    z, task = tasks(0)
    target, _ = tasks(1)
    target = target[tasks(1)[1] == 0][:20]
    chosen = sl.select(z, target, 0.1, similarity=similarity, prototype=prototype)
    assert len(chosen) == 20
    assert (task[chosen.indices] == 0).mean() >= 0.75
    assert (np.diff(chosen.scores[chosen.indices]) <= 0).all()
    by_chance = sl.select(z, target, 0.1, similarity="random", seed=3)
    assert (task[by_chance.indices] == 0).mean() < 0.6


def test_scores_against_loops():
    z, target = tasks(0, n=30)[0], tasks(1, n=5)[0]
    mean = target.mean(axis=0)
    expected = {
        "jaccard": [jaccard(row, mean) for row in z],
        "cosine": [row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) for row in z],
        "euclidean": [1 / (1 + np.linalg.norm(row - mean)) for row in z],
    }
    for similarity, scores in expected.items():
        assert sl.select(z, target, similarity=similarity).scores == pytest.approx(scores)
    best = [max(jaccard(row, t) for t in target) for row in z]
    assert sl.select(z, target, prototype="per_example_max").scores == pytest.approx(best)
    assert sl.select(z, target[:1], prototype="kmeans:1").scores == pytest.approx([jaccard(r, target[0]) for r in z])


def test_a_target_of_two_parts_is_covered_by_examples_not_by_their_mean():
    random = np.random.default_rng(0)
    left, right, between = np.eye(20)[:5], np.eye(20)[5:10], np.zeros((1, 20))
    between[0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] = 0.1  # like the mean, like no example
    pool = np.vstack([between, random.permutation(np.vstack([left, right]))])
    target = np.vstack([left, right])
    assert sl.select(pool, target, 0.1).indices.tolist() == [0]
    assert sl.select(pool, target, 0.1, prototype="per_example_max").indices.tolist() != [0]


def test_ties_empty_rows_and_ratio():
    z = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0.0]])
    chosen = sl.select(z, np.array([[1.0, 0, 0]]), 0.4)
    assert chosen.indices.tolist() == [1, 2]
    assert chosen.scores[0] == 0
    assert sl.select(z, np.array([[1.0, 0, 0]]), 1e-9).indices.tolist() == [1]
    everything = sl.select(z, np.array([[1.0, 0, 0]]), 1.0)
    assert everything.indices.tolist() == [1, 2, 4, 0, 3]
    assert "2 of the chosen samples share nothing" in repr(everything)
    for similarity in ("jaccard", "cosine", "euclidean"):
        assert sl.select(z, np.array([[1.0, 0, 0]]), similarity=similarity).scores[0] == 0
        assert (sl.select(z, np.zeros((1, 3)), similarity=similarity).scores == 0).all()


def test_signs_are_split():
    z = np.array([[1.0, -1], [-1, 1], [1, 1]])
    chosen = sl.select(z, np.array([[1.0, -1]]), 0.4)
    assert chosen.signed
    assert chosen.indices.tolist() == [0]
    assert chosen.scores.tolist() == pytest.approx([1, 0, 1 / 3])
    explained = chosen.explain(0)
    assert explained[["feature", "sign", "contribution"]].to_numpy().tolist() == [[0, 1, 0.5], [1, -1, 0.5]]
    assert without_signs(csr_matrix(z)).toarray().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("similarity", ["jaccard", "cosine"])
def test_contributions_sum_to_the_score(similarity):
    z, _ = tasks(0, n=30)
    chosen = sl.select(z, tasks(1, n=8)[0], similarity=similarity, prototype="per_example_max")
    for i in (0, 7, 29):
        assert chosen.explain(i).contribution.sum() == pytest.approx(chosen.scores[i])


def test_euclidean_contributions_sum_to_the_squared_distance():
    z, _ = tasks(0, n=30)
    chosen = sl.select(z, tasks(1, n=8)[0], similarity="euclidean")
    distance = 1 / chosen.scores[4] - 1
    assert chosen.explain(4).contribution.sum() == pytest.approx(-(distance**2))


def test_near_duplicates_are_left_out():
    z, _ = tasks(0, n=40)
    doubled = np.repeat(z, 3, axis=0)
    target = z[:3]
    plain, spread = sl.select(doubled, target, 0.1), sl.select(doubled, target, 0.1, dedup=0.95)
    assert len(plain) == len(spread) == 12
    assert len(set(plain.indices // 3)) == 4
    assert len(set(spread.indices // 3)) == 12
    signed = sl.select(doubled - 0.1, target, 0.1, dedup=0.95, similarity="cosine")
    assert len(set(signed.indices // 3)) == 12


def test_embeddings_texts_and_words():
    random = np.random.default_rng(0)
    words = [["apple pie", "goal keeper"][i % 2] for i in range(40)]
    values = np.zeros((40, 12))
    values[np.arange(40), np.arange(40) % 2 * 6 + random.integers(0, 6, 40)] = 1
    pool, target = embedding_of(values, words=words), embedding_of(values[1:20:2], words=words[1:20:2])
    for similarity in ("jaccard", "bm25"):
        chosen = sl.select(pool, target, 0.25, similarity=similarity)
        assert (chosen.indices % 2 == 1).all()
    frame = chosen.to_frame()
    assert frame.columns.tolist() == ["document", "score", "text", "n_tokens"]
    assert set(frame.text) == {"goal keeper"}
    assert chosen.subset().documents.text.tolist() == frame.text.tolist()
    by_code = sl.select(pool, target, 0.25)
    assert by_code.explain(1).labelled_by[0].startswith("top tokens")
    assert by_code.explain(1, labels={int(by_code.explain(1).feature[0]): "sport"}).description[0] == "sport"
    assert by_code.highlight(1).tokens == ["goal keeper"]
    with pytest.raises(InputError, match="shares nothing"):
        by_code.highlight(0)
    assert "Mean tokens" in by_code._repr_html_()
    assert by_code.plot() is not None


def test_coverage_counts_the_nearest():
    pool = np.array([[1.0, 0, 0], [1, 0, 0.1], [0, 0, 0], [0, 1, 0]])
    chosen = sl.select(pool, np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), 1.0)
    cover = chosen.coverage()
    assert cover.samples.tolist() == [2, 1, 0]
    assert cover.nearest.tolist() == pytest.approx([1, 1, 0.1 / 2])


def test_order_of_the_pool_does_not_matter():
    z, _ = tasks(0)
    order = np.random.default_rng(1).permutation(len(z))
    target = tasks(2, n=10)[0]
    plain, shuffled = sl.select(z, target, 0.1), sl.select(z[order], target, 0.1)
    assert sorted(order[shuffled.indices]) == sorted(plain.indices)
    whole = sl.select(csr_matrix(z), csr_matrix(target), 0.1)
    assert whole.indices.tolist() == plain.indices.tolist()
    alone = sl.select(vstack([csr_matrix(z[:1])]), target)
    assert alone.scores[0] == pytest.approx(plain.scores[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"ratio": 0.0}, "ratio"), ({"ratio": 1.5}, "ratio"), ({"similarity": "jacard"}, "Closest: jaccard"),
     ({"prototype": "kmeans:0"}, "kmeans:m"), ({"prototype": "kmeans:9"}, "only 3 examples"), ({"dedup": 1.0}, "dedup"),
     ({"similarity": "bm25"}, "reads texts")],
)
def test_bad_settings(settings, says):
    with pytest.raises(InputError, match=says):
        sl.select(np.ones((5, 4)), np.ones((3, 4)), **settings)


def test_bad_inputs():
    emb = embedding_of(np.ones((4, 3)))
    for pool, target, says in (
        (np.ones((5, 4)), np.ones((3, 5)), "columns"), (np.ones((0, 4)), np.ones((3, 4)), "no rows"),
        (np.ones(4), np.ones((3, 4)), "matrix"), ("text", np.ones((3, 4)), "matrix"), (emb, np.ones((1, 3)), "not one"),
        (emb, embedding_of(np.ones((2, 3)), sae_sha256="1"), "sae_sha256"),
    ):
        with pytest.raises(InputError, match=says):
            sl.select(pool, target)
    with pytest.raises(NotFiniteError):
        sl.select(np.full((2, 2), np.nan), np.ones((1, 2)))
    chosen = sl.select(np.ones((5, 4)), np.ones((3, 4)), similarity="random")
    for call in (lambda: chosen.explain(0), chosen.coverage, chosen.subset, lambda: chosen.highlight(0)):
        with pytest.raises(InputError):
            call()
    with pytest.raises(InputError, match="no document 5"):
        sl.select(np.ones((5, 4)), np.ones((3, 4))).explain(5)

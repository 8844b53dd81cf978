"""`cluster`: Jaccard by hand, planted topics and styles, what belongs nowhere, large corpora, what is shown."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sparselens.embeddings import cluster, diff
from sparselens.embeddings.jaccard import conductance_z, jaccard, spectral
from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of

STYLE = np.arange(120, 140)


def documents(seed, n=300):
    """Four topics of 30 features each, strong; two styles of 10 features each, weak; 60 features of noise."""
    random = np.random.default_rng(seed)
    topic, style = random.integers(0, 4, n), random.integers(0, 2, n)
    rate = np.full((n, 200), 0.05)
    for i in range(4):
        rate[topic == i, 30 * i : 30 * i + 30] = 0.6
    for i in range(2):
        rate[style == i, 120 + 10 * i : 130 + 10 * i] = 0.5
    return random.random((n, 200)) < rate, topic, style


def sparse(matrix):
    from scipy.sparse import csr_matrix

    return csr_matrix(np.asarray(matrix, dtype=bool))


def test_jaccard_by_hand():
    rows = np.zeros((4, 5), dtype=bool)
    rows[0, [1, 2, 3]] = rows[1, [2, 3, 4]] = rows[2, [0]] = True
    got = jaccard(sparse(rows), sparse(rows))
    assert got[0, 1] == 0.5  # the cosine would be 0.667
    assert got[0, 2] == 0
    assert np.diagonal(got).tolist() == [1, 1, 1, 0]
    assert (got[3] == 0).all()  # an empty row is like nothing, itself included
    random = np.random.default_rng(0)
    a, b = random.random((40, 30)) < 0.3, random.random((25, 30)) < 0.1
    want = [[(x & y).sum() / max((x | y).sum(), 1) for y in b] for x in a]
    np.testing.assert_allclose(jaccard(sparse(a), sparse(b)), want, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_topics_without_and_style_with_chosen_features(seed):
    fires, topic, style = documents(seed)
    emb = embedding_of(fires)
    assert adjusted_rand_score(topic, cluster(emb, 4).labels) > 0.95
    assert adjusted_rand_score(style, cluster(emb, 2).labels) < 0.2
    targeted = cluster(emb, 2, features=STYLE)
    there = targeted.labels >= 0
    assert adjusted_rand_score(style[there], targeted.labels[there]) > 0.8


def test_the_order_of_features_does_not_matter():
    fires, _, _ = documents(0)
    order = np.random.default_rng(0).permutation(200)
    a, b = cluster(embedding_of(fires), 4), cluster(embedding_of(fires[:, order]), 4)
    assert adjusted_rand_score(a.labels, b.labels) == 1


def test_what_belongs_nowhere_is_minus_one():
    fires, _, _ = documents(0)
    fires = np.c_[fires, np.zeros((300, 2), dtype=bool)]
    fires[[5, 50]] = False
    fires[77], fires[77, 200] = False, True  # a feature that fires nowhere else
    found = cluster(embedding_of(fires), 4)
    assert np.flatnonzero(found.labels == -1).tolist() == [5, 50, 77]
    assert any("3 documents are in no cluster" in note for note in found.notes)
    assert found.frame.documents.sum() == 297
    assert (found.centrality[[5, 50, 77]] == 0).all()


def test_the_table_by_hand():
    fires, _, _ = documents(1)
    emb = embedding_of(fires, words=[f"w{i % 7}" for i in range(300)])
    found = cluster(emb, 4)
    frame = found.frame
    assert frame.columns.tolist() == ["cluster", "documents", "description", "features", "central", "conductance_z"]
    assert frame.cluster.tolist() == [0, 1, 2, 3]
    assert frame.documents.is_monotonic_decreasing
    assert frame.documents.tolist() == np.bincount(found.labels).tolist()
    for row in frame.itertuples():
        inside = found.labels == row.cluster
        apart = fires[inside].mean(axis=0) - fires[~inside].mean(axis=0)
        assert np.sort(apart[row.features]) == pytest.approx(np.sort(apart)[-5:])
        assert len({f // 30 for f in row.features}) == 1  # of one topic
        members = fires[inside].astype(float)
        both = members @ members.T
        size = members.sum(axis=1)
        mean = (both / (size[:, None] + size - both)).sum(axis=1) - 1
        np.testing.assert_allclose(found.centrality[inside], mean / (inside.sum() - 1), rtol=1e-4)
        best = found.documents(row.cluster)
        assert best.index[:5].tolist() == row.central
        assert best.centrality.is_monotonic_decreasing
        assert row.conductance_z < -10
    assert len(found.subset(2)) == frame.documents[2]
    told = found.diff(0).frame
    alone = diff(emb.subset(found.labels == 0), emb.subset(found.labels != 0)).frame
    assert told.feature.tolist() == alone.feature.tolist()
    with pytest.raises(InputError, match="no cluster 9"):
        found.subset(9)


def test_conductance_by_hand():
    # two triangles joined by one edge of weight 1/2: the cut is 1/2, the volume of a triangle 6.5
    affinity = np.kron(np.eye(2), np.ones((3, 3))).astype(np.float32)
    affinity[2, 3] = affinity[3, 2] = 0.5
    inside = np.arange(6) < 3
    random = np.random.default_rng(0)
    draws = [random.permutation(inside) for _ in range(100)]
    bare = affinity - np.diag(np.diagonal(affinity))

    def phi(s):
        return bare[s][:, ~s].sum() / min(bare[s].sum(), bare[~s].sum())

    assert phi(inside) == pytest.approx(0.5 / 6.5)
    others = np.array([phi(s) for s in draws])
    assert conductance_z(affinity, inside, 0) == pytest.approx((phi(inside) - others.mean()) / others.std(), rel=1e-4)
    assert np.isnan(conductance_z(affinity, np.ones(6, dtype=bool), 0))


def test_a_targeted_cluster_is_loose_by_all_features():
    fires, _, _ = documents(0)
    emb = embedding_of(fires)
    tight, loose = cluster(emb, 4).frame.conductance_z, cluster(emb, 2, features=STYLE).frame.conductance_z
    assert tight.max() < loose.min() - 5


def test_spectral_cuts_where_the_edge_is_weak():
    affinity = np.kron(np.eye(2), np.ones((3, 3))).astype(np.float32)
    affinity[2, 3] = affinity[3, 2] = 0.2
    assert adjusted_rand_score(spectral(affinity, 2, 0), [0, 0, 0, 1, 1, 1]) == 1


def test_many_documents_join_the_clusters_of_a_sample():
    fires, topic, _ = documents(0, n=900)
    found = cluster(embedding_of(fires), 4, max_documents=200)
    assert adjusted_rand_score(topic, found.labels) > 0.95
    assert any("200 documents drawn at random" in note for note in found.notes)
    assert (cluster(embedding_of(fires), 4, max_documents=200).labels == found.labels).all()


def test_parts_without_a_common_feature_are_told():
    fires = np.kron(np.eye(3), np.ones((20, 4))).astype(bool)
    found = cluster(embedding_of(fires), 3)
    assert adjusted_rand_score(np.repeat(range(3), 20), found.labels) == 1
    assert any("3 parts" in note for note in found.notes)


def test_phrases_choose_features():
    fires, _, style = documents(0)
    labels = {f: f"words of topic {f}" for f in range(200)} | {int(f): "slang and curses" for f in STYLE}
    emb = embedding_of(fires)
    found = cluster(emb, 2, query="slang curses", top=20, labels=labels)
    assert found.features.tolist() == STYLE.tolist()
    there = found.labels >= 0
    assert adjusted_rand_score(style[there], found.labels[there]) > 0.8
    assert "slang curses" in found.notes[0]
    more = cluster(emb, 2, query=["slang curses", "topic 7"], features=[199], top=20, labels=labels)
    assert set(STYLE) | {7, 199} <= set(more.features)
    with pytest.raises(InputError, match="no feature fits 'xylophone'"):
        cluster(emb, 2, query="xylophone", labels=labels)


def test_what_cannot_be_clustered():
    emb = embedding_of(np.ones((5, 3)))
    with pytest.raises(InputError, match="at least 2"):
        cluster(emb, 1)
    with pytest.raises(InputError, match="k=5 clusters need more than 5 documents"):
        cluster(emb, 5)
    with pytest.raises(InputError, match="no feature 3"):
        cluster(emb, 2, features=[3])
    with pytest.raises(InputError, match="features is empty"):
        cluster(emb, 2, features=[])
    with pytest.raises(InputError, match="of 5 documents 0 do"):
        cluster(embedding_of(np.eye(5)), 2)


def test_what_is_shown():
    fires, _, _ = documents(0)
    found = cluster(embedding_of(fires, words=["<script>x"] * 300), 3, labels={f: "<b>t</b>" for f in range(200)})
    html = found._repr_html_()
    assert "<script>" not in html
    assert "<b>t" not in html
    assert "&lt;b&gt;t" in html
    assert "3 clusters" in repr(found)
    assert found.plot(top=2) is not None
    frame = found.documents()
    assert frame.cluster.tolist() == found.labels.tolist()
    pytest.importorskip("umap")
    assert found.explore() is not None

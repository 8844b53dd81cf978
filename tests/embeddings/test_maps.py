"""Maps of documents: exact neighbours, groups that stay together, what a choice has more of."""

import sys

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import sparselens as sl
from sparselens.embeddings.maps import neighbours
from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of


def groups(n: int = 40, seed: int = 0):
    """Documents of three kinds, each with ten features of its own and ten that all share."""
    random = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    values = np.zeros((n, 40))
    values[:, 30:] = random.random((n, 10)) < 0.5
    for k in range(3):
        values[kind == k, 10 * k : 10 * k + 10] = random.random(((kind == k).sum(), 10)) < 0.8
    return values, kind


@pytest.mark.parametrize("metric", ["jaccard", "cosine"])
def test_neighbours_are_exact(metric):
    random = np.random.default_rng(0)
    dense = random.gamma(1.0, 1.0, (600, 50)) * (random.random((600, 50)) < 0.2)
    dense[:, 0] = 1.0  # no row is empty
    index, distance = neighbours(csr_matrix(dense), metric, 7)
    if metric == "jaccard":
        on = dense != 0
        both = (on[:, None] & on[None]).sum(-1)
        truth = 1 - both / (on[:, None] | on[None]).sum(-1)
    else:
        unit = dense / np.linalg.norm(dense, axis=1, keepdims=True)
        truth = 1 - unit @ unit.T
    assert (index[:, 0] == np.arange(600)).all()
    assert (distance[:, 0] == 0).all()
    np.testing.assert_allclose(distance, np.take_along_axis(truth, index, 1), atol=1e-6)
    np.testing.assert_allclose(distance[:, 1:], np.sort(np.where(np.eye(600), 9, truth), axis=1)[:, :6], atol=1e-6)


def test_a_map_keeps_groups_together_and_comes_out_the_same():
    pytest.importorskip("umap")
    values, kind = groups(60)
    values[7] = 0
    emb = embedding_of(values)
    found = sl.concept_map(emb, kind.tolist(), n_neighbors=8)
    np.testing.assert_array_equal(found.xy, sl.concept_map(emb, n_neighbors=8).xy)
    assert np.isnan(found.xy[7]).all()
    assert "1 documents in which none of these features fires have no place." in found.notes
    placed = np.flatnonzero(found.placed)
    apart = np.linalg.norm(found.xy[placed][:, None] - found.xy[placed][None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (kind[placed][apart.argmin(1)] == kind[placed]).mean() > 0.95


def test_a_map_by_chosen_features_shows_their_axis():
    pytest.importorskip("umap")
    values, kind = groups(60)
    style = np.random.default_rng(1).integers(0, 2, 60)
    axis = np.stack([style, style, style, 1 - style, 1 - style, 1 - style], 1)
    emb = embedding_of(np.hstack([values, axis]))
    found = sl.concept_map(emb, metric="cosine", features=range(40, 46), n_neighbors=8)
    apart = np.linalg.norm(found.xy[:, None] - found.xy[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (style[apart.argmin(1)] == style).all()
    assert "over 6 chosen features" in found.notes[0]


def test_what_a_choice_has_more_of():
    pytest.importorskip("umap")
    values, kind = groups(90)
    found = sl.concept_map(embedding_of(values), kind.tolist(), labels={3: "the third"})
    rows = found.about(np.flatnonzero(kind == 0))
    assert {feature for feature, *_ in rows} <= set(range(10))
    for feature, _, inside, outside in rows:
        assert inside == pytest.approx((values[kind == 0, feature] != 0).mean())
        assert outside == pytest.approx((values[kind != 0, feature] != 0).mean())
    assert all(text == "the third" for feature, text, *_ in found.about(np.flatnonzero(values[:, 3])) if feature == 3)
    np.testing.assert_array_equal(found.find(3), np.flatnonzero(values[:, 3]))


def test_colour_by_a_column():
    pytest.importorskip("umap")
    import pandas as pd

    values, kind = groups(30)
    emb = embedding_of(values, columns=pd.DataFrame({"kind": [f"kind {k}" for k in kind]}))
    found = sl.concept_map(emb, "kind")
    assert found.classes.names == ["kind 0", "kind 1", "kind 2"]
    assert found.name == "kind"
    with pytest.raises(InputError, match=r"no column 'kinds'.*Closest: kind"):
        sl.concept_map(emb, "kinds")


def test_a_map_of_a_handful():
    pytest.importorskip("umap")
    values, _ = groups(5)
    assert np.isfinite(sl.concept_map(embedding_of(values)).xy).all()


def test_bad_input():
    values, _ = groups(30)
    emb = embedding_of(values)
    with pytest.raises(InputError, match="metric='jacard' is unknown.*Closest: jaccard"):
        sl.concept_map(emb, metric="jacard")
    with pytest.raises(InputError, match="at least four documents in which features fire; here are 3"):
        sl.concept_map(emb.subset([0, 1, 2]))
    with pytest.raises(InputError, match="there is no feature 99"):
        sl.concept_map(emb, features=[99])


def test_without_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    values, _ = groups(30)
    with pytest.raises(ImportError, match=r"pip install 'sparselens\[map\]'"):
        sl.concept_map(embedding_of(values))

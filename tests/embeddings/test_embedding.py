"""What an embedding answers, against its own matrix and against plain loops."""

import numpy as np
import pandas as pd
import pytest

from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of

VALUES = np.array([[0, 2, 0, -5], [1, 0, 0, 0], [3, 0, 0, 4], [0, 0, 0, 0], [9, 1, 0, 0]], dtype=np.float32)
WORDS = ["red", "blue", "red", "green", "red"]


@pytest.fixture(params=[2, 100])
def emb(request):
    return embedding_of(VALUES, n_tokens=[1, 2, 3, 1, 2], words=WORDS, block=request.param)


def test_matrix_and_documents(emb):
    np.testing.assert_array_equal(emb.matrix.toarray(), VALUES)
    assert emb.matrix.dtype == np.float32
    assert len(emb) == 5
    assert emb.documents.text.tolist() == ["red", "blue more", "red more more", "green", "red more"]
    assert emb.documents.n_tokens.tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("which", [[4, 0, 2], np.array([4, 0, 2]), np.array([True, False, True, False, True])])
def test_subset(emb, which):
    part = emb.subset(which)
    np.testing.assert_array_equal(part.matrix.toarray(), VALUES[which])
    assert part.documents.text.tolist() == emb.documents.text.iloc[which].tolist()
    assert part.documents.index.tolist() == [0, 1, 2]
    for i in range(3):
        where = int(np.arange(5)[which][i])
        assert part.tokens(i) == emb.tokens(where)
    again = part.subset([2, 1])
    np.testing.assert_array_equal(again.matrix.toarray(), VALUES[which][[2, 1]])
    assert (part.token_mass.mass.sum(), len(part.fires(0.5).indices)) == (abs(VALUES[which]).sum(), part.matrix.nnz)


def test_subset_keeps_repeats_and_columns():
    emb = embedding_of(VALUES, words=WORDS, block=2, columns=pd.DataFrame({"n": range(5)}))
    part = emb.subset([3, 3, 0])
    assert part.documents.n.tolist() == [3, 3, 0]
    assert emb.subset(emb.documents.n > 2).documents.n.tolist() == [3, 4]
    assert part.tokens(1) == ["green"]


@pytest.mark.parametrize(
    ("which", "says"),
    [([], "at least one"), ([True, False], "mask has shape"), ([5], "no document 5"), ([-1], "no document -1"),
     ([0.5], "whole numbers"), ([[0]], "at least one")],
)
def test_bad_subsets(emb, which, says):
    with pytest.raises(InputError, match=says):
        emb.subset(which)


def test_activations(emb):
    assert emb.activations(2, 0).tolist() == [3, 0, 0]
    assert emb.activations(2, [3, 0, 1]).tolist() == [[4, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert emb.activations(0, 3).tolist() == [-5]
    assert emb.activations(0, range(4)).tolist() == [[0, 2, 0, -5]]
    assert emb.activations(2, np.array([0, 0])).tolist() == [[3, 3], [0, 0], [0, 0]]
    assert emb.activations(2, []).shape == (3, 0)
    with pytest.raises(InputError, match="no feature 4"):
        emb.activations(0, 4)
    with pytest.raises(InputError, match="no document 5"):
        emb.activations(5, 0)


def test_top_documents(emb):
    top = emb.top_documents(0, 2)
    assert top.document.tolist() == [4, 2]
    assert top.value.tolist() == [9, 3]
    assert top.text.tolist() == ["red more", "red more more"]
    assert emb.top_documents(3).value.tolist() == [-5, 4]  # signed: by magnitude
    assert len(emb.top_documents(2)) == 0


def test_features(emb):
    frame = emb.features
    assert frame.feature.tolist() == [0, 1, 3]
    assert frame.density.tolist() == [0.6, 0.4, 0.4]
    assert frame.mean_value.tolist() == pytest.approx([13 / 3, 1.5, -0.5])
    assert frame.max_value.tolist() == [9, 2, 5]
    assert frame.top_tokens[1] == "'red'"


def test_fires_by_threshold_and_tokens():
    emb = embedding_of(VALUES, block=2)
    np.testing.assert_array_equal(emb.fires().toarray(), VALUES != 0)
    np.testing.assert_array_equal(emb.fires(threshold=2.0).toarray(), abs(VALUES) > 2)
    assert emb.fires(min_tokens=2).nnz == 0
    for bad in ({"threshold": -1.0}, {"min_tokens": 0}):
        with pytest.raises(InputError, match="at least"):
            emb.fires(**bad)


def test_frame_and_repr(emb):
    frame = emb.to_frame()
    assert frame.columns.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(frame.to_numpy(), VALUES[:, [0, 1, 3]])
    assert "5 documents" in repr(emb)
    assert "3 of 4" in emb._repr_html_()


def test_highlight(emb):
    view = emb.highlight(2, 0)
    assert view.tokens == ["red", " more", " more"]
    assert view.values[:, 0].tolist() == [3, 0, 0]
    assert emb.highlight(2, [0, 3]).features == [0, 3]


def test_nothing_fires():
    emb = embedding_of(np.zeros((3, 4)))
    assert emb.matrix.nnz == 0
    assert len(emb.features) == 0
    assert emb.to_frame().shape == (3, 0)
    assert "0 of 4" in emb._repr_html_()

"""`SAEEmbedder` as scikit-learn uses transformers, against `embed`."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import sparselens as sl
from sparselens.errors import FitError, InputError
from tests import tiny
from tests.embeddings.test_reading import TEXTS, embed, make_sae

CHAT = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "a mat"}]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


@pytest.fixture
def labelled():
    """Texts with one word or the other, which the tokens tell apart."""
    words = np.random.default_rng(0).choice(["the cat", "a mat", "in", "he", "then"], (40, 6))
    y = np.arange(40) % 2
    marks = np.where(y, "xyzzy", "QQQQ")
    return [" ".join([*row[:3], mark, *row[3:]]) for row, mark in zip(words, marks, strict=True)], y


def test_transform_is_embed(m):
    sae = make_sae()
    settings = {"pooling": "mean", "role": "user", "min_tokens": 2, "threshold": 0.1, "skip_first": False}
    ours = sl.SAEEmbedder(m, sae, **settings)
    expected = embed(TEXTS, m, sae, **settings).matrix
    for given in (TEXTS, tuple(TEXTS), np.array(TEXTS, dtype=object), pd.Series(TEXTS, index=range(7, 17))):
        assert (ours.fit_transform(given) != expected).nnz == 0
    got = ours.fit(TEXTS[:1]).transform(TEXTS)
    assert issparse(got)
    assert (got.dtype, got.shape) == (np.float32, (len(TEXTS), 64))
    assert (ours.transform([CHAT]) != embed([CHAT], m, sae, **settings).matrix).nnz == 0
    assert ours.transform(["", ""]).shape == (2, 64)
    names = ours.get_feature_names_out()
    assert (names[63], len(names), ours.n_features_out_) == ("feature_63", 64, 64)


def test_every_setting_of_embed_that_fits_is_there():
    ours, theirs = (inspect.signature(f).parameters for f in (sl.SAEEmbedder, sl.embed))
    not_here = {"texts", "m", "out", "text_column", "append", "engine", "workers", "force"}
    assert set(theirs) - set(ours) == not_here
    assert set(ours) - set(theirs) == {"model", "cache"}
    assert all(ours[name].default == theirs[name].default for name in set(ours) & set(theirs) - {"sae", "progress"})


def test_clones_share_what_is_open(m):
    first = sl.SAEEmbedder(m, make_sae(), pooling="sum")
    second = clone(make_pipeline(first))[0]
    assert second is not first
    assert (second.model, second.sae, second.pooling) == (m, first.sae, "sum")
    assert second.set_params(pooling="count").get_params()["pooling"] == "count"
    assert first.pooling == "sum"


def test_names_are_opened_by_fit(m, tmp_path, monkeypatch):
    m.module.save_pretrained(tmp_path / "model")
    m.tokenizer.save_pretrained(tmp_path / "model")
    make_sae().save(tmp_path / "sae")
    named = sl.SAEEmbedder(str(tmp_path / "model"), tmp_path / "sae")
    np.testing.assert_allclose(named.fit_transform(TEXTS).toarray(), embed(TEXTS, m, make_sae()).matrix.toarray(),
                               atol=1e-4)


def test_in_a_pipeline_under_cross_validation(m, labelled):
    texts, y = labelled
    pipe = make_pipeline(sl.SAEEmbedder(m, make_sae(), pooling="count"), LogisticRegression(max_iter=2000))
    assert cross_val_score(pipe, texts, y, cv=4).mean() > 0.9
    assert abs(cross_val_score(pipe, texts, np.random.default_rng(1).permutation(y), cv=4).mean() - 0.5) < 0.25
    search = GridSearchCV(pipe, {"saeembedder__pooling": ["binarize", "count"]}, cv=2).fit(texts, y)
    assert set(search.best_params_) == {"saeembedder__pooling"}
    columns = ColumnTransformer([("body", sl.SAEEmbedder(m, make_sae()), "body")])
    got = columns.fit_transform(pd.DataFrame({"body": texts, "n": y}))
    assert columns.get_feature_names_out()[5] == "body__feature_5"
    assert got.shape == (40, 64)


def test_a_cache_reads_each_text_once(m, labelled, tmp_path, monkeypatch):
    texts, y = labelled
    texts = [*texts, texts[0], texts[1]]
    y = [*y, 0, 1]
    read = []
    stream = type(m).stream
    monkeypatch.setattr(type(m), "stream", lambda self, t, *a, **k: read.extend(t) or stream(self, t, *a, **k))
    without, with_cache = sl.SAEEmbedder(m, make_sae()), sl.SAEEmbedder(m, make_sae(), cache=tmp_path)
    scores = [cross_val_score(make_pipeline(e, LogisticRegression()), texts, y, cv=3) for e in (without, with_cache)]
    np.testing.assert_array_equal(*scores)
    assert len(read) == 3 * len(texts) + 40
    got = with_cache.fit_transform(texts[::-1])
    assert len(read) == 3 * len(texts) + 40
    np.testing.assert_allclose(got.toarray(), embed(texts[::-1], m, make_sae()).matrix.toarray(), atol=1e-4)
    del read[:]
    again = sl.SAEEmbedder(m, make_sae(), cache=tmp_path).fit(texts)
    assert again.transform([texts[0], "", "a new one", texts[0]]).shape == (4, 64)
    assert read == ["", "a new one"]
    assert again.transform(["", "a new one", "a new one"]).getnnz(axis=1)[0] == 0
    assert len(read) == 2
    for changed in (again.set_params(pooling="sum"), sl.SAEEmbedder(m, make_sae(seed=1), cache=tmp_path).fit(texts)):
        del read[:]
        changed.transform(["a new one"])
        assert read == ["a new one"]


def test_an_unfinished_part_of_the_cache_is_passed_over(m, tmp_path):
    ours = sl.SAEEmbedder(m, make_sae(), cache=tmp_path).fit(TEXTS)
    first = ours.transform(TEXTS[:3])
    block = next(tmp_path.glob("*/*/block-*.arrow"))
    block.unlink()
    assert (ours.transform(TEXTS[:3]) != first).nnz == 0
    assert block.exists()


@pytest.mark.parametrize("bad", ["one text", pd.DataFrame({"text": ["a"]}), np.array([["a"]])])
def test_texts_come_as_a_flat_list(m, bad):
    with pytest.raises(InputError, match="flat list"):
        sl.SAEEmbedder(m, make_sae()).fit(bad)


def test_what_is_wrong_is_said_by_fit(m):
    with pytest.raises(InputError, match="row 1 is a NoneType"):
        sl.SAEEmbedder(m, make_sae()).fit(["a", None])
    with pytest.raises(InputError, match='use "chunk"'):
        sl.SAEEmbedder(m, make_sae(), long="split").fit(["a"])
    with pytest.raises(FitError, match="d_in"):
        sl.SAEEmbedder(m, sl.SAE("topk", d_in=16, d_sae=64, k=4, site="blocks.1.hook_resid_post")).fit(["a"])
    for call in (lambda e: e.transform(["a"]), lambda e: e.get_feature_names_out()):
        with pytest.raises(NotFittedError):
            call(sl.SAEEmbedder(m, make_sae()))


def test_the_checks_of_scikit_learn_that_apply_to_texts(m):
    ours = sl.SAEEmbedder(m, make_sae())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that checks with numbers are left out
        ran = estimator_checks.check_estimator(ours)
    assert [row["check_name"] for row in ran if row["status"] == "failed"] == []
    names = ("check_parameters_default_constructible", "check_get_params_invariance", "check_set_params",
             "check_no_attributes_set_in_init", "check_estimator_repr", "check_estimator_cloneable")
    for name in names:
        getattr(estimator_checks, name)("SAEEmbedder", sl.SAEEmbedder())
    assert repr(sl.SAEEmbedder(pooling="sum")) == "SAEEmbedder(pooling='sum')"

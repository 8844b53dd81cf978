"""Descriptions against counts by hand and against a decoder whose direction is known."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.embeddings import describe
from sparselens.embeddings.descriptions import fires_on, promotes, sentence, snippet
from sparselens.errors import InputError
from tests import tiny
from tests.embeddings.synthetic import embedding_of


@pytest.fixture(scope="module")
def emb():
    # feature 0 fires on "sir", feature 1 everywhere, feature 2 twice on "sir" and once, strongly, on "cat"
    words = ["sir"] * 4 + ["dog"] * 10 + ["cat"] * 6
    values = np.zeros((20, 4))
    values[:4, 0] = 1
    values[:, 1] = 1
    values[:2, 2], values[14, 2] = 1, 2
    return embedding_of(values, words=words, block=7)


def test_mass_by_hand(emb):
    mass = emb.token_mass
    table = dict(zip(mass.vocabulary, mass.mass.toarray().T.tolist(), strict=True))
    assert table == {"sir": [4, 4, 2, 0], "dog": [0, 10, 0, 0], "cat": [0, 6, 2, 0]}
    assert dict(zip(mass.vocabulary, mass.counts.tolist(), strict=True)) == {"sir": 4, "dog": 10, "cat": 6}


def test_joined_mass_is_the_mass_of_all(emb):
    first, second = emb.subset(range(9, 20)), emb.subset(range(9))
    both, whole = first.token_mass.joined(second.token_mass), emb.token_mass
    for piece in ("sir", "dog", "cat"):
        i, j = both.vocabulary.index(piece), whole.vocabulary.index(piece)
        assert both.counts[i] == whole.counts[j]
        assert both.mass[:, [i]].toarray().tolist() == whole.mass[:, [j]].toarray().tolist()


def test_fires_on_by_hand(emb):
    # feature 2: half of its mass on each; "sir" is the rarer token (5/23 against 7/23)
    assert fires_on(emb.token_mass, [2]) == [["sir", "cat"]]
    assert fires_on(emb.token_mass, [2], n=1) == [["sir"]]
    assert fires_on(emb.token_mass, [0]) == [["sir"]]
    # feature 1 fires on everything: shares 4/20, 10/20, 6/20 against 5/23, 11/23, 7/23
    assert fires_on(emb.token_mass, [1]) == [["dog"]]
    assert fires_on(emb.token_mass, [3]) == [[]]


def test_logit_lens_finds_the_token_of_a_direction():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=8, k=2, site="blocks.1.hook_resid_post")
    tokens = m.tokenizer("zq")["input_ids"]
    centred = m.unembedding - m.unembedding.mean(0)
    with torch.no_grad():
        sae.W_dec[3], sae.W_dec[5] = 50 * centred[tokens[0]], 50 * centred[tokens[1]]
    assert [row[0] for row in promotes([3, 5], m, sae)] == ["z", "q"]


def test_snippets_mark_runs_and_cut():
    values = np.array([0, 1, 2, 0, 1])
    assert snippet(["a", " b", " c", " d", " e"], values) == "a «b c» d «e»"
    words = [f" w{i}" for i in range(40)]
    peak = np.zeros(40)
    peak[20] = -3.0
    assert snippet(words, peak, context=2) == "… w18 w19 «w20» w21 w22 …"
    assert snippet(["x\n\ny"], np.ones(1)) == "«x y»"


def test_a_line_is_short_and_readable():
    assert sentence([" sir", " madam"]) == "fires on: ' sir', ' madam'"
    assert sentence(["\n"], ["x" * 100]) == "fires on: '\\n' · promotes: '" + "x" * 20 + "…'"
    assert sentence([]) == ""


def test_describe(emb):
    frame = describe(emb)
    assert frame.columns.tolist() == ["feature", "description", "fires_on", "promotes", "snippets", "method"]
    assert frame.feature.tolist() == [0, 1, 2]
    assert frame.description[0] == "fires on: 'sir'"
    assert frame.snippets[2] == ["«cat»", "«sir»", "«sir»"]
    assert "frequency ratio" in frame.method[0]
    assert describe(emb, 2, n_snippets=0).snippets.tolist() == [[]]
    assert describe(emb, [3]).description.tolist() == [""]


def test_describe_with_the_model():
    m = tiny.live("llama")
    sae = sl.SAE("topk", d_in=32, d_sae=64, k=4, site="blocks.1.hook_resid_post")
    emb = sl.embed(["the cat sat on a mat"] * 3, m, sae, progress=False)
    frame = describe(emb, None, m, sae)
    assert frame.promotes.map(len).min() > 0
    assert frame.description.str.contains("promotes: ").all()
    assert frame.method.str.contains("logit lens").all()


def test_wrong_arguments(emb):
    m = tiny.live("llama")
    with pytest.raises(InputError, match="both"):
        describe(emb, [0], m)
    with pytest.raises(InputError, match="no feature 9"):
        describe(emb, [9])
    narrow = sl.SAE("topk", d_in=8, d_sae=4, k=2, site="blocks.1.hook_resid_post")
    with pytest.raises(InputError, match="residual stream"):
        describe(emb, [0], m, narrow)

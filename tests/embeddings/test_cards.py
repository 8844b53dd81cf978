"""Cards of features: counts, values, neighbours, words."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError
from tests import tiny
from tests.embeddings.synthetic import embedding_of

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    m = tiny.live()
    sae = sl.SAE(architecture="topk", d_in=32, d_sae=64, k=4)
    sae.metadata["hook_name"] = SITE
    texts = ["the cat sat on the mat", "a dog in the rain", "the end", "rain again in the hat"] * 3
    return m, sae, sl.embed(texts, m, sae, progress=False)


def test_a_card_counts_what_fires(made):
    m, sae, emb = made
    feature = int(emb.features.sort_values("density").iloc[-1]["feature"])
    card = sl.feature_card(emb, feature, k=5)
    codes = [emb.activations(d, feature) for d in range(len(emb))]
    assert card.n_firing == sum(bool(c.any()) for c in codes)
    np.testing.assert_array_equal(np.sort(card.values), np.sort(np.concatenate([c[c != 0] for c in codes])))
    assert card.to_frame()["document"].tolist() == emb.top_documents(feature, 5)["document"].tolist()
    np.testing.assert_allclose(card.to_frame()["value"], emb.top_documents(feature, 5)["value"], rtol=1e-3)


def test_neighbours_have_the_largest_cosine(made):
    m, sae, emb = made
    card = sl.feature_card(emb, 5, sae, m)
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    cosine = rows @ rows[5]
    cosine[5] = -2
    best = cosine.topk(8)
    assert [feature for feature, *_ in card.neighbours] == best.indices.tolist()
    np.testing.assert_allclose([value for *_, value in card.neighbours], best.values, atol=1e-6)
    assert len(card.promotes) > 0


def test_a_card_goes_on_to_others(made):
    m, sae, emb = made
    widget = sl.feature_card(emb, 5, sae, m).explore()
    widget.feature = 6
    assert widget.view.feature == 6
    with pytest.raises(InputError, match="there is no feature 64"):
        widget.feature = 64


def test_a_feature_that_never_fires():
    emb = embedding_of(np.eye(5)[:, :4])
    card = sl.feature_card(embedding_of(np.pad(np.eye(5), ((0, 0), (0, 1)))), 5)
    assert (card.n_firing, card.description) == (0, "fires nowhere in these texts")
    assert sl.feature_card(emb, 2, labels={2: "two"}).description == "two"


def test_bad_input(made):
    m, sae, emb = made
    with pytest.raises(InputError, match="there is no feature 64"):
        sl.feature_card(emb, 64)
    with pytest.raises(InputError, match="give sae"):
        sl.feature_card(emb, 5, m=m)
    other = sl.SAE(architecture="topk", d_in=32, d_sae=64, k=4)
    with torch.no_grad():
        other.W_dec += 0.1
    with pytest.raises(FitError, match="not the one the texts were embedded with"):
        sl.feature_card(emb, 5, other)


def test_a_sentence_is_read_as_the_texts_were(made):
    m, sae, emb = made
    feature = int(emb.features.sort_values("density").iloc[-1]["feature"])
    view = sl.feature_card(emb, feature, sae, m).test("the cat sat on the mat")
    assert view.tokens == emb.tokens(0)
    np.testing.assert_array_equal(view.values[:, 0], emb.activations(0, feature))
    with pytest.raises(InputError, match="no model is at hand"):
        sl.feature_card(emb, feature).test("the cat")


def test_the_browser_lists_what_fires(made):
    m, sae, emb = made
    known = int(emb.features["feature"].iloc[0])
    view = sl.feature_browser(emb, sae, m, labels={known: "it"})
    frame = view.to_frame()
    assert sorted(frame["feature"]) == emb.features["feature"].tolist()
    assert frame["density"].is_monotonic_decreasing
    assert frame.set_index("feature")["description"][known] == "it"
    first = int(frame["feature"].iloc[0])
    assert view.card(first).n_firing == round(frame["density"].iloc[0] * len(emb))
    assert view.explore().can_test
    with pytest.raises(InputError, match="give sae"):
        sl.feature_browser(emb, m=m)

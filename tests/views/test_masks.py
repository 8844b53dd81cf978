"""Masks of attention heads: what is drawn, sent and said is what was given."""

import numpy as np
import pytest
import torch
import traitlets

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import mask_view
from tests.views.allowed import check
from tests.views.samples import HOSTILE


def sample(lost: bool = True, other: bool = False, **words):
    """Two layers of three heads on 18 tokens in tiles of 4; head 1 of layer 7 keeps all."""
    random = np.random.default_rng(0)
    possible = np.tri(5, dtype=bool)
    kept = np.where(possible, random.random((2, 3, 5, 5)), 0).round(2)
    kept[1, 1] = possible
    gone = random.random((2, 3, 5)) * 0.5 if lost else None
    second = np.where(possible, random.random((2, 3, 5, 5)), 0) if other else None
    tokens = [HOSTILE[i % len(HOSTILE)] for i in range(18)]
    return mask_view(kept, tokens, 4, possible=possible, layers=[3, 7], lost=gone, other=second, **words)


def test_what_was_given_is_in_the_view():
    kept = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]]], dtype=torch.bfloat16)
    view = mask_view(kept, ["a", "b", "c"], 2, possible=np.tri(2), lost=[[[0.0, 0.25]]], title="a mask")
    row = view.to_frame().iloc[0]
    assert list(row[["layer", "head", "lost"]]) == [0, 0, 0.125] and row["kept"] == pytest.approx(2.5 / 3)
    assert "100.0% of the tiles are kept at least in part" in view.summary()
    assert "12.5%" in view.summary() and repr(view) == "MaskView(1 layers, 1 heads, 3 tokens in tiles of 2)"
    other = mask_view(kept, ["a", "b", "c"], 2, possible=np.tri(2), other=[[[[1, 0], [0, 1]]]])
    assert "66.7% are in both" in other.summary()


@pytest.mark.parametrize(
    ("kept", "words", "said"),
    [
        (np.ones((1, 1, 2)), {}, "give"),
        (np.ones((1, 1, 3, 3)), {}, "give"),
        (2 * np.ones((1, 1, 2, 2)), {}, "between 0 and 1"),
        (np.ones((1, 1, 2, 2)), {"lost": [[[0.0]]]}, "lost has shape"),
        (np.ones((1, 1, 2, 2)), {"other": np.ones((1, 2, 2, 2))}, "other has shape"),
        (np.ones((1, 1, 2, 2)), {"layers": [1, 2]}, "2 layers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kept, words, said):
    with pytest.raises(InputError, match=said):
        mask_view(kept, ["a", "b", "c"], 2, **words)


def test_no_colour_for_nan():
    with pytest.raises(NotFiniteError):
        mask_view(np.full((1, 1, 1, 1), np.nan), ["a"], 2)


def test_the_picture_shows_the_layer_in_front():
    view = sample(title="a title")
    for shown in (view, view.layer(7)):
        axes = [a for a in shown.figure().axes if a.images]
        assert len(axes) == 3
        for head, panel in enumerate(axes):
            drawn = np.ma.filled(panel.images[0].get_array().astype(float), np.nan)
            np.testing.assert_allclose(drawn[view.possible], view.kept[shown.shown, head][view.possible], atol=1e-6)
            assert np.isnan(drawn[~view.possible]).all()
    with pytest.raises(InputError, match="no layer 5"):
        view.layer(5)


@pytest.mark.parametrize("other", [False, True])
def test_the_static_form_is_safe_and_small(other):
    view = sample(other=other, title=HOSTILE[0])
    for most in (200_000, 12_000):
        html = view.to_html(most)
        assert len(html.encode()) <= most
        assert HOSTILE[0] in check(html).text


def test_the_masks_survive_packing():
    view = sample(other=True)
    widget = view.layer(7).explore()
    for packed, given in ((widget.kept, view.kept), (widget.other, view.other), (widget.lost, view.lost)):
        sent = np.frombuffer(packed, np.uint8).reshape(given.shape) / 255
        np.testing.assert_allclose(sent, given, atol=0.003)
        assert ((sent > 0) == (given > 0)).all()
    assert widget.selected == (7, 0) and widget.names == [3, 7]


def test_a_large_view_is_sent_in_part():
    widget = mask_view(np.ones((40, 16, 48, 48)), ["x"] * 48, 1).explore()
    assert widget.names == list(range(1_000_000 // (16 * 48 * 48)))
    assert len(widget.kept) <= 1_000_000


def test_traits_keep_to_the_masks():
    widget = sample().explore()
    widget.set_state({"layer": 1, "head": 2, "query": 4, "key": 0})
    assert widget.selected == (7, 2)
    for name, value in (("layer", 2), ("head", 3), ("query", 5), ("key", -2)):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)
    assert repr(widget) == "MaskWidget(2 layers, 3 heads, 18 tokens in tiles of 4)"

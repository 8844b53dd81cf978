"""Masks of attention heads: what is drawn, sent and said is what was given."""

import numpy as np
import pytest
import torch
import traitlets

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import Mark, mask_view
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
    assert "100.0% of the tiles of 2 (3 tokens) are kept at least in part" in view.summary()
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


def marked(**words):
    """The sample with a needle in two spans, and its numbers: head 0 of layer 7 keeps nothing of it at the end."""
    random = np.random.default_rng(1)
    kept, lost = random.random((2, 3, 5)), random.random((2, 3, 5)) * 0.2
    kept[1, 0, 4] = 0
    return sample(marks={HOSTILE[0]: Mark([(2, 5), (9, 10)], kept, lost), "end": (16, 18)}, **words)


def test_marks_are_told_drawn_and_in_the_frame():
    view = marked()
    mark = view.marks[HOSTILE[0]]
    assert f"keep {mark.kept[..., -1].mean():.1%}, nothing in 1 of 6 heads, and {mark.lost[..., -1].mean():.1%}" in (
        view.summary()
    )
    frame = view.to_frame()
    np.testing.assert_allclose(frame[f"{HOSTILE[0]} kept"], mark.kept[..., -1].ravel())
    np.testing.assert_allclose(frame[f"{HOSTILE[0]} lost"], mark.lost[..., -1].ravel())
    np.testing.assert_allclose(frame["end kept"], view.kept[:, :, 4, 4].ravel(), rtol=1e-6)
    assert "end lost" not in frame
    frames = [p.get_extents() for p in view.figure().axes[0].patches]
    assert len(frames) == 3
    axes = view.in_sight("end")
    np.testing.assert_allclose(axes.images[0].get_array(), view.kept[:, :, 4, 4])
    assert "heads see it" in axes.get_title(loc="left") and [t.get_text() for t in axes.get_yticklabels()] == ["3", "7"]
    with pytest.raises(InputError, match="no mark 'needle' here"):
        view.in_sight("needle")
    with pytest.raises(InputError, match="there are none"):
        sample().in_sight()
    assert HOSTILE[0] in check(view.to_html(200_000)).text


def test_what_is_marked_is_read_off_its_tiles():
    kept = np.zeros((1, 1, 3, 3))
    kept[0, 0, 2] = [1, 0.5, 0.25]
    possible = np.tri(3)
    view = mask_view(kept, list("abcdef"), 2, possible=possible, marks={"x": (1, 4), "y": [(0, 1), (5, 6)]})
    np.testing.assert_allclose(view.marks["x"].kept[0, 0], [0, 0, 0.75])
    np.testing.assert_allclose(view.marks["y"].kept[0, 0], [0, 0, 0.625])


@pytest.mark.parametrize(
    ("mark", "said"),
    [((1, 9), "do not lie in a text of 3"), ((2, 2), "do not lie"), ((-1, 2), "do not lie"), ([], "give"),
     ("needle", "give"), ((0.5, 1), "give"), ([(0, 1, 2)], "give"), (Mark([(0, 1)], np.ones((1, 2))), "shape")],
)
def test_marks_outside_the_text_are_refused(mark, said):
    with pytest.raises(InputError, match=said):
        mask_view(np.ones((1, 1, 2, 2)), ["a", "b", "c"], 2, marks={"m": mark})


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


def test_marks_survive_packing():
    view = marked()
    widget = view.explore()
    assert [m["name"] for m in widget.marks] == [*view.marks] and widget.marks[0]["spans"] == [[2, 5], [9, 10]]
    sent = np.frombuffer(widget.mark_kept, np.uint8).reshape(2, 2, 3, 5) / 255
    np.testing.assert_allclose(sent, np.stack([m.kept for m in view.marks.values()]), atol=0.003)
    assert not widget.mark_lost, "not all marks have it"
    with pytest.raises(traitlets.TraitError):
        widget.mark = 2


def test_a_large_view_is_sent_in_part():
    widget = mask_view(np.ones((40, 16, 48, 48)), ["x"] * 48, 1).explore()
    assert widget.names == list(range((1_000_000 - 4 * 48) // (16 * 48 * 48)))
    assert len(widget.kept) <= 1_000_000


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_longer_tiles_are_means_of_what_may_be_kept(factor):
    view = sample(other=True)
    coarse = view.coarser(factor)
    side = len(view.possible)
    assert coarse.tile == 4 * factor and coarse.kept.shape[-1] == -(-side // factor)
    for q in range(len(coarse.possible)):
        for k in range(len(coarse.possible)):
            part = np.ix_(*(range(i * factor, min(side, (i + 1) * factor)) for i in (q, k)))
            may = view.possible[part]
            assert coarse.possible[q, k] == may.any()
            if may.any():
                for now, before in ((coarse.kept, view.kept), (coarse.other, view.other)):
                    np.testing.assert_allclose(now[1, 2, q, k], before[1, 2][part][may].mean(), rtol=1e-5)
        rows = slice(q * factor, (q + 1) * factor)
        np.testing.assert_allclose(coarse.lost[..., q], view.lost[..., rows].mean(-1), rtol=1e-5)


def test_32_000_tokens_are_sent_in_longer_tiles_and_within_a_megabyte():
    view = mask_view(np.tile(np.tri(500), (2, 9, 1, 1)), [" token"] * 32_000, 64, possible=np.tri(500) > 0)
    widget = view.explore()
    assert widget.tile == 128 and widget.side == 250 and widget.view is view
    assert len(widget.kept) + sum(len(token) + 3 for token in widget.tokens) <= 1_000_000
    assert set(widget.kept) == {0, 255}


def test_traits_keep_to_the_masks():
    widget = sample().explore()
    widget.set_state({"layer": 1, "head": 2, "query": 4, "key": 0})
    assert widget.selected == (7, 2)
    for name, value in (("layer", 2), ("head", 3), ("query", 5), ("key", -2)):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)
    assert repr(widget) == "MaskWidget(2 layers, 3 heads, 18 tokens in tiles of 4)"

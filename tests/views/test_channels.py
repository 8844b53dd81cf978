"""The map of kept channels: what is drawn, sent and said is what was given."""

import numpy as np
import pytest
import torch
import traitlets

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import channel_map
from sparselens.views.channels import _shrink
from tests.views.allowed import check
from tests.views.samples import HOSTILE


def sample(n_tokens: int = 12, n_channels: int = 50, scored: bool = True):
    """A map in which the first channel is always kept and the last never."""
    random = np.random.default_rng(0)
    scores = random.random((n_tokens, n_channels)).astype(np.float32)
    scores[:, 0], scores[:, -1] = 2.0, 0.0
    return channel_map(scores > 0.5, [f" t{i}" for i in range(n_tokens)], scores if scored else None, title="a map")


def test_tensors_and_arrays_are_taken():
    keep = torch.tensor([[True, False, True]])
    view = channel_map(keep, scores=torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.bfloat16))
    assert view.keep.tolist() == [[True, False, True]]
    assert view.tokens == ["token 0"]
    assert repr(view) == "ChannelMap(1 tokens, 3 channels, 66.7% kept)"


@pytest.mark.parametrize(
    ("keep", "tokens", "scores", "says"),
    [
        (np.ones((2, 3)), None, None, "bool"),
        (np.ones(3, bool), None, None, "bool"),
        (np.ones((0, 3), bool), None, None, "at least one"),
        (np.ones((2, 3), bool), ["a"], None, "does not fit 1 tokens"),
        (np.ones((2, 3), bool), None, np.ones((3, 2)), "does not fit scores"),
    ],
)
def test_what_does_not_fit(keep, tokens, scores, says):
    with pytest.raises(InputError, match=says):
        channel_map(keep, tokens, scores)


def test_scores_must_be_numbers():
    with pytest.raises(NotFiniteError):
        channel_map(np.ones((1, 2), bool), scores=[[1.0, float("nan")]])


def test_the_sentence_and_the_frame():
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    view = channel_map(keep, scores=[[4.0, 2.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0]])
    assert view.summary() == (
        "37.5% of 4 channels × 2 tokens are kept. 1 channels are kept for at least 99% of the tokens, 2 for none."
    )
    assert view.to_frame().to_dict("list") == {
        "channel": [0, 1, 2, 3], "kept": [1.0, 0.5, 0.0, 0.0], "score": [3.0, 1.0, 0.0, 1.0]
    }  # fmt: skip


def test_a_slice_gives_some_of_the_tokens():
    view = sample()
    part = view[3:5]
    assert part.tokens == [" t3", " t4"]
    np.testing.assert_array_equal(part.keep, view.keep[3:5])
    np.testing.assert_array_equal(part.scores, view.scores[3:5])
    with pytest.raises(InputError, match="no tokens"):
        view[50:]


@pytest.mark.parametrize("shape", [(7, 5), (301, 803), (600, 1600), (2, 5000)])
def test_shrinking_takes_means(shape):
    values = np.random.default_rng(0).random(shape) > 0.5
    small = _shrink(values, 300, 800)
    assert small.shape == (min(shape[0], 300), min(shape[1], 800))
    rows, columns = (np.linspace(0, n, m + 1).astype(int) for n, m in zip(shape, small.shape, strict=True))
    for i, j in ((0, 0), (-1, -1), (small.shape[0] // 2, small.shape[1] // 3)):
        i, j = i % small.shape[0], j % small.shape[1]
        # neighbouring rows are merged first, so that a mean of means is taken
        block = values[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        assert small[i, j] == pytest.approx(block.mean(), abs=1e-6)


def test_the_picture_puts_what_is_kept_most_first():
    view = sample()
    body = next(axes for axes in view.figure().axes if axes.images)
    shown = np.asarray(body.images[0].get_array())
    shares = shown.mean(axis=0)
    assert (np.diff(shares) <= 1e-6).all()
    np.testing.assert_allclose(np.sort(shares), np.sort(view.keep.mean(axis=0)), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 20), (60, 576), (400, 14_336)])
def test_the_static_form_is_safe_and_small(shape):
    keep = np.random.default_rng(0).random(shape) > 0.5
    view = channel_map(keep, [HOSTILE[i % len(HOSTILE)] for i in range(shape[0])], title=HOSTILE[0])
    for most in (200_000, 12_000):
        html = view.to_html(most)
        assert len(html.encode()) <= most
        assert HOSTILE[0] in check(html).text


@pytest.mark.filterwarnings("error")
def test_hostile_tokens_can_be_drawn(tmp_path):
    view = channel_map(np.eye(len(HOSTILE), dtype=bool), HOSTILE, title="$a " + HOSTILE[15])
    assert (view.save(tmp_path / "x.png")).stat().st_size > 1000


def test_the_map_survives_packing():
    view = sample(13, 51)
    widget = view.explore()
    bits = np.unpackbits(np.frombuffer(widget.kept, np.uint8).reshape(13, -1), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :51].astype(bool), view.keep)
    scores = np.frombuffer(widget.scores, "<f2").astype(np.float32).reshape(13, 51) * widget.peak
    np.testing.assert_allclose(scores, view.scores, rtol=1e-3)


@pytest.mark.parametrize(("scored", "tokens"), [(True, 400_000 // 14_336), (False, 4_000_000 // 14_336)])
def test_a_large_map_is_sent_in_part(scored, tokens):
    widget = sample(300, 14_336, scored).explore()
    assert len(widget.tokens) == tokens
    assert widget.total == 300
    assert len(widget.kept) + len(widget.scores) <= 1_000_000


def test_traits_keep_to_the_map():
    widget = sample().explore()
    widget.set_state({"token": 11, "channel": 49, "order": "number"})
    assert widget.selected == (11, 49)
    for name, value in (("token", 12), ("channel", 50), ("token", -2), ("order", "size")):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)
    assert repr(widget) == "ChannelWidget(12 tokens, 50 channels, 54.0% kept)"

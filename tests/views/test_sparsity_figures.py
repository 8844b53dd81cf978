"""Figures of sparse layers: what is drawn is what the numbers say."""

import numpy as np
import pytest

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import allocation_bars, landscape, rho_grid, score_scatter
from sparselens.views.picture import picture
from tests.views.allowed import check
from tests.views.samples import HOSTILE

NAMES = ["q", "k", "$down$"]


def _token(n: int = 200):
    random = np.random.default_rng(0)
    return np.abs(random.standard_t(3, n)), np.exp(random.normal(0, 0.5, n))


def test_the_scatter_counts_who_keeps_what(tmp_path):
    size, norm = _token()
    size[:3] = 0.0
    axes = score_scatter(size, norm, 0.7, 0.8, title="$x$")
    teal, wina = size >= 0.7, size * norm >= 0.8
    drawn = {c.get_label().rsplit(" ", 1)[0]: len(c.get_offsets()) for c in axes.collections}
    assert drawn == {
        "kept by neither": (~teal & ~wina).sum(),
        "kept by both": (teal & wina).sum(),
        "TEAL only": (teal & ~wina).sum(),
        "WINA only": (wina & ~teal).sum(),
    }
    assert sum(drawn.values()) == 200
    vertical, hyperbola = axes.lines
    assert set(vertical.get_xdata()) == {0.7}
    np.testing.assert_allclose(hyperbola.get_xdata() * hyperbola.get_ydata(), 0.8)
    axes.figure.savefig(tmp_path / "x.png")


def test_every_point_stands_on_its_side_of_the_lines():
    axes = score_scatter(*_token(), 0.7, 0.8)
    for points in axes.collections:
        at = np.asarray(points.get_offsets())
        name = points.get_label()
        assert ((at[:, 0] >= 0.7) == ("both" in name or "TEAL" in name)).all()
        assert ((at[:, 0] * at[:, 1] >= 0.8) == ("both" in name or "WINA" in name)).all()


@pytest.mark.parametrize(
    ("size", "norm", "cut", "says"),
    [
        ([1.0, 2.0], [1.0], 1.0, "shape"),
        ([], [], 1.0, "one number a channel"),
        ([-1.0], [1.0], 1.0, "negative"),
        ([1.0], [1.0], 0.0, "above 0"),
        ([1.0], [1.0], float("nan"), "above 0"),
    ],
)
def test_a_scatter_that_cannot_be_drawn(size, norm, cut, says):
    with pytest.raises(InputError, match=says):
        score_scatter(size, norm, cut, 1.0)


def test_bars_are_as_long_as_the_shares(tmp_path):
    shares = np.random.default_rng(1).random((5, 3))
    axes = allocation_bars(shares, NAMES, target=0.5, title="$t$")
    bars = np.array([bar.get_height() for bar in axes.patches]).reshape(3, 5).T
    np.testing.assert_allclose(bars / bars.max() * shares.max(), shares, rtol=1e-5)
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES
    means = [text.get_text() for text in axes.texts if text.get_text().endswith("%")]
    assert means == [f"{mean:.0%}" for mean in shares.mean(axis=0)]
    bases = [bar.get_y() for bar in axes.patches[::5]]
    at = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(np.subtract(at, bases), 0.5 * bars.max() / shares.max(), rtol=1e-5)
    axes.figure.savefig(tmp_path / "x.png")


def test_the_grid_of_rho(tmp_path):
    rho = np.array([[0.0, 0.5, 1.0], [0.954, 1.0, 0.2]])
    axes = rho_grid(rho, NAMES)
    np.testing.assert_allclose(axes.images[0].get_array(), rho.T, rtol=1e-6)
    assert axes.images[0].get_clim() == (0, 1)
    assert {text.get_text() for text in axes.texts} == {".00", ".50", "1", ".95", ".20"}
    axes.figure.savefig(tmp_path / "x.png")
    assert not rho_grid(np.ones((200, 3)), NAMES).texts, "too many to write a number into each"


@pytest.mark.parametrize("draw", [allocation_bars, rho_grid])
def test_shares_must_fit_and_be_shares(draw):
    with pytest.raises(InputError, match=r"\[blocks, 3\]"):
        draw(np.zeros((4, 2)), NAMES)
    with pytest.raises(InputError, match="between 0 and 1"):
        draw(np.full((4, 3), 1.2), NAMES)
    with pytest.raises(NotFiniteError):
        draw(np.full((4, 3), np.nan), NAMES)


def test_the_landscape_and_its_line_of_equal_cost(tmp_path):
    kept, rank = np.arange(0, 97, 16), np.arange(0, 33, 8)
    error = (1 - kept[:, None] / 96) * (1 - rank / 32)
    n_out, n_in, sparsity = 32, 96, 0.4
    axes = landscape(kept, rank, error, (n_out, n_in), sparsity, chosen=(40, 6), title="$q$")
    for line in axes.lines[:2]:
        x, y = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(x * n_out + y * (n_in + n_out), (1 - sparsity) * n_in * n_out)
        assert (x.min(), y.min()) == (0, 0)
    assert axes.lines[2].get_xydata().tolist() == [[40, 6]]
    shown = np.asarray(axes.collections[0].get_array()).reshape(len(rank), len(kept))
    positive = error > 0
    np.testing.assert_allclose(shown.T[positive], error[positive], rtol=1e-5)
    assert shown.min() > 0, "a logarithmic scale has no 0"
    axes.figure.savefig(tmp_path / "x.png")


def test_a_landscape_without_hills(tmp_path):
    axes = landscape([0, 1], [0, 1], np.zeros((2, 2)), (4, 4), 0.5)
    axes.figure.savefig(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("kept", "error", "says"),
    [
        ([0, 1], np.zeros((2, 3)), "need"),
        ([0], np.zeros((1, 2)), "two of each"),
        ([1, 0], np.zeros((2, 2)), "ascend"),
        ([0, 1], -np.ones((2, 2)), "0 or more"),
    ],
)
def test_a_landscape_that_cannot_be_drawn(kept, error, says):
    with pytest.raises(InputError, match=says):
        landscape(kept, [0, 1], error, (4, 4), 0.5)


def test_they_draw_into_the_axes_that_are_given():
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(4)
    assert score_scatter(*_token(), 0.7, 0.8, ax=axes[0]) is axes[0]
    assert allocation_bars(np.zeros((2, 3)), NAMES, axes[1]) is axes[1]
    assert rho_grid(np.zeros((2, 3)), NAMES, axes[2]) is axes[2]
    assert landscape([0, 1], [0, 1], np.ones((2, 2)), (4, 4), 0.5, ax=axes[3]) is axes[3]


def test_a_picture_is_safe_and_has_words():
    import matplotlib.pyplot as plt

    read = check(picture(plt.figure(figsize=(1, 1)), HOSTILE[7]))
    assert read.text == ""

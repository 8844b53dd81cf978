"""Figures of analyses show the numbers they are given, and survive any text."""

import numpy as np

from sparselens.views import pair_scatter, share_grid, version_lines

HOSTILE = "$x^2 <b>\n\\frac{"


def test_lines_have_the_shares():
    shares = np.array([[0.1, 0.4, 0.9], [0.5, 0.5, 0.2]])
    ax = version_lines([0.0, 1.0, 5.0], shares, ["up " + HOSTILE, "down"], ["v1", "v$2", "v3"])
    for line, share in zip(ax.lines, shares, strict=True):
        assert line.get_xdata().tolist() == [0, 1, 5]
        assert line.get_ydata().tolist() == share.tolist()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["v1", "v\\$2", "v3"]
    ax.figure.canvas.draw()


def test_cells_have_the_shares_in_per_cent():
    shares = np.array([[0.004, 1.0], [0.5, 0.256]])
    ax = share_grid(shares, ["a " + HOSTILE, "b" * 90], ["one", HOSTILE])
    assert [t.get_text() for t in ax.texts] == ["0", "100", "50", "26"]
    np.testing.assert_array_equal(ax.images[0].get_array(), shares)
    assert len(ax.get_yticklabels()[1].get_text()) == 48
    ax.figure.canvas.draw()
    share_grid(np.zeros((0, 2)), [], ["one", "two"]).figure.canvas.draw()


def test_pairs_in_the_corner_stand_out():
    npmi, similarity = np.array([0.9, 0.9, 0.3]), np.array([0.1, 0.8, 0.1])
    ax = pair_scatter(npmi, similarity, np.array([5, 50, 500]), (0.6, 0.2), "cosine")
    rest, corner = ax.collections
    assert corner.get_offsets().tolist() == [[0.1, 0.9]]
    assert rest.get_offsets().tolist() == [[0.8, 0.9], [0.1, 0.3]]
    sizes = rest.get_sizes()
    assert sizes[1] > sizes[0]
    assert ax.get_xlabel() == "cosine"
    nothing = np.zeros(0)
    pair_scatter(nothing, nothing, nothing, (0.6, 0.2), "cosine").figure.canvas.draw()

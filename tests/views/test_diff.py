"""The table of a dataset difference and its plots."""

import numpy as np
import pytest

from sparselens.errors import InputError
from sparselens.views import diff_html, diff_page, forest, scatter_freq
from tests.views.allowed import check
from tests.views.samples import HOSTILE, diff_examples, diff_frame


def test_the_table_is_safe_and_small():
    frame = diff_frame()
    html = diff_html(frame, diff_examples(frame), title=HOSTILE[0], notes=[HOSTILE[1]], names=(HOSTILE[9], "B & C"))
    read = check(html)
    assert len(html.encode()) <= 200_000
    assert read.text.startswith("<script>window.hacked=1</script>")
    assert "in <b>bold</b>" in read.text
    assert "and 10 more rows" in read.text
    assert "no text fires" in read.text


def test_rows_come_in_the_order_of_the_frame():
    frame = diff_frame()
    html = diff_html(frame, {}, title="")
    places = [html.index(f"<b>{feature}</b>") for feature in frame["feature"].head(30)]
    assert places == sorted(places)
    assert f"<b>{frame['feature'].iloc[30]}</b>" not in html
    assert "<details" not in html


def test_numbers_of_one_row():
    frame = diff_frame(1).assign(
        freq_a=0.1234, freq_b=0.5, difference=0.3766, ci_low=-0.01, ci_high=0.7, q_value=0.0000321, description="d"
    )
    text = check(diff_html(frame, {}, title="t")).text
    assert "12.3%" in text
    assert "50.0%" in text
    assert "+0.377 [−0.010, +0.700]" in text
    assert "3e−5" in text


def test_much_text_is_shortened_not_dropped():
    frame = diff_frame(31).assign(description="&" * 3000)
    row = {"tokens": ["&" * 100] * 500, "values": np.ones(500), "title": "&" * 300}
    examples = {int(feature): {"a": [row] * 2, "b": [row] * 2} for feature in frame["feature"]}
    html = diff_html(frame, examples, title="t")
    assert len(html.encode()) <= 200_000
    check(html)
    some = {int(feature): {"a": [row], "b": []} for feature in frame["feature"]}
    assert check(diff_html(frame, some, title="t")).marks > 0


def test_a_wrong_example_is_named():
    frame = diff_frame(1)
    with pytest.raises(InputError, match="there are 2 tokens"):
        diff_html(frame, {0: {"a": [{"tokens": ["a", "b"], "values": [1.0]}], "b": []}}, title="t")


def test_no_rows():
    empty = diff_frame().head(0)
    assert "No feature fires" in check(diff_html(empty, {}, title="t")).text
    forest(empty)
    scatter_freq(empty)


def test_intervals_that_are_missing_do_not_break_the_table():
    frame = diff_frame(3).assign(ci_low=np.nan, ci_high=np.nan)
    assert "nan%" not in diff_html(frame, {}, title="t")


@pytest.mark.parametrize("view", [lambda f: diff_html(f, {}, title="t"), forest, scatter_freq])
def test_a_missing_column(view):
    with pytest.raises(InputError, match="lacks q_value"):
        view(diff_frame().drop(columns="q_value"))


def test_the_page():
    frame = diff_frame()
    html = diff_page(frame, diff_examples(frame), title="A & B")
    assert "<title>A &amp; B</title>" in html
    assert "<h1>A &amp; B</h1>" in html
    assert "<script" not in html


@pytest.mark.filterwarnings("ignore:Glyph")  # the plain font has no emoji
def test_forest_draws_every_interval(tmp_path):
    frame = diff_frame()
    axes = forest(frame, top=7, names=("$a$", "b"))
    axes.figure.savefig(tmp_path / "x.png")
    assert len(axes.get_yticks()) == 7
    ends = sorted(float(x) for c in axes.collections for segment in c.get_segments() for x in segment[:, 0])
    np.testing.assert_allclose(ends, np.sort(frame[["ci_low", "ci_high"]].head(7).to_numpy().ravel()))


def test_scatter_draws_every_feature_once(tmp_path):
    axes = scatter_freq(diff_frame(), names=("left", "right"))
    axes.figure.savefig(tmp_path / "x.png")
    assert sum(len(c.get_offsets()) for c in axes.collections) == 40
    assert axes.get_xlabel() == "share of texts in left"


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")

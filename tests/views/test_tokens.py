"""`TokenView`: its checks, its static form, its numbers and its files."""

import sys

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError, NotFiniteError
from sparselens.views import TokenView, token_view
from tests.views.allowed import check
from tests.views.samples import HOSTILE, hostile_view, long_view


@pytest.fixture
def view() -> TokenView:
    return token_view(["The", " cat", " sat"], torch.tensor([[0, 1.5], [2, 0], [0, -3]]), [7, 12], {7: "animals"})


def test_the_static_form_shows_every_feature(view):
    read = check(view._repr_html_())
    assert "feature 7 · animals" in read.text
    assert "feature 12" in read.text
    assert read.titles == ["1: 2", "0: +1.5", "2: −3"]


def test_the_bundle_has_html_and_a_short_text(view):
    bundle = view._repr_mimebundle_()
    assert bundle["text/html"] == view._repr_html_()
    assert bundle["text/plain"] == repr(view) == "TokenView(3 tokens, 2 features, 50.0% active)"


def test_one_column_may_be_flat():
    assert token_view(["a", "b"], [0.0, 1.0]).values.shape == (2, 1)
    assert sl.token_view is token_view


def test_hostile_tokens_labels_and_title_stay_text():
    read = check(hostile_view().to_html())
    assert "<script>window.hacked=1</script>" in read.text
    assert "⟨U+202E⟩gnp.exe" in read.text
    assert "… (10,000 characters)" in read.text


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    token_view(["\ud800"], [1.0], title="t").save(tmp_path / "x.html")
    assert "?" in (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("tokens", [HOSTILE[-1], "&" * 400, " the"])
@pytest.mark.parametrize("k", [1, 16, 64])
def test_the_static_form_stays_under_200_kB(tokens, k):
    values = np.random.default_rng(0).random((4000, k)) + 0.1
    html = token_view([tokens] * 4000, values, labels=dict.fromkeys(range(k), "&" * 500), title="&" * 500).to_html()
    assert len(html.encode()) <= 200_000
    check(html)


def test_the_static_form_says_what_it_leaves_out():
    assert "and 4 more: call .explore()" in check(long_view(50, 24).to_html()).text


def test_a_text_in_which_nothing_fires():
    read = check(token_view(["a", "b"], [0.0, 0.0]).to_html())
    assert read.marks == 0
    assert "0 of 2 tokens" in read.text


def test_to_frame(view):
    frame = view.to_frame()
    assert list(frame.columns) == ["token", 7, 12]
    assert frame[12].tolist() == [1.5, 0.0, -3.0]


@pytest.mark.parametrize(
    ("tokens", "values", "features", "message"),
    [
        (["a", "b"], np.ones((3, 1)), None, r"shape \[3, 1\], but 2 tokens and 1 features need \[2, 1\]"),
        (["a", "b"], np.ones((2, 2)), [5], r"shape \[2, 2\], but 2 tokens and 1 features"),
        (["a"], np.ones((1, 2)), [5, 5], "feature 5 is listed more than once"),
        ([], np.ones((0, 1)), None, "nothing to show: 0 tokens"),
        (["a"], np.ones((1, 0)), None, "0 features"),
        (["a"], np.ones((1, 1, 1)), None, r"shape \[1, 1, 1\]"),
        (["a"], np.float32(1.0), [1], r"shape \[\]"),
    ],
)
def test_bad_input(tokens, values, features, message):
    with pytest.raises(InputError, match=message):
        token_view(tokens, values, features)


def test_values_that_are_no_numbers():
    with pytest.raises(NotFiniteError):
        token_view(["a"], [float("nan")])


def test_an_unknown_feature(view):
    with pytest.raises(InputError, match="feature 8 is not in this view. It holds 7, 12"):
        view.figure(8)


def test_without_anywidget(view, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match="pip install anywidget"):
        view.explore()
    with pytest.raises(ImportError, match="pip install anywidget"):
        view.save(tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []
    assert "feature 7" in view._repr_html_()


def test_importing_the_views_imports_neither_widgets_nor_matplotlib():
    import subprocess

    code = (
        "import sys, sparselens.views as v; v.token_view(['a'], [1.0])._repr_html_(); v.snippets([]);"
        "v.LiveCurve().update(1, {'loss': 1.0});"
        "heavy = {'anywidget', 'ipywidgets', 'matplotlib', 'pandas', 'IPython', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["x.png", "x.svg", "x.pdf"])
def test_pictures(name, tmp_path):
    with np.errstate(all="raise"):
        path = hostile_view().save(tmp_path / name)
    assert path.stat().st_size > 2000
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_another_ending(view, tmp_path):
    with pytest.raises(InputError, match=r"must end in one of .html, .png, .svg, .pdf"):
        view.save(tmp_path / "x.docx")


def test_the_figure_draws_a_box_for_each_active_token():
    from matplotlib.patches import Rectangle

    axes = token_view(["ab", "c\n", "d"], [0.0, 2.0, -1.0]).figure().axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(box.get_x(), round(box.get_y()), box.get_width()) for box in boxes] == [(2, 0, 2), (0, 1, 1)]
    assert [text.get_text() for text in axes.texts] == ["ab", "c↵", "d"]


def test_a_long_figure_is_cut_to_its_peaks():
    import matplotlib.pyplot as plt

    figure = long_view(5000, 1).figure()
    assert sum("tokens …" in text.get_text() for text in figure.axes[0].texts) > 1
    assert figure.get_figheight() < 20
    assert plt.get_fignums() == []

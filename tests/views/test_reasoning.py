"""The timeline of a chain of thought: static form, figures, widget."""

import numpy as np
import pytest
import traitlets

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import interval_dots, timeline_view
from tests.views.allowed import check
from tests.views.sample_views import a_timeline
from tests.views.samples import HOSTILE


def test_the_first_step_below_a_threshold():
    view = a_timeline()
    assert (view.first_below(), view.first_below("rising"), view.first_below(threshold=0.0)) == (6, 0, -1)
    assert view.summary()[0] == "The final answer is wrong. 12 steps." and "at step 7" in view.summary()[1]
    assert timeline_view(["a"]).first_below() == -1
    with pytest.raises(InputError, match="Closest: rising"):
        view.first_below("risin")


def test_the_static_form_says_everything():
    read = check(a_timeline().to_html())
    for said in ("✓ right", "✗ wrong", "◀ first below 0.5", "fires: 7", "9 nine (1)", "step 11", "0.64 0.57–0.67"):
        assert said in read.text, said
    assert HOSTILE[2] in read.text and "the other chain" in read.text


@pytest.mark.parametrize("n", [1, 40, 500])
def test_any_number_of_steps_stays_small(n):
    view = a_timeline(n)
    for most in (200_000, 12_000):
        html = view.to_html(most)
        assert len(html.encode()) <= most
        read = check(html)
        assert ("more; see to_frame()" in read.text) == (n == 500 or (n == 40 and most == 12_000))
    assert len(view.to_frame()) == n and len(view.explore().chains[0]["steps"]) == n


def test_the_frame():
    frame = a_timeline(3).to_frame()
    assert frame["label"].tolist()[:2] == [1.0, 0.0] and frame["label"].isna()[2]
    assert frame["rising"].tolist() == [0.0, 0.5, 1.0] and frame["features"][0] == [7, 9]
    assert frame["rising_low"].tolist() == pytest.approx([0, 0.45, 0.9])


def test_the_widget_holds_the_same_numbers():
    view = a_timeline()
    widget = view.explore()
    chain = widget.chains[0]
    np.testing.assert_array_equal(np.frombuffer(chain["scores"], "<f4").reshape(2, 3, 12), view.scores)
    assert chain["labels"][:3] == [1, 0, -1] and len(widget.chains) == 2
    assert widget.step == view.first_below() == 6, "it opens where the doubt begins"
    widget.set_state({"step": 11, "probe": 1, "threshold": 0.25, "feature": 7})
    assert widget.selected == 11 and repr(widget) == "TimelineWidget(12 steps, 2 probes, answer wrong)"
    for name, value in (("step", 12), ("step", -2), ("probe", 2), ("threshold", 1.5)):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)
    assert len(a_timeline(700, beside=False).explore().chains[0]["steps"]) == 500


@pytest.mark.filterwarnings("error")
def test_pictures(tmp_path):
    assert a_timeline().save(tmp_path / "x.png").stat().st_size > 1000
    assert timeline_view(["a", "b"]).figure().axes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"steps": []}, "no steps"), ({"scores": {"p": [1]}}, "2 steps"), ({"labels": [1.0]}, "labels has 1"),
     ({"ranges": {"q": ([0, 0], [1, 1])}}, "no scores"), ({"features": [[]]}, "features has 1"),
     ({"tokens": [(["a"], [1, 2]), ([], [])]}, "one number a token"), ({"threshold": 2.0}, "between 0 and 1")],
)
def test_what_does_not_fit_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        timeline_view(**{"steps": ["a", "b"], "scores": {"p": [0.5, 0.5]}, **arguments})
    with pytest.raises(NotFiniteError):
        timeline_view(["a"], {"p": [float("nan")]})


def test_interval_dots():
    axes = interval_dots(["a", "$b"], [[0.5, 0.4, 0.6], [0.7, 0.6, 0.8]], "AUROC", [True, False]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()][0] == "a" and axes.get_xlabel() == "AUROC"
    with pytest.raises(InputError, match="2, 3"):
        interval_dots(["a", "b"], [[1, 2]], "x")

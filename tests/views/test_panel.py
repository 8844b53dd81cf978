"""The panel of interventions: values are checked, both answers come, stop stops, the last run is kept."""

import math
import time

import pandas as pd
import pytest

from sparselens.errors import InputError
from sparselens.views import Knob, Selection, panel_view
from sparselens.views.panel import differing
from tests.views.allowed import check
from tests.views.sample_views import a_panel
from tests.views.samples import HOSTILE


def finish(widget) -> None:
    widget.running = True
    widget._turns.thread.join(10)
    assert not widget.running


def test_what_is_set():
    panel = a_panel()
    assert panel.values == {41: 8.0}
    assert panel.set({7: 1}).values == {7: 1.0}
    assert panel.set({3: 2.5}).knobs[-1] == Knob(3, "found", 0.0, 4.0, 2.5)
    assert panel.set({}).values == {}
    assert repr(panel) == "InterventionPanel(41: 8, 7: free)"


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ([], "0 features to set"),
        ([Knob(i) for i in range(9)], "9 features to set: give 1 to 8"),
        ([Knob(1), Knob(1)], "feature 1 is listed more than once"),
        ([Knob(1, low=2.0, high=2.0)], "it must rise"),
        ([Knob(1, high=math.nan)], "it must rise"),
        ([Knob(1, value=math.inf)], "feature 1 is set to inf"),
    ],
)
def test_what_cannot_be_set(knobs, says):
    with pytest.raises(InputError, match=says):
        panel_view(knobs, "p")


def test_without_a_model():
    panel = panel_view([Knob(1)], "p")
    with pytest.raises(InputError, match="no model to answer"):
        panel.run()
    with pytest.raises(InputError, match="no model to answer"):
        panel.explore().running = True
    with pytest.raises(InputError, match="feature 2 has no knob here; those of 1 have"):
        panel.set({2: 1.0})
    assert "not answered yet" in check(panel.to_html()).text
    assert len(panel.to_frame()) == 0
    panel.figure()


def test_a_run_shows_both_answers_and_their_numbers():
    panel = a_panel().run()
    assert (panel.untouched, panel.steered) == ("one two three", "one 41=8 three")
    assert [name for name, *_ in panel.numbers] == [
        "tokens", "perplexity to the untouched model", "KL to the steered model, nats a token"]
    assert panel.numbers[1][1] == pytest.approx(math.exp(0.5))
    assert panel.numbers[2][1] == pytest.approx(0.25)
    read = check(panel.to_html())
    assert "one two three" in read.text
    assert "values={41: 8.0}" in read.text
    assert len(panel.figure().axes[0].lines) == 2
    other = panel.run({7: 2}, "another")
    assert (other.steered, other.prompt) == ("one 7=2 three", "another")
    assert panel.set({7: 2}).untouched == "", "answers to other values are not shown"


def test_words_that_differ():
    a, b = differing("the cat sat  on", "the dog sat on it")
    assert [word for word, new in a if new] == [" cat"]
    assert [word for word, new in b if new] == [" dog", " it"]
    assert "".join(word for word, _ in a) == "the cat sat  on"
    assert differing("", "x") == ([], [("x", True)])


def test_the_live_panel_answers():
    widget = a_panel().explore()
    finish(widget)
    assert (widget.untouched_answer, widget.steered_answer, widget.status) == ("one two three", "one 41=8 three", "")
    assert widget.numbers[0] == ["tokens", 3.0, 3.0]
    shown = check(widget._repr_mimebundle_()[0]["text/html"]).text
    assert "one 41=8 three" in shown, "the static form keeps the last run"
    widget.values = [None, 3.0]
    assert widget.code == f"values={{7: 3.0}} prompt={HOSTILE[0]!r}"
    finish(widget)
    assert widget.steered_answer == "one 7=3 three"
    with pytest.raises(InputError, match="1 values for 2 features"):
        widget.values = [1.0]
    with pytest.raises(InputError, match="cannot be set to nan"):
        widget.values = [math.nan, 1.0]


def test_other_values_begin_anew_and_stop_stops():
    widget = a_panel(words=1000, pause=0.002).explore()
    widget.running = True
    first = widget._turns.thread
    time.sleep(0.05)
    for value in (1.0, 2.0, 3.0):
        widget.values = [value, None]
        assert widget.running
    first.join(10)
    began = time.monotonic()
    widget.running = False
    widget._turns.thread.join(10)
    assert time.monotonic() - began < 0.3
    assert widget.status == "stopped"
    assert not widget.running


def test_runs_of_a_panel_never_mix():
    busy = []
    panel = a_panel(words=30, pause=0.001, watch=busy)
    widget = panel.explore()
    widget.running = True
    for value in range(12):
        widget.values = [float(value), float(value)]
        time.sleep(0.005)
    widget._turns.thread.join(20)
    assert max(busy) == 1, "one answer at a time"
    assert f"7={value}" in widget.steered_answer


def test_an_error_is_shown():
    def broken(values, prompt, say):
        raise ValueError("no <b>room</b>")

    widget = panel_view([Knob(1)], "p", answer=broken).explore()
    finish(widget)
    assert widget.status == "ValueError: no <b>room</b>"


def test_a_feature_chosen_elsewhere_gets_a_knob():
    widget = a_panel().explore()
    chosen = Selection(widget)
    chosen.feature = 3
    assert (widget.features, widget.values) == ([41, 7, 3], [8.0, None, None])
    widget.values = [8.0, None, 2.0]
    assert widget.selected == {41: 8.0, 3: 2.0}
    for feature in range(50, 60):
        widget.feature = feature
    assert len(widget.features) == 8
    assert widget.features[:2] == [41, 3], "those that are set stay"
    widget.values = [1.0] * 8
    with pytest.raises(InputError, match="leave one to the model first"):
        widget.feature = 99
    with pytest.raises(InputError, match="no feature 1000"):
        widget.feature = 1000


def test_a_saved_panel_has_the_last_run(tmp_path):
    widget = a_panel().run().portable()
    assert widget.can_answer is False
    assert widget.steered_answer == "one 41=8 three"
    assert a_panel().run().save(tmp_path / "x.html").stat().st_size < 80_000


def test_an_answer_without_words():
    def silent(values, prompt, say):
        pass

    empty = pd.DataFrame(columns=["side", "position", "token", "logprob", "kl"])
    panel = panel_view([Knob(1)], "p", answer=silent, measure=lambda *_: empty).run()
    assert math.isnan(panel.numbers[1][1])
    assert "not answered yet" in check(panel.to_html()).text
    widget = panel.explore()
    finish(widget)
    assert widget.numbers[1] == ["perplexity to the untouched model", None, None]

"""Sweeps: the same numbers as one comparison at a time, and a model that answers from the dial."""

import time

import pytest

import sparselens as sl
from sparselens.errors import InputError
from tests import tiny

TEXTS = ["the cat sat on the mat and the dog", "a rat in a hat ate it all in a day"]


@pytest.fixture(scope="module")
def m():
    return tiny.live()


@pytest.fixture(scope="module")
def swept(m):
    return sl.sweep(m, {"TEAL": sl.TEAL, "WINA": (lambda s: sl.WINA(s, scope="all"), [0.5])}, TEXTS, [0.25, 0.5])


def test_each_row_is_the_report_of_that_setting(m, swept):
    frame = swept.to_frame()
    assert frame[["method", "sparsity"]].values.tolist() == [["TEAL", 0.25], ["TEAL", 0.5], ["WINA", 0.5]]
    things = {"a": sl.TEAL(0.25), "b": sl.TEAL(0.5), "c": sl.WINA(0.5, scope="all")}
    truth = sl.compare(m, things, TEXTS).to_frame()
    for name in ("kl", "ce", "perplexity", "top1", "weight_bytes", "flops"):
        assert frame[name].tolist() == truth[name].tolist()
    assert frame["achieved"].tolist() == truth["sparsity"].tolist()
    assert frame["kl"].iloc[0] < frame["kl"].iloc[1]


def test_the_dense_model_is_where_all_start(m, swept):
    dense, clean = swept.dense(), swept.frontier.reports[0]
    assert dense["ce"] == clean.ce_clean
    assert (dense["kl"], dense["top1"], dense["weight_bytes"]) == (0.0, 1.0, clean.weight_bytes_dense)
    assert swept.view().stops("WINA") == [0, 0.5]


def test_it_shows_and_draws(swept):
    assert "TEAL" in swept._repr_html_()
    assert swept.plot().get_ylabel() == "perplexity"
    assert swept.plot("weight_bytes", "kl").get_xlabel() == "weights read per token, MB"
    with pytest.raises(InputError, match="'perplexty' was not measured.*Closest: perplexity"):
        swept.plot(y="perplexty")


def test_the_model_answers_from_the_dial_and_is_let_go(m, swept):
    dial = swept.explore(max_new_tokens=6)
    dial.method, dial.sparsity, dial.prompt = "WINA", 0.5, "the cat"
    with m.attach(sl.TEAL(0.9)):
        dial.running = True
        time.sleep(0.1)
        assert dial.dense_answer == "", "while something is attached here, the model is taken"
    dial._turns.thread.join(60)
    assert not dial.running
    assert dial.status == ""
    assert dial.dense_answer == m.generate("the cat", 6)
    with m.attach(sl.WINA(0.5, scope="all")):
        assert dial.sparse_answer == m.generate("the cat", 6)


@pytest.mark.parametrize(
    ("methods", "sparsities", "says"),
    [
        ({}, [0.5], "nothing to measure"),
        ({"TEAL": sl.TEAL}, [0.0], "out of range"),
        ({"TEAL": sl.TEAL}, [1.0], "out of range"),
        ({"TEAL": sl.TEAL}, [], "out of range"),
        ({"TEAL": sl.TEAL}, [0.5, 0.5], "twice"),
    ],
)
def test_what_cannot_be_swept(m, methods, sparsities, says):
    with pytest.raises(InputError, match=says):
        sl.sweep(m, methods, TEXTS, sparsities)

"""Planted chains: their truth can be worked out again from their texts alone."""

import re

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import check_arithmetic, final_number

CHAINS = sl.planted_chains(600, seed=3)
EVENTS = {"finds": "+", "buys": "+", "gives away": "-", "loses": "-", "hands": "*"}


def told(question):
    """The operations and numbers of an arithmetic question, in order."""
    found = re.findall(r"(finds|buys|gives away|loses|hands)\D* (\d+)", question)
    return int(re.search(r"has (\d+)", question)[1]), [(EVENTS[verb], int(n)) for verb, n in found]


def arithmetic_truth(trace):
    """The number of the first step that is wrong, -1 if none, by working the problem out."""
    value, events = told(trace.question)
    for number, ((operation, n), step) in enumerate(zip(events, trace.steps.texts[1:], strict=True), start=1):
        value = {"+": value + n, "-": value - n, "*": value * n}[operation]
        if int(re.search(r"=(\d+)>>", step)[1]) != value:
            return number
    return -1


def logic_truth(trace):
    rules = set(re.findall(r"Every (\w+) is a (\w+)\.", trace.question))
    for number, step in enumerate(trace.steps.texts):
        if re.search(r"every (\w+) is a (\w+),", step).groups() not in rules:
            return number
    return -1


def test_the_labels_are_the_truth():
    for trace in CHAINS:
        truth = logic_truth(trace) if "Every" in trace.question else arithmetic_truth(trace)
        assert (trace.first_error, trace.verdict) == (truth, truth < 0), trace
        assert trace.kind == "" or not trace.verdict
        assert all(y is None for y in trace.labels[truth + 1 :]) or truth < 0


def test_kinds_are_what_they_say():
    wrong = [t for t in CHAINS if not t.verdict]
    assert {t.kind for t in wrong} == {"result", "operation", "number", "reversed", "unstated"}
    for trace in wrong:
        right = check_arithmetic(trace.steps.texts[trace.first_error])
        assert right is {"result": False, "operation": True, "number": True}.get(trace.kind)
        if trace.kind in ("reversed", "unstated"):
            known, said = re.search(r"every (\w+) is a (\w+),", trace.steps.texts[trace.first_error]).groups()
            assert (f"Every {said} is a {known}." in trace.question) is (trace.kind == "reversed")
    assert {t.kind for t in sl.planted_chains(40, kind="number") if not t.verdict} == {"number"}


def test_right_and_wrong_problems_are_drawn_alike():
    lengths = [np.mean([len(t) for t in CHAINS if t.verdict is v]) for v in (True, False)]
    asked = [np.mean([len(t.question) for t in CHAINS if t.verdict is v]) for v in (True, False)]
    assert abs(lengths[0] - lengths[1]) < 0.3 and abs(asked[0] / asked[1] - 1) < 0.05
    assert sum(t.verdict for t in CHAINS) == 300 and len(set(CHAINS.problems)) == 600


def test_seeds_and_shares():
    assert sl.planted_chains(20, seed=1).items == sl.planted_chains(20, seed=1).items
    assert sl.planted_chains(20, seed=1).items != sl.planted_chains(20, seed=2).items
    assert all(sl.planted_chains(9, share_wrong=0.0).verdicts)
    assert not any(sl.planted_chains(9, share_wrong=1.0).verdicts)
    for wrong in ({"kind": "sums"}, {"n": 0}, {"share_wrong": 2.0}):
        with pytest.raises(InputError):
            sl.planted_chains(**wrong)


@pytest.mark.parametrize("moves", [(1, 1), (1, 3), (5, 5)])
def test_problems_are_as_long_as_asked(moves):
    for trace in sl.planted_chains(60, moves=moves, seed=1):
        things = len(trace) - (0 if "Every" in trace.question else 1)
        assert moves[0] <= things <= moves[1]
    with pytest.raises(InputError, match="between 1 and 5"):
        sl.planted_chains(4, moves=(2, 6))


def test_the_chains_that_come_along_have_the_verdicts_that_their_problems_give():
    frame = sl.datasets.load_chains()
    traces = sl.read_traces(frame)
    assert (len(traces), len(set(traces.problems)), sum(traces.verdicts)) == (400, 100, 41)
    for trace in traces:
        value, events = told(trace.question)
        for operation, n in events:
            value = {"+": value + n, "-": value - n, "*": value * n}[operation]
        assert trace.verdict == (final_number(trace.text) == str(value)), trace.text
    notes = traces.check_arithmetic().step_labels()
    assert (np.isfinite(notes).sum(), np.nansum(notes)) == (506, 143)

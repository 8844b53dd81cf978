"""Traces read from the forms people keep them in."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

import sparselens as sl
from sparselens.errors import FileFormatError, InputError
from sparselens.reasoning import Trace, Traces

EXAMPLES = {"question": "How many?", "ground_truth": "1+1=2\nA: 2",
            "small": {"is_correct": False, "solution": "1+1 = <<1+1=3>>3\nwait\nA: 3"},
            "large": {"is_correct": True, "solution": "1+1 = <<1+1=2>>2\nA: 2"}}


def test_strings_and_lists():
    traces = sl.read_traces(["a\nb\nc", "d\ne\nf"], model="me")
    assert [t.steps.texts for t in traces] == [["a", "b\nc"], ["d", "e\nf"]]
    assert traces.models == ["me"] and traces.problems == ["#0", "#1"] and traces.verdicts == [None, None]
    assert sl.read_traces("a\nb", merge_last=False).n_steps == 2
    assert sl.read_traces(traces) is traces


def test_gsm8k():
    reference = sl.read_traces([{"question": "Q", "answer": "1+1=<<1+1=2>>2\nthen\n#### 2"}])
    assert (reference[0].verdict, reference[0].model, len(reference[0])) == (True, "reference", 2)
    traces = sl.read_traces([EXAMPLES])
    assert traces.models == ["small", "large"] and traces.verdicts == [False, True]
    assert traces.problems == ["How many?"] * 2
    checked = traces.check_arithmetic()
    assert [t.labels for t in checked] == [[0.0, None], [1.0]]
    assert [t.first_error for t in checked] == [0, -1] and traces[0].first_error is None


def test_processbench_and_trl_and_shepherd():
    bench = {"id": "gsm8k-0", "generator": "Qwen", "problem": "P?", "steps": ["a", "b", "c"],
             "final_answer_correct": False, "label": 1}
    trace = sl.read_traces([bench])[0]
    assert (trace.problem, trace.question, trace.model) == ("P?", "P?", "Qwen")
    assert (trace.labels, trace.first_error, trace.verdict) == ([1.0, 0.0, None], 1, False)
    assert sl.read_traces([{**bench, "label": -1}])[0].first_error == -1
    trl = sl.read_traces([{"prompt": "P?", "completions": ["a\nb", "c"], "labels": [True, False]}])[0]
    assert (trl.question, trl.steps.texts, trl.labels) == ("P?", ["a\nb", "c"], [1.0, 0.0])
    shepherd = {"input": "P? Step 1: 1+1=2 ки\nStep 2: The answer is: 3 ки",
                "label": "P? Step 1: 1+1=2 +\nStep 2: The answer is: 3 -", "task": "GSM8K"}
    trace = sl.read_traces([shepherd])[0]
    assert trace.labels == [1.0, 0.0] and trace.steps.texts[1] == "Step 2: The answer is: 3" and trace.question == "P?"


def test_prm800k():
    record = {"question": {"problem": "P?"}, "label": {"steps": [
        {"completions": [{"text": "a", "rating": -1}, {"text": "b", "rating": 0}], "chosen_completion": 1},
        {"human_completion": {"text": "h"}, "chosen_completion": None, "completions": None},
        {"completions": [{"text": "c", "rating": -1}], "chosen_completion": None}]}}
    trace = sl.read_traces([record])[0]
    assert (trace.question, trace.steps.texts, trace.labels, trace.first_error) == ("P?", ["b", "h", "c"], [1, 1, 0], 2)


def test_frames_round_trip():
    traces = sl.read_traces([EXAMPLES]).check_arithmetic()
    frame = traces.to_frame()
    assert len(frame) == traces.n_steps == 3 and frame["label"].isna().sum() == 1
    again = sl.read_traces(frame.sample(frac=1, random_state=0).sort_values("trace", kind="stable"))
    assert again.items == traces.items
    plain = pd.DataFrame({"solution": ["a\nb", "c\nd"], "is_correct": [True, None], "model": ["m", "n"]})
    assert sl.read_traces(plain).verdicts == [True, None]


def test_files_round_trip(tmp_path):
    traces = sl.read_traces([EXAMPLES]).check_arithmetic()
    path = traces.save(tmp_path / "deep" / "traces.jsonl")
    assert sl.read_traces(path).items == traces.items
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(EXAMPLES).encode()))
    assert len(sl.read_traces(packed)) == 2
    packed.write_bytes(gzip.compress(json.dumps(EXAMPLES).encode())[:-12])
    with pytest.raises(FileFormatError, match="copied whole"):
        sl.read_traces(packed)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(FileFormatError, match="line 2"):
        sl.read_traces(bad)
    with pytest.raises(InputError, match=r"Closest: bad\.jsonl"):
        sl.read_traces(tmp_path / "bat.jsonl")


def test_arrays_of_steps():
    traces = sl.read_traces([EXAMPLES]).check_arithmetic()
    labels = traces.step_labels()
    assert labels[0] == 0 and np.isnan(labels[1]) and labels[2] == 1
    assert traces.step_verdicts().tolist() == [0, 0, 1] and set(traces.step_problems()) == {"How many?"}
    assert traces[0].context(1) == "How many?\n1+1 = <<1+1=3>>3\n"
    assert len(traces.by("large")) == 1 and len(traces + traces[:1]) == 3
    assert traces.relabel(len)[0].labels[0] == len("1+1 = <<1+1=3>>3")


@pytest.mark.parametrize(
    ("records", "said"),
    [([], "at least one"), ([{"solutions": "a"}], "Closest: solution"), ([3], "int"), (3.5, "float"),
     ([{"steps": ["a", "b"], "labels": [1]}], "2 steps but 1 labels"), ([{"steps": ["a"], "label": 4}], "label=4"),
     ([{"steps": ["a"], "labels": [-1]}], "Ratings of -1"), ([{"text": "a", "verdict": "yes"}], "'yes'"),
     ([{"steps": ["a", " "]}], "blank"), ([{"text": "abc", "spans": [[0, 2], [1, 3]]}], "not in order"),
     ([{"text": "abc", "spans": [[0, 5]]}], "not in order"), ([{"steps": "abc"}], "list of strings")],
)
def test_what_cannot_be_read_is_named(records, said):
    with pytest.raises(InputError, match=said):
        sl.read_traces(records)


def test_unknown_models_and_labels_of_other_length():
    with pytest.raises(InputError, match="Closest: large"):
        sl.read_traces([EXAMPLES]).by("larg")
    with pytest.raises(InputError, match="1 steps but 2 labels"):
        Traces([Trace("p", "a", [(0, 1)], [1.0, 0.0])])

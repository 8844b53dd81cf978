"""The timeline of a chain that a live model reads."""

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import InputError
from tests import tiny


@pytest.fixture(scope="module")
def read():
    m = tiny.live()
    sae = sl.SAE("topk", d_in=32, d_sae=40, k=3, site="blocks.1.hook_resid_post")
    texts = [f"the hen {'in ' * (i % 4)}an inn\nso {i}\nthen the end {'a' * (i % 3)}" for i in range(24)]
    traces = sl.read_traces([{"question": f"Q{i}?", "text": text} for i, text in enumerate(texts)], merge_last=False)
    traces = traces.relabel(lambda text: "in an" in text or "aa" in text)
    return m, sae, traces, sl.probe_steps(traces, m=m, sae=sae)


def test_a_chain_is_scored_and_opened(read):
    m, sae, traces, table = read
    view = sl.reasoning.step_timeline(traces[5], m, sae, table, descriptions={0: "zero"})
    assert view.steps == traces[5].steps.texts and view.question == "Q5?" and view.labels == traces[5].labels
    assert set(view.probes) == {"last", "mean", "context", "sae"}
    own = np.flatnonzero(table.rows.chain == 5)
    for name in view.probes:
        truth = table.probes[name].predict_proba(table.rows.matrices[name][own])[:, 1]
        np.testing.assert_allclose(view.scores[view.probes.index(name), 0], truth, atol=1e-4)
    for step, (row, (tokens, values)) in enumerate(zip(view.features, view.tokens, strict=True)):
        assert "".join(tokens).strip() == view.steps[step]
        assert row[0][2] == pytest.approx(float(np.max(values)), rel=1e-4), "the tokens show the strongest feature"
        assert [abs(f[2]) for f in row] == sorted((abs(f[2]) for f in row), reverse=True)


def test_one_feature_for_all_steps_and_another_chain_beside(read):
    m, sae, traces, table = read
    beside = sl.reasoning.step_timeline("one\ntwo\nthree", m)
    view = sl.reasoning.step_timeline(traces[0], m, sae, {"last": table.probes["last"]}, feature=7, other=beside)
    assert view.probes == ["last"] and view.other is beside and beside.tokens is None and beside.probes == []
    assert "the other chain" in view.to_html()


def test_from_the_table(read):
    table = read[3]
    view = table.timeline(5, ["last", "words"])
    assert view.probes == ["last", "words"] and len(view) == 3
    assert len(table.timeline(0).probes) == 3


def test_what_is_wrong_is_named(read):
    m, _, traces, table = read
    with pytest.raises(InputError, match="24 chains"):
        sl.reasoning.step_timeline(traces, m)
    with pytest.raises(InputError, match="none reads"):
        sl.reasoning.step_timeline(traces[0], m, probes={"words": table.probes["words"]})

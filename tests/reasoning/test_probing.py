"""The table of step probes, on planted chains with made-up rows."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import StepLatents, Trace, Traces, first_errors
from sparselens.reasoning.baselines import context_statistics, step_statistics, word_counts
from tests import tiny
from tests.views.allowed import check

CHAINS = sl.planted_chains(160, seed=1)
KNOWING = np.nan_to_num(CHAINS.step_labels(), nan=0.5)


def made(signal=3.0, seed=0, traces=CHAINS, truth=KNOWING):
    """Rows of noise, and rows whose third column knows the label."""
    x = np.random.default_rng(seed).normal(size=(traces.n_steps, 8)).astype(np.float32)
    telling = x.copy()
    telling[:, 2] += signal * (truth - 0.5)
    return {"last": x, "mine": csr_matrix(telling)}


@pytest.fixture(scope="module")
def table():
    return sl.probe_steps(CHAINS, made())


def test_the_table_has_every_baseline_and_the_best_first(table):
    frame = table.to_frame().set_index("representation")
    assert set(frame.index) == {"prior", "statistics", "words", "last", "mine", "last + statistics"}
    assert frame.index[0] == "mine" and frame.loc["mine", "auroc"] > 0.9
    assert frame.loc["prior", "auroc"] == pytest.approx(0.5)
    assert abs(frame.loc["last", "auroc"] - 0.5) < 0.2
    assert frame.loc["prior", ["sees", "read"]].tolist() == ["nothing", 0] and frame.loc["mine", "read"] == 8
    assert (frame["auroc_low"] <= frame["auroc"]).all() and (frame["auroc"] <= frame["auroc_high"]).all()
    assert frame.loc["prior", "accuracy"] == pytest.approx((table.rows.y[table.test] == 1).mean())


def test_no_problem_is_on_both_sides(table):
    assert not set(table.rows.problems[table.train]) & set(table.rows.problems[table.test])
    assert np.isfinite(table.rows.y[table.train]).all() and np.isfinite(table.rows.y[table.test]).all()
    assert len(table.train) + len(table.test) == np.isfinite(CHAINS.step_labels()).sum()


def test_first_errors_are_found_with_a_telling_probe(table):
    found, chance = table.first_errors("mine"), table.first_errors("last")
    assert found.told.value > 3 * found.chance and found.f1.value > chance.f1.value
    assert found.n_wrong + found.n_right == len(table.by_chain("mine")[0])
    assert "times chance" in check(found._repr_html_()).text and len(found.to_frame()) == 5


def test_first_errors_by_hand():
    traces = Traces([
        Trace("a", "xyz", [(0, 1), (1, 2), (2, 3)], [1.0, 0.0, None]), Trace("b", "xy", [(0, 1), (1, 2)], [1.0, 1.0]),
        Trace("c", "xy", [(0, 1), (1, 2)], [0.0, None]), Trace("d", "xy", [(0, 1), (1, 2)], [None, 0.0])])
    found = first_errors(traces, [[0.9, 0.4, 0.1], [0.9, 0.6], [0.6, 0.3], [0.9, 0.1]])
    assert found.predicted == [1, -1, 1, 1] and (found.n_wrong, found.n_right) == (2, 1)
    assert (found.exact.value, found.kept.value, found.told.value) == (0.5, 1.0, 0.5)
    # told: in a 0.9 * 0.6 is more than 0.1 and 0.9 * 0.4 * 0.9, in c 0.6 * 0.7 more than 0.4
    assert found.f1.value == pytest.approx(2 * 0.5 / 1.5) and found.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    with pytest.raises(InputError, match="chain 1 has 2 steps"):
        first_errors(traces, [[0.9, 0.4, 0.1], [0.9], [0.6, 0.3], [1, 1]])
    with pytest.raises(InputError, match="known first error"):
        first_errors(traces[1:2], [[0.9, 0.6]])


def test_verdicts_are_of_chains():
    truth = CHAINS.step_verdicts()
    table = sl.probe_steps(CHAINS, made(truth=truth), task="verdict")
    assert len(table.train) + len(table.test) == len(CHAINS) and table.rows.matrices["mine"].shape == (160, 8)
    given = made(truth=truth)
    ends = np.cumsum([len(t) for t in CHAINS]) - 1
    np.testing.assert_array_equal(table.rows.matrices["last"], given["last"][ends])
    np.testing.assert_allclose(table.rows.matrices["mine"].toarray()[1],
                               given["mine"].toarray()[ends[0] + 1 : ends[1] + 1].mean(0), atol=1e-6)
    assert table.to_frame()["representation"][0] == "mine"
    with pytest.raises(InputError, match="whole chains"):
        table.first_errors("mine")


def test_transfer_between_models_keeps_problems_apart():
    twice = CHAINS + Traces([Trace(**{**vars(t), "model": "other"}) for t in CHAINS])
    rows = made(traces=twice, truth=np.tile(KNOWING, 2))
    table = sl.probe_steps(twice, rows, train="planted", test=["other"])
    models = np.array([t.model for t in twice])[table.rows.chain]
    assert set(models[table.train]) == {"planted"} and set(models[table.test]) == {"other"}
    assert not set(table.rows.problems[table.train]) & set(table.rows.problems[table.test])
    with pytest.raises(InputError, match="Closest: other"):
        sl.probe_steps(twice, rows, test="others")


def test_lengths_and_first_tokens_from_a_live_model():
    m = tiny.live()
    texts = ["".join(f"{word} {'is ' * (i % 5)}{word}\n" for word in ("so", "then", "now")) for i in range(24)]
    traces = sl.read_traces(texts, merge_last=False)
    states = sl.step_states(traces, m)
    table = sl.probe_steps(traces, states.plus(mine=states.n_tokens[:, None].astype(np.float32)), task="length")
    frame = table.to_frame().set_index("representation")
    assert frame.index[0] == "mine" and frame.loc["mine", "rmse"] < 0.1
    assert frame.loc[["context statistics", "context", "prior"], "sees"].tolist() == ["context", "context", "nothing"]
    first = sl.probe_steps(traces, states, task="first_token").to_frame()
    assert (first["perplexity"] >= 1).all() and "favoured" in table.notes[-1]
    with pytest.raises(InputError, match=r"states\.plus"):
        sl.probe_steps(traces, dict(states), task="length")
    codes = StepLatents(torch.rand(72, 5), torch.ones(72), traces.step_problems().tolist())
    assert states.plus(ssae=codes)["ssae"].shape == (72, 5)
    with pytest.raises(InputError, match="3 rows"):
        states.plus(mine=np.zeros((3, 1)))


def test_labels_of_ones_own():
    y = [None] * CHAINS.n_steps
    y[:300] = (KNOWING[:300] > 0.7).astype(int).tolist()
    table = sl.probe_steps(CHAINS, made(), y=y)
    assert len(table.train) + len(table.test) == 300 and "no label" in table.notes[1]
    soft = CHAINS.relabel(lambda text: 0.3 if "1" in text else 0.9)
    assert set(sl.probe_steps(soft, made()).rows.y) == {0, 1}


def test_figures_and_frames(table):
    shown = check(table._repr_html_()).text
    assert table.plot().axes and "StepProbes(" in shown and "none on both sides" in shown and "mine" in repr(table)
    bins = table.reliability("mine")
    assert bins["rows"].sum() == len(table.test)
    with pytest.raises(InputError, match="Closest: mine"):
        table.probabilities("mien")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"representations": {"mine": KNOWING[:, None]}}, "dense states"), ({"task": "corect"}, "Closest: correct"),
     ({"representations": {"last": np.zeros((3, 2))}}, "3 rows"), ({"y": [1, 0]}, "2 values"),
     ({"y": [None] * CHAINS.n_steps}, "no label is known"), ({"y": [1] * CHAINS.n_steps}, "are 1"),
     ({"train": "plantd"}, "Closest: planted"), ({"held_out": 1.5}, "between 0 and 1")],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(InputError, match=said):
        sl.probe_steps(CHAINS, **{"representations": made(), **change})


def test_text_baselines():
    traces = sl.read_traces([{"question": "Q", "text": "1+1 = <<1+1=2>>2\nso 4"}], merge_last=False)
    figures = step_statistics(traces, np.array([0]))
    assert figures.shape == (2, 8) and figures[:, 3].tolist() == [0, 1] and figures[:, 7].tolist() == [1, 0.5]
    assert figures[0, 4] > figures[1, 4]  # words seen in training are likelier
    assert context_statistics(traces)[:, 2].tolist() == [0, len("1+1 = <<1+1=2>>2")]
    counts = word_counts(["a a a b", "b a"], np.array([0]))
    assert counts.shape == (2, 1) and counts.toarray()[:, 0].tolist() == pytest.approx(np.log1p([3, 1]).tolist())
    assert word_counts(["", ""], np.array([0])).shape == (2, 1)

"""Rows of steps from a live model, against a plain reading of each chain."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.reasoning import Trace, Traces
from sparselens.reasoning.states import pooled, step_states
from sparselens.reasoning.surprise import step_surprise
from tests import tiny

SITE = "blocks.1.hook_resid_post"
CHAINS = [{"question": "How many?", "text": "the hen\nan inn\nthe end\n4"}, {"text": "a\nb\nin the inn"},
          {"question": "Q", "text": "one"}]


@pytest.fixture(scope="module")
def read():
    m = tiny.live()
    sae = sl.SAE("topk", d_in=32, d_sae=50, k=3, site=SITE)
    traces = sl.read_traces(CHAINS)
    return m, sae, traces, step_states(traces, m, sae, batch_tokens=60)


@torch.no_grad()
def plain(m, sae, traces, pooling="max"):
    """Each chain alone, token by token."""
    rows = {name: [] for name in ("last", "mean", "context", "sae")}
    for trace in traces:
        ids, step, _ = trace.steps.align(m.tokenizer, trace.prompt)
        x = m.capture(torch.tensor([ids]), SITE)[SITE][0]
        for number in range(len(trace)):
            own = np.flatnonzero(step == number)
            rows["last"].append(x[own[-1]])
            rows["mean"].append(x[own].mean(0))
            rows["context"].append(x[own[0] - 1] if own[0] else torch.zeros(32))
            z = sae.encode(x[own]).dense()
            rows["sae"].append(z.max(0).values if pooling == "max" else z.mean(0))
    return {name: torch.stack(found).numpy() for name, found in rows.items()}


def test_rows_are_those_of_each_chain_alone(read):
    m, sae, traces, states = read
    truth = plain(m, sae, traces)
    for name in ("last", "mean", "context"):
        np.testing.assert_allclose(states[name], truth[name], atol=1e-5)
    np.testing.assert_allclose(states["sae"].toarray(), truth["sae"], atol=1e-5)
    assert len(states["last"]) == traces.n_steps == len(states.tokens) and list(states)[-1] == "sae"
    assert not states["context"][3].any() and states["context"][2].any()


def test_mean_pooled_codes(read):
    m, sae, traces, _ = read
    states = step_states(traces, m, sae, pooling="mean")
    np.testing.assert_allclose(states["sae"].toarray(), plain(m, sae, traces, "mean")["sae"], atol=1e-5)


def test_tokens_of_steps(read):
    m, _, traces, states = read
    said = [m.tokenizer.decode(ids).strip() for ids in states.tokens]
    assert said == [text for trace in traces for text in trace.steps.texts]
    assert states.n_tokens.tolist() == [len(ids) for ids in states.tokens]


def test_the_largest_magnitude_keeps_its_sign():
    got = pooled(np.array([0, 0, 1]), np.array([2, 2, 0]), np.array([1.0, -3.0, 2.0]), (3, 4), "max").toarray()
    assert got.tolist() == [[0, 0, -3, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert pooled(*(np.zeros(0, dtype=int),) * 3, (2, 2), "max").shape == (2, 2)


def test_tokens_beyond_the_dictionarys_domain_are_left_out(read):
    m, sae, traces, _ = read
    narrow = sl.SAE("topk", d_in=32, d_sae=50, k=3, site=SITE, max_norm=0.0)
    assert step_states(traces, m, narrow)["sae"].nnz == 0


def test_without_a_dictionary(read):
    m, _, traces, _ = read
    states = step_states(traces[:1], m)
    assert list(states) == ["last", "mean", "context"] and states.site == "blocks.1.hook_resid_post"
    with pytest.raises(InputError, match="Closest: last"):
        states["lst"]


def test_what_cannot_be_read_is_named(read):
    m, sae, _, _ = read
    with pytest.raises(InputError, match="no steps"):
        step_states(Traces([Trace("p", "  ", [], [])]), m)
    with pytest.raises(InputError, match="the model reads 256"):
        step_states(["a " * 400], m)
    with pytest.raises(InputError, match="step 0 has no token"):
        step_states(Traces([Trace("p", "he", [(0, 1), (1, 2)], [None, None])]), m)
    with pytest.raises(InputError, match="Closest: max"):
        step_states(["a"], m, sae, pooling="maxx")
    with pytest.raises(FitError):
        step_states(["a"], m, sl.SAE("topk", d_in=16, d_sae=20, k=2, site=SITE))


def test_broken_activations_are_named():
    m = tiny.live()
    next(m.module.parameters()).data[:] = float("nan")
    with pytest.raises(NotFiniteError, match="float16"):
        step_states(["a\nb"], m)


def test_surprise_is_the_loss_of_the_steps(read):
    m, _, traces, _ = read
    found = step_surprise(traces, m, batch_tokens=60)
    trace = traces[0]
    ids, step, _ = trace.steps.align(m.tokenizer, trace.prompt)
    log_p = m.run(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    nll = -log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    gap = nll + log_p.max(-1).values
    for number in range(3):
        own = torch.tensor(step[1:] == number)
        truth = [nll[own].mean(), nll[own].max(), nll[own].sum(), gap[own].mean(), gap[own].max(), nll[own][0]]
        np.testing.assert_allclose(found[number], [*truth, number == 0, number == 1], rtol=1e-4, atol=1e-5)
    whole = m.loss(torch.tensor([ids])) * (len(ids) - 1)
    before = nll[torch.tensor(step[1:] < 0)].sum()
    assert found[:3, 2].sum() + float(before) == pytest.approx(whole, rel=1e-4)

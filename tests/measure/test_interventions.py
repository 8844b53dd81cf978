"""Steering by hand: the answers are those of the model, and the numbers are what a direct computation gives."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError
from sparselens.measure import compare_answers
from tests import tiny

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    m = tiny.live()
    sae = sl.SAE(architecture="topk", d_in=32, d_sae=64, k=4)
    sae.metadata["hook_name"] = SITE
    return m, sae


@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_those_of_the_model(made, chat):
    m, sae = made
    panel = sl.intervention_panel(m, sae, [5], "the cat", values={7: 30.0}, chat=chat, max_new_tokens=6)
    assert [(k.feature, k.value) for k in panel.knobs] == [(5, None), (7, 30.0)]
    done = panel.run()
    asked = [{"role": "user", "content": "the cat"}] if chat else "the cat"
    assert done.untouched == m.generate(asked, 6)
    with m.attach(sl.steer(sae, [7], [30.0])):
        assert done.steered == m.generate(asked, 6)
    assert done.untouched != done.steered
    scope = {"m": m, "sl": sl, "sae": sae, "print": lambda text: said.append(text)}
    said: list[str] = []
    exec(panel.code(panel.values, "the cat"), scope)  # the code does what the panel did
    assert said == [done.steered]


def test_numbers_agree_with_a_direct_computation(made):
    m, sae = made
    steered = sl.steer(sae, [7], [30.0])
    frame = compare_answers(m, steered, "the cat", " sat on", " in a hat")
    assert frame["side"].tolist() == sorted(frame["side"], reverse=True)
    for side, answer in (("untouched", " sat on"), ("steered", " in a hat")):
        part = frame[frame["side"] == side]
        new = m.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([m.tokenizer("the cat")["input_ids"] + new])
        n = len(part)
        assert "".join(part["token"]) == answer
        with torch.no_grad():
            clean = m.module(ids).logits[0, -n - 1 : -1].double().log_softmax(-1)
            with m.attach(steered):
                edited = m.module(ids).logits[0, -n - 1 : -1].double().log_softmax(-1)
        np.testing.assert_allclose(part["logprob"], clean[range(n), ids[0, -n:]], rtol=1e-4)
        if side == "untouched":
            np.testing.assert_allclose(part["kl"], (clean.exp() * (clean - edited)).sum(-1), rtol=1e-3, atol=1e-6)
        else:
            assert part["kl"].isna().all()


def test_nothing_set_changes_nothing(made):
    m, sae = made
    panel = sl.intervention_panel(m, sae, [5], "the cat", max_new_tokens=5)
    before = m.run("the cat").logits
    with m.attach(sl.ablate("blocks.0.hook_mlp_out")):  # taken off while the panel answers
        done = panel.run()
    assert done.untouched == done.steered == m.generate("the cat", 5)
    assert done.frame["kl"].fillna(0).abs().max() < 1e-6
    assert torch.equal(m.run("the cat").logits, before)
    assert len(compare_answers(m, [], "the cat", "", "")) == 0


def test_the_panel_asks_for_features_that_exist(made):
    m, sae = made
    with pytest.raises(InputError, match="feature 64 does not exist: this SAE has features 0 to 63"):
        sl.intervention_panel(m, sae, [64])
    panel = sl.intervention_panel(m, sae, [1], labels={1: "one", 2: "two"}, most=3)
    assert (panel.knobs[0].label, panel.knobs[0].high) == ("one", 3.0)
    live = panel.explore()
    live.feature = 2
    assert live.labels == ["one", "two"]
    with pytest.raises(InputError, match="feature 99 does not exist"):
        live.feature = 99


def test_stop_takes_the_features_off(made):
    m, sae = made
    live = sl.intervention_panel(m, sae, [5], "the cat", values={5: 20.0}, max_new_tokens=200).explore()
    before = m.run("the cat").logits
    live.running = True
    live.running = False
    live._turns.thread.join(10)
    assert live.status == "stopped"
    assert torch.equal(m.run("the cat").logits, before)

"""CATS: the MLP by hand, its cap, its error messages."""

import pytest
import torch
from torch.nn import functional

import sparselens as sl
from sparselens.activation.linears import linears
from sparselens.errors import FitError, InputError
from tests import tiny
from tests.activation.test_sparsifier import TEXTS, masked

ACT = {"llama": functional.silu, "gemma": lambda x: functional.gelu(x, approximate="tanh"),
       "gemma2": lambda x: functional.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("family", ACT)
@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
@pytest.mark.parametrize("gate", ["topk", "threshold"])
def test_the_mlp_by_hand(family, backend, gate):
    m = tiny.live(family, backend)
    calibration = sl.calibrate(m, TEXTS, progress=False)
    into, post = "blocks.0.mlp.in.hook_in", "blocks.0.mlp.hook_post"
    weights = {one.proj: one.weight for one in linears(m) if one.layer == 0}
    x = m.capture(TEXTS[0], into)[into]
    g = ACT[family](x @ weights["gate"].T)
    if gate == "topk":
        kept = masked(g, 12)  # of 48
    else:
        tau = calibration.threshold("blocks.0.mlp.hook_pre", 0.75)
        kept = g * (g.abs() > tau)
        assert 0.6 < (kept == 0).double().mean() < 0.9
    cats = sl.CATS({"blocks.0.*": 0.75}, gate=gate, calibration=calibration, dense_prefix=0)
    seen = {}
    # what the down projection gives, before any norm that follows
    linear = next(one for one in linears(m) if one.site == post)
    handle = linear.module.register_forward_hook(lambda _module, _args, y: seen.update(y=y))
    with m.attach(cats):
        m.run(TEXTS[0])
    handle.remove()
    assert torch.allclose(seen["y"], (kept * (x @ weights["up"].T)) @ weights["down"].T, atol=1e-4)


def test_a_share_of_the_model_and_its_cap():
    m = tiny.live()
    thing = sl.CATS(0.3, of="model", dense_prefix=0)
    counted = thing.counted(m)
    with m.attach(counted):
        m.run(TEXTS)
    total = sum(linear.numel for linear in linears(m))
    cap = 2 * 3 * 32 * 48 / total
    k = 48 - int(0.3 / cap * 48 + 1e-6)
    assert counted.numbers()["sparsity"] == pytest.approx(cap * (1 - k / 48))
    skipped = {row["proj"]: row["sparsity"] for row in counted.parts()}
    assert skipped == pytest.approx(dict.fromkeys(["q", "k", "v", "o", "gate"], 0.0)
                                    | dict.fromkeys(["up", "down"], 1 - k / 48))
    with pytest.raises(FitError, match=f"less than {cap:.1%}"):
        sl.CATS(0.5, of="model").edits(m)


def test_a_model_without_gate_and_foreign_sites_are_refused():
    with pytest.raises(FitError, match="needs an MLP with a gate"):
        sl.CATS().edits(tiny.live("gpt2"))
    with pytest.raises(FitError, match="down projections"):
        sl.CATS().edits(tiny.live(), "blocks.0.mlp.in.hook_in")
    with pytest.raises(InputError, match="Closest: model"):
        sl.CATS(of="modell")
    with pytest.raises(InputError, match="one number"):
        sl.CATS({"down": 0.5}, of="model")

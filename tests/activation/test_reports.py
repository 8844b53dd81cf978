"""What sparsifiers say of themselves in reports, and which channels they keep."""

import math

import pytest
import torch

import sparselens as sl
from sparselens.activation.linears import linears
from sparselens.errors import InputError
from tests import tiny
from tests.activation.test_sparsifier import TEXTS, masked

WEIGHTS = 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
HEAD = 300 * 32


@pytest.fixture(scope="module")
def m():
    return tiny.live()


def test_sparsity_bytes_and_flops_by_weights(m):
    with m.attach(sl.TEAL({"gate": 0.5, "down": 0.25}, dense_prefix=0)) as lens:
        report = lens.report(TEXTS)
    left_out = 3 * (0.5 * 32 * 48 + 0.25 * 32 * 48)
    assert report.sparsity == pytest.approx(left_out / WEIGHTS)
    assert report.weight_bytes_dense == 4 * (WEIGHTS + HEAD)
    assert report.weight_bytes == pytest.approx(4 * (WEIGHTS + HEAD - left_out))
    assert report.flops == pytest.approx(2 * (WEIGHTS + HEAD - left_out))
    assert report.perplexity == pytest.approx(math.exp(report.ce))
    frame = report.layer_frame()
    assert list(frame["site"]) == [linear.site for linear in linears(m)]
    assert frame["weights"].sum() == WEIGHTS
    assert frame["read"].sum() == pytest.approx(WEIGHTS - left_out)
    assert (frame.loc[~frame["proj"].isin(["gate", "down"]), ["sparsity", "error"]] == 0).all(axis=None)
    assert "sparsity" in report._repr_html_() and "layers" not in report.to_dict()


def test_the_error_of_a_layer_by_hand(m):
    site = "blocks.0.attn.q.hook_in"
    captured = m.capture(TEXTS, site)
    x, weight = captured[site][captured.mask], m.linear(site).weight.detach()
    dense, sparse = x @ weight.T, masked(x, 16) @ weight.T
    wanted = ((sparse - dense).norm() / dense.norm()).item()
    with m.attach(sl.TEAL({site: 0.5}, dense_prefix=0)) as lens:
        frame = lens.report(TEXTS).layer_frame().set_index("site")
    assert frame.loc[site, "error"] == pytest.approx(wanted, rel=1e-4)


def test_padding_is_not_counted_and_the_dense_prefix_is(m):
    tokens = [len(m.tokenizer(text)["input_ids"]) for text in TEXTS]
    sparse = sum(max(0, n - 4) for n in tokens)
    report = sl.fidelity(m, sl.TEAL(0.5, dense_prefix=4), TEXTS)
    assert report.sparsity == pytest.approx(0.5 * sparse / sum(tokens))


def last_two(keep):
    """Every token looks at itself and the one before."""
    ones = torch.ones(keep.shape[-2:], dtype=torch.bool)
    return (ones.tril() & ones.triu(-1)).expand_as(keep)


def test_sparsifiers_dictionaries_and_edits_on_one_frontier(m):
    sae = sl.SAE(architecture="topk", d_in=32, d_sae=64, k=16)
    frontier = sl.compare(m, {
        "dense": sl.TEAL(0.0),
        "teal": sl.TEAL(0.5, dense_prefix=0),
        "random": sl.RandomChannels(0.5, dense_prefix=0),
        "sae": (sae, "blocks.1.hook_resid_post"),
        "mask": sl.edit("blocks.0.attn.hook_mask", last_two),
        "ablation": sl.ablate("blocks.1.hook_mlp_out"),
        "both": [sl.ablate("blocks.1.hook_mlp_out"), sl.TEAL(0.5, dense_prefix=0)],
    }, TEXTS)
    frame = frontier.to_frame().set_index("name")
    assert frame["sparsity"].tolist()[:4] == pytest.approx([0, 0.5, 0.5, 1 - frame.loc["sae", "l0"] / 64])
    assert math.isnan(frame.loc["ablation", "sparsity"])
    assert frame.loc["both", "sparsity"] == pytest.approx(0.5)
    assert frame.loc["dense", "ce"] == frame.loc["dense", "ce_clean"]
    assert frame.loc["dense", "weight_bytes"] == frame.loc["dense", "weight_bytes_dense"]
    pairs = [n * (n + 1) / 2 for n in (len(m.tokenizer(text)["input_ids"]) for text in TEXTS)]
    kept = [2 * len(m.tokenizer(text)["input_ids"]) - 1 for text in TEXTS]
    assert frame.loc["mask", "sparsity"] == pytest.approx(1 - sum(kept) / sum(pairs))
    assert len(frontier.plot(x="sparsity", y="ce").lines) == 7
    assert "sparsity" in frontier._repr_html_()


def test_the_same_thing_twice_is_counted_apart(m):
    thing = sl.TEAL(0.5, dense_prefix=0)
    frontier = sl.compare(m, {"all": thing, "gates": (thing, "*gate.hook_in")}, TEXTS)
    assert frontier["all"].sparsity == pytest.approx(0.5)
    assert frontier["gates"].sparsity == pytest.approx(0.5 * 3 * 32 * 48 / WEIGHTS)


@pytest.mark.parametrize("scope", ["official", "all"])
def test_channels_are_those_that_the_layer_keeps(m, scope):
    thing = sl.WINA(0.5, scope=scope, dense_prefix=2)
    shown = thing.channels(m, TEXTS, 1, "o")
    site = "blocks.1.attn.hook_z"
    with m.attach(thing):
        captured = m.capture(TEXTS, site)
    assert torch.allclose(shown.x, captured[site][captured.mask], atol=1e-6)
    norms = m.linear(site).weight.detach().norm(dim=0) if scope == "all" else torch.ones(32)
    assert torch.allclose(shown.scale, norms)
    assert shown.site == site and shown.keep.shape == (int(captured.mask.sum()), 32)
    assert torch.equal(shown.sparse, shown.position >= 2)
    assert (shown.keep.sum(-1) == torch.where(shown.sparse, 16, 32)).all()
    assert torch.equal(shown.keep[shown.sparse], (masked(shown.x, 16, norms) != 0)[shown.sparse])
    assert torch.equal((shown.scores >= shown.cut[:, None])[shown.sparse], shown.keep[shown.sparse])
    assert "".join(shown.text) == "".join(TEXTS)
    frame = shown.to_frame()
    assert frame["sparsity"].tolist() == [0.5 if sparse else 0.0 for sparse in shown.sparse]
    assert "WINA" in shown._repr_html_()


def test_channels_of_cats_show_the_gate(m):
    shown = sl.CATS(0.75, dense_prefix=0).channels(m, TEXTS, 1, "down")
    pre = "blocks.1.mlp.hook_pre"
    with m.attach(sl.CATS(0.75, dense_prefix=0)):
        captured = m.capture(TEXTS, pre)
    gate = torch.nn.functional.silu(captured[pre][captured.mask])
    assert torch.allclose(shown.x, gate, atol=1e-6)
    assert torch.equal(shown.keep, masked(gate, 12) != 0)


def test_channels_of_a_dense_layer_are_refused(m):
    with pytest.raises(InputError, match="leaves blocks.0.attn.q.hook_in dense"):
        sl.TEAL({"gate": 0.5}).channels(m, TEXTS, 0, "q")
    with pytest.raises(InputError, match="Closest: gate"):
        sl.TEAL().channels(m, TEXTS, 0, "gates")


def test_a_lot_is_fair_and_depends_on_the_place_alone(m):
    shown = sl.RandomChannels(0.25, dense_prefix=0).channels(m, ["a" * 200, "b" * 200], 0, "gate")
    first, second = shown.keep[shown.doc == 0], shown.keep[shown.doc == 1]
    assert torch.equal(first, second) and len(first) == 200
    assert (first.sum(-1) == 24).all()
    kept = first.double().mean(0)  # each channel on about three quarters of the tokens: sd 0.031
    assert (kept - 0.75).abs().max() < 0.15
    other = sl.RandomChannels(0.25, seed=1, dense_prefix=0).channels(m, ["a" * 200], 0, "gate")
    assert not torch.equal(other.keep, first)
    together = (first[:-1] & first[1:]).double().mean()  # neighbours are independent: 0.75 squared
    assert abs(float(together) - 0.75**2) < 0.03

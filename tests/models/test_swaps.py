"""Linear layers computed otherwise and parameters exchanged, on every backend; undo is exact."""

import pytest
import torch

from sparselens.errors import SiteError
from sparselens.models.engine import Edit, Swap, Weight
from tests import tiny
from tests.models.test_engine import same, state

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old"]
LINEAR = {
    "blocks.1.attn.q.hook_in": (32, 32),
    "blocks.1.attn.k.hook_in": (16, 32),
    "blocks.1.attn.v.hook_in": (16, 32),
    "blocks.1.attn.hook_z": (32, 32),
    "blocks.1.mlp.gate.hook_in": (48, 32),
    "blocks.1.mlp.in.hook_in": (48, 32),
    "blocks.1.mlp.hook_post": (32, 48),
}
GATE, PRE = "blocks.1.mlp.gate.hook_in", "blocks.1.mlp.hook_pre"


class Things:
    """Changes as an attachment."""

    def __init__(self, *changes):
        self.changes = changes

    def edits(self, model, at=None):
        return list(self.changes)


@pytest.fixture(params=["torch", "nnsight", "transformer_lens"])
def m(request):
    return tiny.live("llama", request.param)


def test_linear_finds_the_layer_that_reads_a_site(m):
    assert {site: tuple(m.linear(site).weight.shape) for site in LINEAR} == LINEAR


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", "blocks.0.mlp.hook_in", "unembed.hook_out"])
def test_other_sites_have_no_layer(m, site):
    with pytest.raises(SiteError, match="not the input of a linear layer"):
        m.linear(site)
    with pytest.raises(SiteError, match="not the input of a linear layer"), m.attach(
        Things(Swap(site, lambda x, original, _: original(x)))
    ):
        pass


def test_gpt2_has_layers_for_what_is_not_fused():
    m = tiny.live("gpt2")
    assert m.linear("blocks.0.mlp.in.hook_in").weight.shape == (32, m.width("blocks.0.mlp.hook_pre"))  # Conv1D
    with pytest.raises(SiteError):
        m.linear("blocks.0.attn.hook_q")


@pytest.mark.parametrize("site", LINEAR)
def test_a_swap_that_calls_the_original_changes_nothing(m, site):
    before, clean = state(m), m.run(TEXTS).logits
    seen = []

    def count(x, original, context):
        seen.append((context.site, tuple(x.shape[-1:])))
        return original(x)

    with m.attach(Things(Swap(site, count))):
        assert torch.equal(m.run(TEXTS).logits, clean)
    assert set(seen) == {(site, (LINEAR[site][1],))}
    assert same(before, state(m))


def test_swaps_nest_between_the_edits_of_input_and_output(m):
    weight = m.linear(GATE).weight.detach()
    got = {}
    inner = Swap(GATE, lambda x, original, _: original(x) + 1)
    outer = Swap(GATE, lambda x, original, _: 3 * original(x))
    doubled = Edit(GATE, lambda x, _: 2 * x)
    look = Edit(PRE, lambda y, _: got.update(y=y))
    x = m.capture(TEXTS[0], GATE)[GATE]
    with m.attach(Things(look, inner, doubled)), m.attach(Things(outer)):
        m.run(TEXTS[0])
    assert torch.allclose(got["y"], 3 * ((2 * x) @ weight.T + 1), atol=1e-5)


def test_a_weight_is_used_and_comes_back_bit_for_bit(m):
    before, clean = state(m), m.run(TEXTS).logits
    layer = m.linear(GATE)
    own, bits = layer.weight, layer.weight.detach().clone()
    site = "blocks.1.mlp.hook_pre"
    x = m.capture(TEXTS[0], GATE)[GATE]
    with m.attach(Things(Weight(layer, "weight", 2 * bits))):
        assert torch.allclose(m.capture(TEXTS[0], site)[site], x @ (2 * bits).T, atol=1e-5)
        with m.untouched():
            assert torch.equal(m.run(TEXTS).logits, clean)
            assert layer.weight is own
        with m.attach(Things(Weight(layer, "weight", 3 * bits))):
            assert torch.allclose(m.capture(TEXTS[0], site)[site], x @ (3 * bits).T, atol=1e-5)
    assert layer.weight is own and torch.equal(layer.weight, bits)
    assert torch.equal(m.run(TEXTS).logits, clean)
    assert same(before, state(m))


def test_a_shared_parameter_changes_in_one_place_only():
    m = tiny.live("gemma")  # ties its embeddings
    embedding, head = m.module.get_input_embeddings(), m.module.get_output_embeddings()
    assert embedding.weight is head.weight
    clean = m.capture(TEXTS[0], "hook_embed")["hook_embed"]
    with m.attach(Things(Weight(head, "weight", torch.zeros_like(head.weight)))):
        assert torch.equal(m.capture(TEXTS[0], "hook_embed")["hook_embed"], clean)
        assert not m.run(TEXTS[0]).logits.any()
    assert embedding.weight is head.weight


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_undo_after_an_error_inside_a_swap(m, error):
    before, clean = state(m), m.run(TEXTS).logits
    layer = m.linear(GATE)

    def fail(x, original, context):
        raise error

    with pytest.raises(error), m.attach(Things(Weight(layer, "weight", 0 * layer.weight), Swap(GATE, fail))):
        m.run(TEXTS)
    assert same(before, state(m))
    assert torch.equal(m.run(TEXTS).logits, clean)


def test_native_calls_see_swaps():
    ids = torch.tensor([[5, 6, 7]])
    for backend in ("torch", "nnsight", "transformer_lens"):
        m = tiny.live("llama", backend)
        with m.attach(Things(Swap(GATE, lambda x, original, _: 0 * original(x)))):
            ours = m.run(ids).logits
            if backend == "nnsight":
                with m.native.trace(ids):
                    pre = m.native.model.layers[1].mlp.gate_proj.output.save()
                assert not pre.any()
            else:
                called = m.native(ids)
                native = called if torch.is_tensor(called) else called.logits
                assert torch.allclose(native, ours, atol=1e-5)

"""Three backends, one set of numbers; and what each native interface sees of an attachment."""

import copy

import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError
from tests import tiny

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old"]
PAIRS = [(f, b) for f in tiny.FAMILIES for b in ("nnsight", "transformer_lens")]


def difference(a, b, site):
    """Largest absolute difference at real tokens; for masks, the number of disagreements."""
    x, y, real = a[site], b[site], a.mask
    if site.endswith(("scores", "pattern", "mask")):
        at = (real[:, None, :, None] & real[:, None, None, :]).expand_as(x)
    elif "rot_" in site:
        at = real[:, None, :, None].expand_as(x)
    else:
        at = real[..., None].expand_as(x)
    x, y = x[at], y[at]
    if x.dtype == torch.bool:
        return float((x != y).sum())
    assert torch.equal(torch.isinf(x), torch.isinf(y)), "masked scores are -inf on one backend only"
    return float((x - y)[~torch.isinf(x)].abs().max())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "backend"), PAIRS)
def test_backends_agree_at_every_shared_site(family, backend, side):
    a, b = tiny.live(family), tiny.live(family, backend)
    shared = [s for s in a.sites() if s in set(b.sites())]
    assert len(shared) >= 45
    left, right = (m.capture(TEXTS, shared, padding_side=side) for m in (a, b))
    assert torch.equal(left.tokens, right.tokens) and not bool(left.mask.all())
    worst = {s: difference(left, right, s) for s in shared}
    assert max(worst.values()) <= 1e-5, {s: d for s, d in worst.items() if d > 1e-5}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_probed_identities_hold(family):
    m = tiny.live(family)
    assert m.checks and all(c.holds for c in m.checks) and not m.table.disabled


SITES_TO_EDIT = [
    "blocks.1.hook_resid_post",
    "blocks.1.hook_resid_pre",
    "blocks.0.attn.hook_q",
    "blocks.1.attn.hook_k",
    "blocks.0.attn.hook_v",
    "blocks.2.attn.hook_z",
    "blocks.1.attn.q.hook_in",
    "blocks.1.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_attn_out",
    "blocks.1.mlp.hook_pre",
    "blocks.1.attn.hook_pattern",
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_the_same_edit_has_the_same_effect_everywhere(family):
    models = [tiny.live(family, b) for b in ("torch", "nnsight", "transformer_lens")]
    shared = set.intersection(*(set(m.sites()) for m in models))
    for site in (s for s in SITES_TO_EDIT if s in shared):
        runs = []
        for m in models:
            with m.attach(sl.edit(site, lambda x: 0.3 * x)):
                runs.append(m.run(TEXTS, padding_side="left"))
        clean = models[0].run(TEXTS, padding_side="left")
        real = clean.mask
        assert (runs[0].logits - clean.logits)[real].abs().max() > 1e-4, site
        for other in runs[1:]:
            assert (runs[0].logits - other.logits)[real].abs().max() <= 1e-5, site


def test_a_bridge_sees_what_is_attached():
    m = tiny.live("llama", "transformer_lens")
    ids = torch.arange(5, 12)[None]
    with m.attach(sl.edit("blocks.1.hook_resid_post", lambda x: 2 * x)):
        ours = m.capture(ids, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
        logits, cache = m.native.run_with_cache(ids)
        assert torch.equal(cache["blocks.1.hook_out"], ours)
        assert torch.allclose(logits, m.run(ids).logits, atol=1e-6)
    clean = m.capture(ids, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    assert torch.equal(ours, 2 * clean)


def test_an_nnsight_trace_sees_what_is_attached():
    m = tiny.live("llama", "nnsight")
    lm, ids = m.native, torch.arange(5, 12)[None]
    clean = m.capture(ids, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    with m.attach(sl.edit("blocks.1.hook_resid_post", lambda x: 2 * x)), torch.no_grad(), lm.trace(ids):
        here = lm.model.layers[1].output.save()
        after = lm.model.layers[2].input.save()
    assert torch.equal(here, 2 * clean) and torch.equal(after, 2 * clean)
    with torch.no_grad(), lm.trace(ids):
        again = lm.model.layers[1].output.save()
    assert torch.equal(again, clean)


def test_plain_hooks_see_what_is_attached():
    m = tiny.live("llama")
    seen, ids = [], torch.arange(5, 12)[None]
    with m.attach(sl.edit("blocks.1.hook_resid_post", lambda x: 2 * x)):
        handle = m.native.model.layers[1].register_forward_hook(lambda _m, _a, o: seen.append(o))
        with torch.no_grad():
            m.native(ids)
        handle.remove()
    clean = m.capture(ids, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    assert torch.equal(seen[0], 2 * clean)


def test_capture_agrees_with_each_native_interface():
    ids = torch.arange(5, 15)[None]
    site = "blocks.1.hook_resid_post"
    plain = tiny.live("llama")
    with torch.no_grad():
        hidden = plain.native(ids, output_hidden_states=True).hidden_states[2]
    assert torch.equal(plain.capture(ids, site)[site], hidden)
    bridged = tiny.live("llama", "transformer_lens")
    _, cache = bridged.native.run_with_cache(ids)
    assert torch.equal(bridged.capture(ids, site)[site], cache[site])
    traced = tiny.live("llama", "nnsight")
    lm = traced.native
    with torch.no_grad(), lm.trace(ids):
        value = lm.model.layers[1].output.save()
    assert torch.equal(traced.capture(ids, site)[site], value)


def test_wrapping_for_a_bridge_leaves_the_model_alone():
    native = tiny.model("llama")
    before = copy.deepcopy(native.state_dict())
    sl.wrap(native, tiny.tokenizer(), backend="transformer_lens")
    assert list(native.state_dict()) == list(before) and native.config._attn_implementation == "sdpa"
    sl.wrap(native, tiny.tokenizer())


def test_nnsight_does_not_change_the_users_tokenizer():
    tok = tiny.tokenizer()
    side = tok.padding_side
    sl.wrap(tiny.model("llama"), tok, backend="nnsight")
    assert tok.padding_side == side


def test_a_model_taken_over_by_a_bridge_is_refused():
    m = tiny.live("llama", "transformer_lens")
    with pytest.raises(InputError, match="wrap the bridge itself"):
        sl.wrap(m.native.original_model, tiny.tokenizer())


def test_compiled_models_are_refused():
    with pytest.raises(InputError, match="compiled model ignores hooks"):
        sl.wrap(torch.compile(tiny.model("llama")), tiny.tokenizer())
    native = tiny.model("llama")
    native.compile()
    with pytest.raises(InputError, match="compiled model ignores hooks"):
        sl.wrap(native, tiny.tokenizer())


def test_unknown_backend_and_unknown_object():
    with pytest.raises(InputError, match="valid are torch, transformer_lens, nnsight"):
        sl.wrap(tiny.model(), tiny.tokenizer(), backend="jax")
    with pytest.raises(InputError, match="cannot wrap a int"):
        sl.wrap(3)


def test_a_bridge_of_ones_own_can_be_wrapped():
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("tiny", hf_model=tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    m = sl.wrap(bridge)
    assert m.backend == "transformer_lens" and m.native is bridge
    assert m.loss("hello there") == pytest.approx(tiny.live("gpt2").loss("hello there"), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_short_formats_keep_all_sites(family, dtype):
    """Rounding alone is no broken identity: on a GPU these are the usual formats."""
    m = sl.wrap(tiny.model(family).to(dtype), tiny.tokenizer())
    assert all(c.holds for c in m.checks) and not m.table.disabled, m.checks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_identity_switches_its_sites_off(dtype):
    native = tiny.model("llama").to(dtype)
    mlp = native.model.layers[0].mlp
    original = type(native.model.layers[0]).forward

    class Scaled(type(native.model.layers[0])):
        def forward(self, hidden_states, *args, **kwargs):  # a residual multiplier, as Granite has one
            return original(self, hidden_states, *args, **kwargs) * 1.5

    for layer in native.model.layers:
        layer.__class__ = Scaled
    m = sl.wrap(native, tiny.tokenizer())
    assert {c.identity for c in m.checks if not c.holds} == {
        "resid_post = resid_mid + mlp_out",
        "resid_post = resid_pre + attn_out + mlp_out",
    }
    with pytest.raises(sl.errors.SiteError, match="does not hold"):
        m.capture("hello", "blocks.0.hook_mlp_out")
    m.capture("hello", "blocks.0.hook_resid_post")
    assert mlp is native.model.layers[0].mlp

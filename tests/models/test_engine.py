"""Undo is exact, edits compose, and every trap of the host libraries stays shut."""

import sys
import threading

import pytest
import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import sparselens as sl
from sparselens.errors import SiteError
from tests import tiny

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old"]
SITE = "blocks.1.hook_resid_post"
ATTENTION = ["blocks.1.attn.hook_mask", "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"]


def state(m):
    """Everything that must be as it was: hooks, forwards, registries, attention, weights, transformers' modules."""
    modules = list(m.module.modules())
    return (
        [(len(x._forward_hooks), len(x._forward_pre_hooks)) for x in modules],
        [id(x.__dict__.get("forward")) for x in modules],
        [id(getattr(x.__dict__.get("__nnsight__"), "body", None)) for x in modules],
        dict(AttentionInterface._global_mapping),
        dict(AttentionMaskInterface._global_mapping),
        m.module.config._attn_implementation,
        {k: v.clone() for k, v in m.module.state_dict().items()},
        {
            n: id(sys.modules[n].__dict__.get("eager_attention_forward"))
            for n in sys.modules
            if n.startswith("transformers.models.") and ".modeling_" in n
        },
    )


def same(a, b):
    return (
        all(x == y for x, y in zip(a[:6], b[:6], strict=True))
        and a[7] == b[7]
        and all(torch.equal(a[6][k], b[6][k]) for k in a[6])
    )


@pytest.fixture(params=["torch", "nnsight", "transformer_lens"])
def m(request):
    return tiny.live("llama", request.param)


def everything(m):
    """An edit at every site of the model (looking only)."""
    return [sl.edit(s, lambda x: None) for s in m.sites()]


def test_detaching_leaves_no_trace(m):
    before, clean = state(m), m.run(TEXTS).logits
    with m.attach(everything(m)):
        m.run(TEXTS)
    assert same(before, state(m)) and torch.equal(m.run(TEXTS).logits, clean)


def test_looking_everywhere_changes_nothing(m):
    clean = m.run(TEXTS, padding_side="left")
    with m.attach(everything(m)):
        seen = m.run(TEXTS, padding_side="left")
    assert torch.allclose(seen.logits[clean.mask], clean.logits[clean.mask], atol=2e-6)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_a_hook_leaves_no_trace(m, error):
    before, clean = state(m), m.run(TEXTS).logits

    def fail(_x):
        raise error("inside the forward pass")

    with pytest.raises(error), m.attach([sl.edit(ATTENTION, lambda x: None), sl.edit(SITE, fail)]):
        m.run(TEXTS)
    assert same(before, state(m)) and torch.equal(m.run(TEXTS).logits, clean)


def test_interrupting_generate_leaves_no_trace(m):
    before, calls = state(m), []

    def interrupt(_x, context):
        calls.append(context.step)
        if context.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), m.attach(sl.edit(SITE, interrupt)):
        m.generate("hello there", max_new_tokens=10)
    assert calls == [0, 1, 2, 3] and same(before, state(m))


def test_a_typo_in_the_third_site_installs_nothing(m):
    before = state(m)
    with (
        pytest.raises(SiteError),
        m.attach([sl.ablate(SITE), sl.ablate(ATTENTION[2]), sl.ablate("blocks.1.hook_oops")]),
    ):
        pass
    assert same(before, state(m))


def test_order_in_a_list_and_nesting_are_the_same(m):
    double, add = sl.edit(SITE, lambda x: 2 * x), sl.edit(SITE, lambda x: x + 1)
    clean = m.capture(TEXTS, SITE)
    with m.attach([double, add]):
        flat = m.capture(TEXTS, SITE)[SITE]
    with m.attach(double), m.attach(add):
        nested = m.capture(TEXTS, SITE)[SITE]
    with m.attach(add), m.attach(double):
        reverse = m.capture(TEXTS, SITE)[SITE]
    real = clean.mask
    assert torch.equal(flat[real], (2 * clean[SITE] + 1)[real]) and torch.equal(nested, flat)
    assert torch.equal(reverse[real], (2 * (clean[SITE] + 1))[real])


def test_inner_detach_keeps_the_outer(m):
    with m.attach(sl.edit(SITE, lambda x: 2 * x)):
        once = m.capture(TEXTS, SITE)[SITE]
        with m.attach(sl.edit(ATTENTION[2], lambda p: p * 0)):
            pass
        assert torch.equal(m.capture(TEXTS, SITE)[SITE], once)


def test_two_wrappers_of_one_module_know_of_each_other():
    native = tiny.model("llama")
    a, b = sl.wrap(native, tiny.tokenizer()), sl.wrap(native, tiny.tokenizer())
    clean = b.capture(TEXTS, SITE)
    with a.attach(sl.edit(SITE, lambda x: 2 * x)), b.attach(sl.edit(ATTENTION[2], lambda p: None)):
        seen = b.capture(TEXTS, SITE)[SITE][clean.mask]
        assert torch.allclose(seen, 2 * clean[SITE][clean.mask], atol=1e-5)
    assert native.config._attn_implementation == "sdpa"


def test_a_second_thread_waits_for_the_attachment():
    m = tiny.live("llama")
    clean, seen = m.loss(TEXTS), []
    with m.attach(sl.ablate("blocks.0.hook_mlp_out")):
        edited = m.loss(TEXTS)
        worker = threading.Thread(target=lambda: seen.append(m.loss(TEXTS)))
        worker.start()
        worker.join(0.3)
        assert not seen, "the other thread ran under our hooks"
    worker.join()
    assert seen == [clean] and edited != clean


def test_context_tells_step_past_and_lengths(m):
    seen = []
    with m.attach(sl.edit(SITE, lambda x, c: seen.append((c.step, c.past, x.shape[1])))):
        m.generate("hello there", max_new_tokens=3)
    n = seen[0][2]
    assert seen == [(0, 0, n), (1, n, 1), (2, n + 1, 1)]


def test_context_mask_knows_the_padding(m):
    for side in ("left", "right"):
        got = []
        with m.attach(sl.edit(SITE, lambda x, c: got.append(c.mask.clone()))):  # noqa: B023
            out = m.run(TEXTS, padding_side=side)
        assert sorted(got[0].sum(-1).tolist()) == sorted(out.mask.sum(-1).tolist())


def test_a_global_registry_is_never_left_behind(m):
    before = state(m)
    names = set(AttentionInterface._global_mapping)
    with m.attach(sl.edit(ATTENTION[0], lambda k: k)):
        m.run("hello")
    assert set(AttentionInterface._global_mapping) == names and same(before, state(m))


# --- attention -----------------------------------------------------------------------------------------------------


def window(keep):
    """Sink and a window of three keys."""
    n_q, n_k = keep.shape[-2:]
    i = torch.arange(n_q)[:, None] + (n_k - n_q)
    j = torch.arange(n_k)[None]
    return keep & ((i - j < 3) | (j == 0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_a_mask_equals_the_same_cut_of_the_scores_on_every_backend(family):
    mask, scores = ATTENTION[0], ATTENTION[1]
    results = []
    for backend in ("torch", "nnsight", "transformer_lens"):
        m = tiny.live(family, backend)
        with m.attach(sl.edit(mask, window)):
            out = m.run(TEXTS, padding_side="left")
        results.append(out.logits[out.mask])
    m = tiny.live(family)

    def cut(s, context):
        keep = window(s > -torch.inf)
        empty = ~keep.any(-1, keepdim=True)
        return s.masked_fill(~keep & ~empty, -torch.inf)

    with m.attach(sl.edit(scores, cut)):
        out = m.run(TEXTS, padding_side="left")
    results.append(out.logits[out.mask])
    clean = m.run(TEXTS, padding_side="left")
    assert (results[0] - clean.logits[clean.mask]).abs().max() > 1e-3
    for other in results[1:]:
        assert (results[0] - other).abs().max() <= 1e-5


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_full_mask_is_dense(implementation):
    native = tiny.model("llama")
    native.set_attn_implementation(implementation)
    m = sl.wrap(native, tiny.tokenizer())
    for side in ("left", "right"):
        clean = m.run(TEXTS, padding_side=side)
        with m.attach(sl.edit("blocks.*.attn.hook_mask", lambda k: torch.ones_like(k))):
            full = m.run(TEXTS, padding_side=side)
        assert (full.logits - clean.logits)[clean.mask].abs().max() <= 2e-6, "an all-ones mask broke causality"
    assert native.config._attn_implementation == implementation


def test_a_row_that_keeps_nothing_keeps_itself(m):
    with m.attach(sl.edit(ATTENTION[0], lambda k: torch.zeros_like(k))):
        pattern = m.capture(TEXTS, ATTENTION[2], padding_side="left")
        out = m.run(TEXTS, padding_side="left")
    assert torch.isfinite(out.logits[out.mask]).all()
    eye = torch.eye(pattern.mask.shape[1]).expand_as(pattern[ATTENTION[2]])
    rows = pattern.mask[:, None, :, None].expand_as(eye)
    assert torch.allclose(pattern[ATTENTION[2]][rows], eye[rows])


def test_a_mask_must_be_boolean():
    m = tiny.live("llama")
    with (
        pytest.raises(SiteError, match="bool keep mask"),
        m.attach(sl.edit(ATTENTION[0], lambda k: k.float())),
    ):
        m.run("hello")


def test_padding_is_masked_while_attention_is_open(m):
    """Registering an attention function without a mask function would drop the padding silently."""
    alone = [m.run(t).logits[0, -1] for t in TEXTS]
    with m.attach(sl.edit("blocks.*.attn.hook_pattern", lambda p: p.clone())):
        out = m.run(TEXTS, padding_side="left")
    for n, logits in enumerate(alone):
        assert (out.logits[n, -1] - logits).abs().max() <= 1e-5


def test_cached_decoding_under_a_mask_equals_recomputing(m):
    ids = torch.arange(5, 17)[None]
    with m.attach(sl.edit("blocks.*.attn.hook_mask", window)), torch.no_grad():
        full = m.module(input_ids=ids, use_cache=False).logits[0, -1]
        cache = m.module(input_ids=ids[:, :-3], use_cache=True).past_key_values
        for t in range(3, 0, -1):
            step = m.module(input_ids=ids[:, -t : ids.shape[1] - t + 1], past_key_values=cache, use_cache=True)
    assert (step.logits[0, -1] - full).abs().max() <= 1e-5


def test_rotated_keys_can_be_edited_and_survive_the_cache():
    m = tiny.live("llama")
    ids = torch.arange(5, 17)[None]
    with m.attach(sl.edit("blocks.*.attn.hook_rot_k", lambda k: 0.5 * k)), torch.no_grad():
        full = m.module(input_ids=ids, use_cache=False).logits[0, -1]
        cache = m.module(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = m.module(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
    assert (step - full).abs().max() <= 1e-5


def test_models_without_the_registry_say_so(monkeypatch):
    m = tiny.live("llama")
    monkeypatch.setattr(type(m.module), "_supports_attention_backend", False)
    with pytest.raises(SiteError, match="in its own way"), m.attach(sl.edit(ATTENTION[0], lambda k: k)):
        pass


def test_transformers_is_the_version_these_tests_speak_of():
    assert int(transformers.__version__.split(".")[0]) >= 5

"""Every method on every backend and in every phase: what must be equal is equal, and what is refused says why."""

import pytest
import torch
from transformers import DynamicCache

import sparselens as sl
from sparselens.attention.applied import Applied
from sparselens.errors import FitError, InputError, SiteError
from tests import tiny
from tests.attention.things import BACKENDS, METHODS, PROMPT, TEXTS

DECODING = [n for n in METHODS if METHODS[n](0.5).decodes is not None]


def logits(m, thing=None, **settings) -> torch.Tensor:
    with m.attach([] if thing is None else thing):
        out = m.run(TEXTS, **settings)
    return out.logits[out.mask]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", METHODS)
def test_full_budget_is_dense_and_detached_is_untouched(m, name, side):
    if side == "right" and m.backend != "torch":
        pytest.skip("padding is moved to the right by the same code on all backends")
    before = logits(m, padding_side=side)
    close(logits(m, METHODS[name](1.0), padding_side=side), before)
    assert torch.equal(logits(m, padding_side=side), before)


@pytest.mark.parametrize("name", METHODS)
def test_both_appliers_plan_and_compute_the_same(m, plain, name):
    if m.backend == "torch":
        m = tiny.live("gpt2", "transformer_lens")  # without rotation: another pair of sites on a bridge
        plain = tiny.live("gpt2")
    ours, theirs = METHODS[name](0.3), METHODS[name](0.3)
    patterns = []
    for model, thing in ((m, ours), (plain, theirs)):
        recorder = thing.recorded()
        patterns.append((logits(model, recorder), recorder.segments))
    close(patterns[0][0], patterns[1][0])
    if "vertical" not in name and "flex" not in name:  # whose ranks of nearly equal sums hang on rounding
        for layer, segments in patterns[0][1].items():
            assert [s.pattern for s in segments] == [s.pattern for s in patterns[1][1][layer]]


@pytest.mark.parametrize("name", METHODS)
def test_left_padding_is_no_padding_and_it_changes_something(plain, name):
    sparse = logits(plain, METHODS[name](0.3))
    close(logits(plain, METHODS[name](0.3), padding_side="left"), sparse)
    assert (sparse - logits(plain)).abs().max() > 1e-3 or name == "vertical_slash_64"  # shorter than its squares


@pytest.mark.parametrize("name", ["block_sparse", "snapkv", "quest", "oracle", "pair"])
def test_executors_agree_on_a_model(plain, name):
    outs = [logits(plain, METHODS[name](0.4, executor=e)) for e in ("masked", "gather", "flex", "auto")]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=2e-5, rtol=1e-5)


def cached(m, ids: torch.Tensor, thing) -> torch.Tensor:
    """Logits of the tokens after the prompt, decoded one by one."""
    cache, out = DynamicCache(), []
    with m.attach(thing), torch.no_grad():
        for at in [slice(0, PROMPT), *(slice(i, i + 1) for i in range(PROMPT, ids.shape[1]))]:
            out.append(m.module(ids[:, at], past_key_values=cache, use_cache=True).logits)
    return torch.cat(out, 1)


@pytest.mark.parametrize("name", DECODING)
def test_decoding_with_a_cache_is_recomputing(m, name):
    ids = torch.arange(24)[None] * 7 % 250 + 5
    thing = METHODS[name](0.4)
    thing.prompt = PROMPT
    with m.attach(thing):
        whole = m.run(ids).logits
    close(cached(m, ids, thing), whole)
    close(cached(m, ids, METHODS[name](1.0)), m.run(ids).logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_generation_of_a_padded_batch(backend):
    m = tiny.live("llama", backend)
    pair = sl.attention.Pair(sl.VerticalSlash(0.5), sl.SnapKV(0.5))
    counted = pair.counted(m)
    with m.attach(counted):
        two = m.generate(TEXTS, 6)
        one = [m.generate(t, 6) for t in TEXTS]
    assert two == one
    assert {row["phase"] for row in counted.parts()} == {"prefill", "decode"}
    with m.attach(METHODS["pair"](1.0)):
        assert m.generate(TEXTS, 6) == tiny.live("llama", backend).generate(TEXTS, 6)


def test_nothing_is_left_behind(plain):
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    before = set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)
    implementation = plain.native.config._attn_implementation
    with pytest.raises(KeyboardInterrupt), plain.attach(sl.Quest(0.5, phase="prefill")):
        assert plain.native.config._attn_implementation != implementation
        raise KeyboardInterrupt
    assert (set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)) == before
    assert plain.native.config._attn_implementation == implementation


def test_it_composes_with_looks_and_mask_edits(plain):
    sparse = logits(plain, sl.BlockSparse(0.3, block=4))
    with plain.attach(sl.BlockSparse(0.3, block=4)):
        shown = plain.capture(TEXTS, "blocks.0.attn.hook_mask")["blocks.0.attn.hook_mask"]
        pattern = plain.capture(TEXTS, "blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
        again = logits(plain, sl.edit("blocks.*.attn.hook_attn_scores", lambda x: None))
    close(again, sparse)
    assert shown.shape == pattern.shape and not pattern[~shown].any()


def test_some_layers_only(plain):
    one = sl.SinkWindow(0.3)
    with plain.attach(one, at="blocks.1.attn.hook_mask") as lens:
        assert lens.sites == ["blocks.1.attn.hook_mask"]
        changed = plain.capture(TEXTS, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    before = plain.capture(TEXTS, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    assert torch.equal(changed["blocks.0.hook_resid_post"], before["blocks.0.hook_resid_post"])
    assert not torch.equal(changed["blocks.1.hook_resid_post"], before["blocks.1.hook_resid_post"])


def test_reports_and_comparisons_count_pairs(plain):
    found = sl.compare(plain, {"dense": sl.TopKOracle(1.0), "top": sl.TopKOracle(0.25), "lot": sl.RandomBlocks(0.25)},
                       TEXTS).to_frame().set_index("name")
    assert found.loc["dense", "sparsity"] == 0 and abs(found.loc["dense", "kl"]) < 1e-6
    assert found.loc["top", "sparsity"] == pytest.approx(0.75, abs=0.06)
    with plain.attach(sl.BlockSparse(0.5, block=4)) as lens:
        rows = lens.report(TEXTS).layer_frame()
    assert set(rows.columns) >= {"layer", "phase", "density", "block_density", "repaired", "plan_ms", "executor"}
    assert len(rows) == 3 and rows["density"].between(0.4, 0.9).all()


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt_neox", "gemma2", "mixtral"])
def test_other_families(family):
    m = tiny.live(family)
    close(logits(m, sl.Quest(1.0, page=4, phase="prefill")), logits(m))
    assert (logits(m, sl.Quest(0.3, page=4, phase="prefill")) - logits(m)).abs().max() > 1e-3


@pytest.mark.parametrize("n", [1, 17])
@pytest.mark.parametrize("name", METHODS)
def test_any_length(plain, name, n):
    ids = torch.arange(n)[None] + 5
    thing = METHODS[name](0.25)
    if n == 1 and thing.prefills is None:  # all of it is prompt
        with plain.attach(thing), pytest.raises(InputError, match="it would change nothing"):
            plain.run(ids)
        return
    with plain.attach(thing):
        out = plain.run(ids).logits
    assert torch.isfinite(out).all()
    if n == 1:
        close(out, plain.run(ids).logits)  # one token looks at itself


@pytest.mark.parametrize("budget", [0, -0.1, 1.1, True, float("nan")])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "pair"])
def test_a_budget_out_of_range_is_refused(name, budget):
    with pytest.raises(InputError, match="above 0 and up to 1"):
        METHODS[name](budget)


LARGE = {
    "block_sparse": lambda: sl.BlockSparse(0.3, block=999), "quest_mask": lambda: sl.Quest(0.3, page=999, phase="both"),
    "sparsed": lambda: sl.SparseD(0.3, block=999), "asa": lambda: sl.ASA(0.3, block=999),
    "random_blocks": lambda: sl.RandomBlocks(0.3, block=999), "paper": lambda: sl.VerticalSlash(),
    "paper_decoding": lambda: sl.attention.Pair(sl.FlexPrefill(), sl.SnapKV()),
}


@pytest.mark.parametrize("name", LARGE)
def test_blocks_larger_than_the_text_are_dense(m, name):
    dense, said = logits(m), m.generate(TEXTS, 3)
    with m.attach(LARGE[name]()):
        close(logits(m), dense)
        assert m.generate(TEXTS, 3) == said


@pytest.mark.parametrize("name", METHODS)
def test_writing_from_a_single_token(m, name):
    """Methods for prompts leave a token that sees itself alone; others may leave out what follows: no error, no NaN."""
    thing = METHODS[name](0.25)
    thing.prompt = None
    with m.attach(thing):
        said = m.generate("a", 3)
    if name in ("block_sparse", "vertical_slash", "sparsed", "asa"):
        assert said == m.generate("a", 3)


def test_wrong_phases_and_settings_are_refused():
    with pytest.raises(InputError, match="can act in prefill"):
        sl.VerticalSlash(0.5, phase="decode")
    with pytest.raises(InputError, match="cannot act in decode"):
        sl.attention.Pair(decode=sl.BlockSparse(0.5))
    with pytest.raises(InputError, match="nothing"):
        sl.attention.Pair()
    with pytest.raises(InputError, match="executor='fast'"):
        sl.Quest(0.5, executor="fast")
    for wrong in (dict(prompt=0), dict(page=0)):
        with pytest.raises(InputError, match="whole number"):
            sl.Quest(0.5, **wrong)
    with pytest.raises(InputError, match="granularity"):
        sl.VerticalSlash(0.5, granularity="64")
    with pytest.raises(InputError, match="alpha"):
        sl.FlexPrefill(alpha=2)
    with pytest.raises(InputError, match="floor"):
        sl.AdaSnapKV(0.5, floor=2)


@pytest.mark.parametrize("name", ["snapkv", "ada_snapkv", "quest"])
def test_decoding_without_a_cache_is_an_error_not_a_silent_nothing(m, name):
    thing = METHODS[name](0.5)
    for prompt, said in ((None, "no cache to decode from"), (999, "this text has")):
        thing.prompt = prompt
        with m.attach(thing), pytest.raises(InputError, match=said):
            m.loss(TEXTS)


def test_two_attentions_for_one_layer_are_refused(m):
    window = sl.SinkWindow(0.5)
    dense = logits(m)
    with m.attach(window):
        once = logits(m)
        for second in (window, sl.Quest(0.5, phase="prefill")):
            with pytest.raises(FitError, match="two attachments"), m.attach(second):
                pass
        assert torch.equal(logits(m), once)
    with pytest.raises(FitError, match="two attachments"), m.attach([window, window]):
        pass
    with m.attach(window, at="blocks.0.attn.hook_mask"), m.attach(window, at="blocks.1.attn.hook_mask"):
        assert torch.isfinite(logits(m)).all()
    assert torch.equal(logits(m), dense)


def test_what_cannot_be_reached_is_refused(plain):
    window = sl.SinkWindow(0.5)
    with pytest.raises(FitError, match="sits at masks"), plain.attach(window, at="blocks.0.hook_resid_post"):
        pass
    bridge, window = tiny.live("llama", "transformer_lens"), sl.SinkWindow(0.5, executor="gather")
    with pytest.raises(FitError, match="only masks can be put there"), bridge.attach(window):
        pass
    native = tiny.llama()
    native._supports_attention_backend = False
    with pytest.raises(SiteError), sl.wrap(native, tiny.tokenizer()).attach(sl.SinkWindow(0.5)):
        pass


def test_attentions_are_shown_by_masks_and_refused_by_flex(plain):
    ids = torch.arange(12)[None] + 5
    with plain.attach(sl.Quest(0.3, page=4, phase="prefill")):
        shown = plain.native(ids, output_attentions=True).attentions
    assert len(shown) == 3 and all(bool((weights == 0).any()) for weights in shown)
    flex = sl.Quest(0.3, page=4, phase="prefill", executor="flex")
    with plain.attach(flex), pytest.raises(InputError, match="patterns"):
        plain.capture(ids, "blocks.0.attn.hook_pattern")


@pytest.mark.parametrize("name", METHODS)
def test_all_padding_rows_give_no_nan(m, name):
    ids, mask = torch.full((2, 10), 5), torch.ones(2, 10, dtype=torch.long)
    mask[1] = 0
    with m.attach(METHODS[name](0.3)), torch.no_grad():
        out = m.module(ids, attention_mask=mask, use_cache=False).logits
        alone = m.module(ids[:1], use_cache=False).logits
    assert torch.isfinite(out).all()
    close(out[:1], alone)


def test_state_is_per_attachment(plain):
    quest = sl.Quest(0.5)
    assert Applied(quest, plain).states is not Applied(quest, plain).states

"""Reading a live model: capture, stream, run, loss, generate."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import sparselens as sl
from sparselens.errors import InputError, SiteError
from tests import tiny

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old", "again and again"]
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def m(request):
    return tiny.live(request.param)


def test_capture_is_in_the_order_of_the_texts_and_zero_at_padding(m):
    got = m.capture(TEXTS, SITE)
    for n, text in enumerate(TEXTS):
        alone = m.capture(text, SITE)[SITE][0]
        assert torch.allclose(got[SITE][n][got.mask[n]], alone, atol=1e-6)
        assert m.tokenizer.decode(got.tokens[n][got.mask[n]]) == text
    assert (got[SITE][~got.mask] == 0).all() and got.doc.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(m, side):
    """GPT-2 left-padded without position ids is off by half a standard deviation of its logits."""
    padded = m.run(TEXTS, padding_side=side)
    for n, text in enumerate(TEXTS):
        alone = m.run(text).logits[0]
        assert (padded.logits[n][padded.mask[n]] - alone).abs().max() <= 1e-5


def test_small_batches_give_the_same(m):
    a, b = m.capture(TEXTS, SITE), m.capture(TEXTS, SITE, batch_tokens=8)
    assert torch.allclose(a[SITE], b[SITE], atol=1e-6) and torch.equal(a.mask, b.mask)


def test_attention_shapes(m):
    names = [f"blocks.0.attn.hook_{k}" for k in ("pattern", "mask", "attn_scores", "rot_q", "rot_k")]
    got = m.capture(TEXTS, names, batch_tokens=16)
    b, n = got.tokens.shape
    assert got[names[0]].shape == got[names[1]].shape == (b, m.n_heads, n, n)
    assert got[names[1]].dtype == torch.bool
    assert got[names[3]].shape == (b, m.n_heads, n, m.d_head)
    assert got[names[4]].shape == (b, m.n_kv_heads, n, m.d_head)
    rows = got[names[0]].sum(-1)[got.mask[:, None].expand(b, m.n_heads, n)]
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-6)


def test_stream_is_capture_without_the_padding(m):
    whole = m.capture(TEXTS, SITE)
    seen = 0
    for batch in m.stream(TEXTS, SITE, batch_tokens=16):
        for d, p, t, v in zip(batch.doc, batch.position, batch.token, batch.values, strict=True):
            assert torch.allclose(v, whole[SITE][d][p], atol=1e-6) and whole.tokens[d][p] == t
        assert batch.first.sum() == len(batch.doc.unique())
        seen += len(batch)
    assert seen == int(whole.mask.sum())


def test_stream_takes_an_iterator_and_several_sites(m):
    sites = [SITE, "blocks.0.hook_mlp_out"]
    got = list(m.stream((t for t in TEXTS), sites))
    assert set(got[0].sites) == set(sites) and sum(map(len, got)) == int(m.capture(TEXTS, SITE).mask.sum())


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
def test_the_pass_stops_at_the_last_site(backend):
    m = tiny.live("llama", backend)
    ran = []
    later = m._engine.find(m._engine.binder["blocks.{i}.hook_resid_post"].path.replace("{i}", "2"))
    handle = later.register_forward_hook(lambda *_: ran.append(1))
    for _ in m.stream(TEXTS, "blocks.1.hook_resid_post"):
        pass
    m.capture(TEXTS, ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"])
    assert not ran
    m.run(TEXTS)
    handle.remove()
    assert ran


def test_the_consumer_of_a_stream_may_use_the_model(m):
    for _ in m.stream(TEXTS, SITE, batch_tokens=16):
        assert m.loss("hello there") > 0


def test_captures_are_copies():
    """A model that changes a captured tensor in place later must not change the capture."""
    native = tiny.model("llama")
    m = sl.wrap(native, tiny.tokenizer())
    clean = m.capture("hello", "blocks.1.hook_attn_out")["blocks.1.hook_attn_out"]

    def spoil(_module, args, _kwargs):
        args[0].mul_(1.0)

    taken = []
    handle = native.model.layers[1].self_attn.register_forward_hook(lambda _m, _a, o: taken.append(o[0]))
    after = native.model.layers[1].post_attention_layernorm.register_forward_pre_hook(
        lambda _m, _a: taken[-1].fill_(7.0)
    )
    got = m.capture("hello", ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"])["blocks.1.hook_attn_out"]
    handle.remove()
    after.remove()
    assert torch.allclose(got, clean, atol=1e-6)


def test_loss_is_the_mean_over_predicted_tokens(m):
    total, count = 0.0, 0
    for text in TEXTS:
        out = m.run(text)
        total += float(cross_entropy(out.logits[0, :-1], out.tokens[0, 1:], reduction="sum"))
        count += out.tokens.shape[1] - 1
    assert m.loss(TEXTS) == pytest.approx(total / count, rel=1e-5)
    assert m.loss(TEXTS, batch_tokens=8) == pytest.approx(total / count, rel=1e-5)


def test_gradients_reach_the_edit(m):
    scale = torch.ones((), requires_grad=True)
    with m.attach(sl.edit(SITE, lambda x: x * scale)):
        m.run("hello there", grad=True).logits.logsumexp(-1).sum().backward()
    grad = scale.grad.clone()
    values = []
    for eps in (1e-3, -1e-3):
        with m.attach(sl.edit(SITE, lambda x: x * (1 + eps))):  # noqa: B023
            values.append(float(m.run("hello there").logits.double().logsumexp(-1).sum()))
    assert float(grad) == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.02, abs=1e-2)


def test_generate_equals_recomputing_without_a_cache(m):
    edit = sl.edit(SITE, lambda x: x * 1.5)
    prompts = ["hello there my friend", "a"]
    with m.attach(edit):
        batched = m.generate(prompts, max_new_tokens=6)
        for prompt, text in zip(prompts, batched, strict=True):
            ids = m.tokenizer(prompt, return_tensors="pt").input_ids
            for _ in range(6):
                with torch.no_grad():
                    ids = torch.cat([ids, m.module(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
                if ids[0, -1] == m.tokenizer.eos_token_id:
                    break
            n = len(m.tokenizer(prompt).input_ids)
            assert m.tokenizer.decode(ids[0, n:], skip_special_tokens=True) == text


def test_generate_returns_what_it_was_given(m):
    assert isinstance(m.generate("hi", max_new_tokens=2), str)
    assert isinstance(m.generate(["hi"], max_new_tokens=2), list)
    state = torch.get_rng_state()
    a = m.generate("hi", max_new_tokens=8, do_sample=True, seed=1)
    assert a == m.generate("hi", max_new_tokens=8, do_sample=True, seed=1)
    assert any(a != m.generate("hi", max_new_tokens=8, do_sample=True, seed=s) for s in range(2, 6))
    assert torch.equal(state, torch.get_rng_state())


def test_width_and_unembedding(m):
    assert m.width(SITE) == m.d_model and m.width("unembed.hook_out") == m.vocab_size
    assert m.width("blocks.0.attn.hook_k") == m.n_kv_heads * m.d_head
    direction = torch.randn(m.d_model)
    norm = "model.norm" if hasattr(m.module, "model") else "transformer.ln_f"
    gain = m.module.get_submodule(norm).weight
    expected = m.module.get_output_embeddings()(direction * gain)
    assert torch.allclose(m.unembedding @ direction, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "empty list"),
        ("", "text 0 is empty"),
        (["a", ""], "text 1 is empty"),
        (["a", 3], "text 1 is a int"),
        (["a", None], "text 1 is a NoneType"),
        (3, "expected a text"),
        (["a", float("nan")], "text 1 is a float"),
        ({"a": 1}, "expected a text"),
        (iter([]), "no texts"),
    ],
)
def test_bad_texts(m, texts, words):
    with pytest.raises(InputError, match=words):
        m.capture(texts, SITE)


def test_a_very_long_text_is_refused_with_a_way_out(m):
    with pytest.raises(InputError, match=r'20,000 tokens.*long="cut".*long="chunk"'):
        m.loss("x" * 20_000)
    assert m.capture("x" * 1000, SITE, long="cut").tokens.shape == (1, m.max_length)
    assert m.capture("x" * 600, SITE, long="chunk").doc.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="long='chunks' is unknown"):
        m.capture("x", SITE, long="chunks")


def test_unknown_and_missing_sites(m):
    with pytest.raises(SiteError, match="Closest: blocks.1.hook_resid_post"):
        m.capture("hello", "blocks.1.hook_resid_pots")
    with pytest.raises(SiteError, match="was not captured"):
        m.capture("hello", SITE)["blocks.0.hook_resid_post"]
    with pytest.raises(InputError, match="no site"):
        m.capture("hello", [])


def test_capture_sees_the_edited_value(m):
    clean = m.capture(TEXTS, SITE)
    with m.attach(sl.edit(SITE, lambda x: -x)):
        assert torch.equal(m.capture(TEXTS, SITE)[SITE][clean.mask], -clean[SITE][clean.mask])

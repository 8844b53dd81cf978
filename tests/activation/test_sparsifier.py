"""Sparsifiers on live models: the outputs by hand, and the identities of every attachment, on every backend."""

import pytest
import torch

import sparselens as sl
from sparselens.activation.gates import TopK, n_kept
from sparselens.activation.linears import linears
from sparselens.errors import FitError, InputError, SiteError
from sparselens.models.engine import Swap
from tests import tiny
from tests.models.test_engine import same, state

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old"]
PROMPTS = ["The quick brown", "hi", "hello there my friend of"]
EVERY = {
    "teal": lambda **settings: sl.TEAL(0.5, **settings),
    "wina": lambda **settings: sl.WINA(0.5, **settings),
    "wina all": lambda **settings: sl.WINA(0.4, scope="all", **settings),
    "cats": lambda **settings: sl.CATS(0.6, **settings),
    "random": lambda **settings: sl.RandomChannels(0.3, **settings),
}


@pytest.fixture(scope="module", params=["torch", "nnsight", "transformer_lens"])
def m(request):
    return tiny.live("llama", request.param)


def masked(x, k, scale=1.0):
    """`x` with all but the `k` largest `|x| * scale` of each row set to zero."""
    order = (x.abs() * scale).argsort(dim=-1, descending=True)
    return torch.where(order.argsort(dim=-1) < k, x, 0)


@pytest.mark.parametrize("proj", ["q", "k", "v", "o", "gate", "up", "down"])
@pytest.mark.parametrize("scope", [None, "official", "all"])
def test_the_output_of_every_projection_by_hand(m, proj, scope):
    sparsifier = (sl.TEAL({proj: 0.4}, dense_prefix=0) if scope is None
                  else sl.WINA({proj: 0.4}, scope=scope, dense_prefix=0))
    out = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "o": "hook_attn_out", "gate": "mlp.hook_pre",
           "up": "mlp.hook_pre_linear", "down": "hook_mlp_out"}[proj]
    linear = next(one for one in linears(m) if one.proj == proj and one.layer == 0)
    weighted = scope == "all" or scope == "official" and proj in ("k", "gate")
    norms = linear.weight.norm(dim=0) if weighted else 1.0
    x = m.capture(TEXTS[0], linear.site)[linear.site]
    with m.attach(sparsifier):
        y = m.capture(TEXTS[0], f"blocks.0.{out}")[f"blocks.0.{out}"]
    wanted = masked(x, n_kept(0.4, linear.d_in), norms) @ linear.weight.T
    assert torch.allclose(y, wanted, atol=1e-5)


def test_bias_and_conv1d_by_hand():
    m = tiny.live("gpt2")
    linear = linears(m)[1]
    assert linear.proj == "up" and linear.transposed and linear.bias.abs().sum() > 0
    site, pre = linear.site, "blocks.0.mlp.hook_pre"
    x = m.capture(TEXTS[0], site)[site]
    for speed in ("auto", "mask"):
        with m.attach(sl.WINA({"up": 0.5}, scope="all", dense_prefix=0, speed=speed)):
            y = m.capture(TEXTS[0], pre)[pre]
        assert torch.allclose(y, masked(x, 16, linear.weight.norm(dim=0)) @ linear.weight.T + linear.bias, atol=1e-5)


def test_no_channel_at_all_leaves_the_bias():
    m = tiny.live("gpt2")
    for one in sl.TEAL(0.5).layers(m)[:3]:
        one.gate, x = TopK(0), torch.randn(1, 1, one.linear.d_in)
        for y in (one.product(x, one.keep(x), one.linear.module), one.row(x)):
            assert torch.allclose(y, one.linear.bias.detach().expand_as(y), atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma", "gemma2", "qwen3", "mixtral"])
def test_sparsity_0_is_dense_bit_for_bit_and_installs_nothing(family):
    m = tiny.live(family)
    clean = m.run(TEXTS).logits
    things = [sl.TEAL(0.0), sl.WINA(0.0), sl.RandomChannels(0.0)] + [sl.CATS(0.0)] * (family not in (
        "gpt2", "gpt_neox", "mixtral"))
    for thing in things:
        assert thing.edits(m) == []
        with m.attach(thing):
            assert torch.equal(m.run(TEXTS).logits, clean)
    # K = d_in goes through the whole of the sparse computation, and is dense too
    for thing in things:
        thing.sparsity, thing.dense_prefix = 1e-9, 0
        assert len(thing.edits(m)) > 2
        with m.attach(thing):
            assert torch.equal(m.run(TEXTS).logits, clean)


@pytest.mark.parametrize("name", EVERY)
def test_detached_is_untouched_bit_for_bit(m, name):
    before, clean = state(m), m.run(TEXTS).logits
    with m.attach(EVERY[name](dense_prefix=0)):
        assert not torch.equal(m.run(TEXTS).logits, clean)
        m.generate(PROMPTS[0], 3)
    assert torch.equal(m.run(TEXTS).logits, clean)
    assert same(before, state(m))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("prefix", [0, 2])
def test_left_padding_equals_none(m, name, prefix):
    with m.attach(EVERY[name](dense_prefix=prefix)):
        alone = [m.run(text).logits[0] for text in TEXTS]
        for side in ("left", "right"):
            out = m.run(TEXTS, padding_side=side)
            for i, logits in enumerate(alone):
                assert torch.allclose(out.logits[i][out.mask[i]], logits, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("prefix", [0, 9])
def test_generating_with_a_cache_equals_recomputing(m, name, prefix):
    with m.attach(EVERY[name](dense_prefix=prefix)):
        written = m.generate(PROMPTS, 5)
        for prompt, text in zip(PROMPTS, written, strict=True):
            ids = m.tokenizer(prompt, return_tensors="pt")["input_ids"]
            start = ids.shape[1]
            for _ in range(5):
                ids = torch.cat([ids, m.run(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
                if int(ids[0, -1]) == m.tokenizer.eos_token_id:
                    break
            assert m.tokenizer.decode(ids[0, start:], skip_special_tokens=True) == text


@pytest.mark.parametrize("name", ["teal", "wina", "wina all", "cats"])
@pytest.mark.parametrize("gate", ["topk", "threshold"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_reading_only_kept_columns_equals_masking(name, gate, family):
    if (name, family) == ("cats", "gpt2"):
        pytest.skip("GPT-2 has no gate")
    m = tiny.live(family)
    calibration = sl.calibrate(m, TEXTS, progress=False)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    logits = []
    for speed in ("mask", "auto"):
        with torch.no_grad(), m.attach(EVERY[name](gate=gate, calibration=calibration, speed=speed, dense_prefix=2)):
            cache = m.module(ids[:, :3], use_cache=True).past_key_values
            steps = [m.module(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(3, 6)]
        logits.append(torch.cat(steps, 1))
    assert torch.allclose(*logits, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(logits[0], m.module(ids).logits[:, 3:], atol=1e-3)


def test_columns_are_read_when_one_token_is_decoded(monkeypatch):
    m, calls = tiny.live(), []
    rows = sl.activation.SparseLinear.row
    monkeypatch.setattr(sl.activation.SparseLinear, "row", lambda self, x: calls.append(x.shape) or rows(self, x))
    fast = sl.activation.kernels.backend() != "torch"
    for speed, wanted in (("auto", fast), ("mask", False)):
        calls.clear()
        with m.attach(sl.TEAL(0.5, dense_prefix=0, speed=speed)):
            m.module.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3)
        assert len(calls) == 2 * 21 * wanted  # the first new token comes from the prompt


def test_a_layer_that_something_else_computes_is_never_read_by_columns():
    m = tiny.live()
    site = "blocks.1.mlp.in.hook_in"
    ids = torch.tensor([[5]])

    class Doubled:
        def edits(self, model, at=None):
            return [Swap(site, lambda x, original, _: 2 * original(x))]

    for order in ([Doubled(), sl.TEAL({"up": 0.5}, dense_prefix=0)], [sl.TEAL({"up": 0.5}, dense_prefix=0), Doubled()]):
        with m.attach(order):
            one = m.capture(ids, "blocks.1.mlp.hook_pre_linear")
    linear = linears(m, site)[0]
    with m.attach(sl.TEAL({"up": 0.5, "blocks.1.*": 0}, dense_prefix=0)):
        x = m.capture(ids, site)[site]
    assert torch.allclose(one["blocks.1.mlp.hook_pre_linear"], 2 * masked(x, 16) @ linear.weight.T, atol=1e-5)


def test_gradients_pass_through_the_kept_channels():
    m = tiny.live()
    with m.attach(sl.TEAL(0.5, dense_prefix=0)):
        m.run(torch.tensor([[5]]), grad=True).logits.sum().backward()
    grad = m.linear("blocks.1.mlp.gate.hook_in").weight.grad
    assert (grad.abs().sum(0) > 0).sum() == 16  # one token: half of the columns took part
    m.module.zero_grad(set_to_none=True)


def test_norms_follow_the_weight_in_place():
    m = tiny.live()
    layer = m.linear("blocks.0.mlp.gate.hook_in")
    sparse = sl.WINA({"gate": 0.5}).layers(m)[0]
    assert torch.allclose(sparse.scale, layer.weight.norm(dim=0))
    with torch.no_grad():
        layer.weight.mul_(torch.rand(32))
    assert torch.allclose(sparse.scale, layer.weight.norm(dim=0))


def test_half_precision_does_not_overflow_in_the_score():
    m = tiny.live()
    m.module.half()
    layer = m.linear("blocks.0.mlp.gate.hook_in")
    x = torch.full((1, 3, 32), 60000.0, dtype=torch.float16)
    sparse = sl.WINA({"gate": 0.5}).layers(m)[0]
    with torch.no_grad():
        layer.weight.mul_(100)
    assert torch.isfinite(sparse.scores(x)).all()
    assert torch.equal(sparse.keep(x)[0, 0], layer.weight.float().norm(dim=0).argsort(descending=True).argsort() < 16)


def test_only_at_the_sites_given():
    m = tiny.live()
    site = "blocks.1.mlp.hook_post"
    with m.attach(sl.TEAL(0.5, dense_prefix=0), at=site) as lens:
        assert lens.sites == [site]
        one = m.run(TEXTS).logits
    with m.attach(sl.TEAL({site: 0.5}, dense_prefix=0)):
        assert torch.equal(m.run(TEXTS).logits, one)
    with pytest.raises(SiteError, match="not the input of a projection"), m.attach(sl.TEAL(), at="hook_embed"):
        pass


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(sparsity=1.0), "not in"),
        (dict(sparsity=-0.5), "not in"),
        (dict(sparsity={"gate": 2.0}), "not in"),
        (dict(gate="top-k"), "Closest: topk"),
        (dict(allocation="gready"), "Closest: greedy"),
        (dict(speed="fast"), "auto, mask"),
        (dict(transform="svd"), "None, orthogonal"),
        (dict(gate="threshold"), r"sl\.calibrate"),
        (dict(allocation="greedy"), r"sl\.calibrate"),
        (dict(phase="decoding"), "Closest: decode"),
        (dict(dense_prefix=-1), "dense_prefix"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        sl.TEAL(**wrong)


def test_wina_names_its_scopes():
    with pytest.raises(InputError, match="Closest: official"):
        sl.WINA(scope="oficial")


def test_a_quantised_model_is_refused_before_anything_is_installed():
    m = tiny.live()
    before = state(m)
    layer = m.module.model.layers[1].mlp.up_proj
    weight = layer.weight
    layer.weight = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(FitError, match="quantised"), m.attach(sl.TEAL()):
        pass
    layer.weight = weight
    assert same(before, state(m))


def test_native_calls_see_it():
    m = tiny.live()
    ids = torch.tensor([[5, 6, 7, 8]])
    with m.attach(sl.WINA(dense_prefix=0)), torch.no_grad():
        assert torch.equal(m.native(ids).logits, m.run(ids).logits)

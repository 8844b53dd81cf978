"""Attachments: identities, exact undo, steering, ablation, fit."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError, NotFiniteError
from tests import tiny

TEXTS = ["The quick brown fox", "a b", "hello there my friend of old"]
SITE = "blocks.1.hook_resid_post"


def dictionary(**kw):
    settings = dict(architecture="topk", d_in=32, d_sae=64, k=4, site=SITE) | kw
    return sl.SAE(**settings)


@pytest.fixture(params=["torch", "nnsight", "transformer_lens"])
def m(request):
    return tiny.live("llama", request.param)


def test_splice_with_error_term_is_the_untouched_model_bit_for_bit(m):
    clean = m.run(TEXTS, padding_side="left")
    with m.attach(sl.replace(dictionary(), error_term=True)):
        spliced = m.run(TEXTS, padding_side="left")
    assert torch.equal(spliced.logits, clean.logits)


def test_splice_is_the_reconstruction(m):
    sae = dictionary()
    clean = m.capture(TEXTS, SITE)
    with m.attach(sae) as lens:
        spliced = m.capture(TEXTS, SITE)
    assert lens.sites == [SITE]
    assert torch.allclose(spliced[SITE][clean.mask], sae(clean[SITE][clean.mask]), atol=1e-5)
    assert torch.equal(m.capture(TEXTS, SITE)[SITE], clean[SITE])


def test_splice_in_cached_generation_equals_recomputing(m):
    with m.attach(dictionary()):
        prompt = "hello there"
        text = m.generate(prompt, max_new_tokens=5)
        ids = m.tokenizer(prompt, return_tensors="pt").input_ids
        n = ids.shape[1]
        for _ in range(5):
            ids = torch.cat([ids, m.run(ids).logits[:, -1:].argmax(-1)], 1)
    assert m.tokenizer.decode(ids[0, n:], skip_special_tokens=True).startswith(text)


@pytest.mark.parametrize("norm", ["unit_norm", "layer_norm"])
def test_dictionaries_that_normalise_each_token(norm):
    m, sae = tiny.live(), dictionary(architecture="relu", k=None, input_norm=norm)
    clean = m.capture(TEXTS, SITE)
    x = clean[SITE][clean.mask]
    with m.attach(sae):
        assert torch.allclose(m.capture(TEXTS, SITE)[SITE][clean.mask], sae(x), atol=1e-5)
    with m.attach(sl.steer(sae, 3, 0.0)):
        steered = m.capture(TEXTS, SITE)[SITE][clean.mask]
    z = sae.encode(x)
    delta = sae.decode(torch.where(torch.arange(64) == 3, 0.0, z), sae.measure(x)) - sae.decode(z, sae.measure(x))
    assert torch.allclose(steered - x, delta, atol=1e-5)


def test_rows_outside_the_range_pass_untouched():
    m = tiny.live()
    clean = m.capture(TEXTS, SITE)
    limit = float(clean[SITE][clean.mask].norm(dim=-1).median())
    with m.attach(dictionary(max_norm=limit)):
        spliced = m.capture(TEXTS, SITE)
    x, y = clean[SITE][clean.mask], spliced[SITE][clean.mask]
    far = x.norm(dim=-1) > limit
    assert far.any() and torch.equal(x[far], y[far]) and not torch.allclose(x[~far], y[~far])


def test_empty_steering_is_the_untouched_model(m):
    clean = m.run(TEXTS).logits
    with m.attach(sl.steer(dictionary(), [], 5.0)):
        assert torch.equal(m.run(TEXTS).logits, clean)


def test_steering_moves_the_stream_by_the_feature_alone(m):
    sae = dictionary()
    clean = m.capture(TEXTS, SITE)
    x = clean[SITE][clean.mask]
    with m.attach(sl.steer(sae, [3, 7], [2.0, 0.0])):
        steered = m.capture(TEXTS, SITE)[SITE][clean.mask]
    z = sae.encode(x).dense()
    delta = (2.0 - z[:, [3]]) * sae.W_dec[3] - z[:, [7]] * sae.W_dec[7]
    assert torch.allclose(steered - x, delta, atol=1e-4)


def test_steering_to_the_present_value_changes_nothing():
    m, sae = tiny.live(), dictionary()
    clean = m.capture("hello", SITE)
    value = float(sae.encode(clean[SITE][0, 2]).dense()[5])
    with m.attach(sl.steer(sae, 5, value)):
        assert torch.allclose(m.capture("hello", SITE)[SITE][0, 2], clean[SITE][0, 2], atol=1e-6)


def test_ablation(m):
    clean = m.capture(TEXTS, SITE)
    mean = clean[SITE][clean.mask].mean(0)
    with m.attach(sl.ablate(SITE)):
        assert (m.capture(TEXTS, SITE)[SITE] == 0).all()
    with m.attach(sl.ablate(SITE, mean)):
        got = m.capture(TEXTS, SITE)[SITE][clean.mask]
    assert torch.allclose(got, mean.expand_as(got))


def test_gradients_go_through_the_latents_and_not_through_the_error():
    m, sae = tiny.live(), dictionary()
    grads = []
    for error_term in (False, True):
        sae.zero_grad()
        with m.attach(sl.replace(sae, error_term=error_term)):
            m.run("hello there", grad=True).logits.square().mean().backward()
        grads.append(sae.W_dec.grad.clone())
    assert all(float(g.abs().sum()) > 0 for g in grads)


def test_several_sites_and_lists():
    m = tiny.live()
    with m.attach([sl.ablate("blocks.*.hook_mlp_out"), sl.edit("blocks.0.hook_attn_out", lambda x: 0 * x)]) as lens:
        assert lens.sites == [*m.sites("blocks.*.hook_mlp_out"), "blocks.0.hook_attn_out"]
        got = m.capture(TEXTS, ["hook_embed", "blocks.0.hook_resid_post"])
    assert torch.equal(got["hook_embed"], got["blocks.0.hook_resid_post"])


def test_an_attached_thing_can_be_moved_with_at():
    m = tiny.live()
    with m.attach(sl.ablate(SITE), at="blocks.0.hook_mlp_out") as lens:
        assert lens.sites == ["blocks.0.hook_mlp_out"] and "blocks.0.hook_mlp_out" in repr(lens)


def test_a_context_is_given_to_functions_that_take_one():
    m, seen = tiny.live(), []
    with m.attach(
        sl.edit(SITE, lambda x, context: seen.append((context.site, context.step, tuple(context.ids.shape))))
    ):
        m.run("hello")
    assert seen[0][:2] == (SITE, 0)
    with m.attach(sl.edit(SITE, torch.neg)):
        m.run("hello")


@pytest.mark.parametrize(
    ("make", "at", "error", "words"),
    [
        (lambda: dictionary(d_in=16), None, FitError, "reads 16 numbers a token .* has 32"),
        (lambda: dictionary(site=None), None, FitError, "does not say which site"),
        (lambda: dictionary(model_name="gpt2"), None, FitError, "made for the model 'gpt2'"),
        (lambda: dictionary(), "blocks.0.hook_resid_post", FitError, "made for blocks.1.hook_resid_post"),
        (lambda: dictionary(site="blocks.9.hook_resid_post"), None, sl.errors.SiteError, "layers 0 to 2"),
        (lambda: sl.steer(dictionary(), 64, 1.0), None, InputError, "features 0 to 63"),
        (lambda: sl.steer(dictionary(), [1, 2], [1.0]), None, InputError, "2 features but 1 values"),
        (lambda: 3, None, InputError, "cannot attach a int"),
    ],
)
def test_what_does_not_fit_is_refused(make, at, error, words):
    m = tiny.live()
    with pytest.raises(error, match=words), m.attach(make(), at=at):
        pass


READ, WRITE = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_replaces_what_it_writes_by_what_it_makes_of_what_it_reads(backend, skip):
    m = tiny.live("llama", backend)
    sae = dictionary(site=READ, site_out=WRITE, skip=skip).requires_grad_(False)
    if skip:
        sae.W_skip.normal_(std=0.1)
    clean = m.capture(TEXTS, [READ, WRITE])
    with m.attach(sae) as lens:
        spliced = m.capture(TEXTS, WRITE)
    assert lens.sites == [READ, WRITE]
    torch.testing.assert_close(spliced[WRITE][clean.mask], sae(clean[READ][clean.mask]), rtol=1e-4, atol=1e-5)
    logits = m.run(TEXTS).logits
    with m.attach(sl.replace(sae, error_term=True)):
        assert torch.equal(m.run(TEXTS).logits, logits)
    with m.attach(sl.steer(sae, [], 1.0)):
        assert torch.equal(m.run(TEXTS).logits, logits)
    with m.attach(sl.steer(sae, 3, 2.0)):
        steered = m.capture(TEXTS, WRITE)[WRITE][clean.mask]
    change = (2.0 - sae.encode(clean[READ][clean.mask]).dense()[:, [3]]) * sae.W_dec[3]
    torch.testing.assert_close(steered - clean[WRITE][clean.mask], change, rtol=1e-4, atol=1e-4)


def test_a_transcoder_in_cached_generation_equals_recomputing():
    m = tiny.live()
    with m.attach(dictionary(site=READ, site_out=WRITE)):
        text = m.generate("hello there", max_new_tokens=5)
        ids = m.tokenizer("hello there", return_tensors="pt").input_ids
        n = ids.shape[1]
        for _ in range(5):
            ids = torch.cat([ids, m.run(ids).logits[:, -1:].argmax(-1)], 1)
    assert m.tokenizer.decode(ids[0, n:], skip_special_tokens=True).startswith(text)


def test_one_that_writes_several_sites_writes_each_its_part():
    m, writes = tiny.live(), ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]
    sae = dictionary(site=READ, site_out=writes, d_out=64)
    x = m.capture(TEXTS, READ)
    with m.attach(sae):
        spliced = m.capture(TEXTS, writes)
    parts = sae(x[READ][x.mask]).chunk(2, dim=-1)
    for site, part in zip(writes, parts, strict=True):
        torch.testing.assert_close(spliced[site][x.mask], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "at", "words"),
    [
        ({"site": WRITE, "site_out": READ}, None, "reads blocks.1.hook_mlp_out, which comes after"),
        ({"site": ["blocks.0.hook_resid_post", SITE], "d_in": 64}, None, "cannot be spliced into one"),
        ({"site": READ, "site_out": WRITE, "d_out": 16}, None, "writes 16 numbers a token at blocks.1.hook_mlp_out"),
        ({"site": None, "d_out": 16}, None, "does not say what it reads and writes"),
        ({"site": READ, "site_out": WRITE}, SITE, "two sites"),
        ({"site": READ, "site_out": WRITE}, ["blocks.0.mlp.hook_in", WRITE], "reads blocks.1.mlp.hook_in and writes"),
        ({"site": READ, "site_out": WRITE, "model_name": "gpt2"}, None, "made for the model 'gpt2'"),
    ],
)
def test_transcoders_that_do_not_fit_are_refused(settings, at, words):
    m = tiny.live()
    with pytest.raises(FitError, match=words), m.attach(dictionary(**settings), at=at):
        pass


def test_a_transcoder_takes_its_two_sites_from_at():
    m = tiny.live()
    with m.attach(dictionary(site=None, d_out=32, site_out="blocks.2.hook_mlp_out"), at=[READ, WRITE]) as lens:
        m.run(TEXTS)
    assert lens.sites == [READ, WRITE]


def test_force_attaches_all_the_same():
    m = tiny.live()
    with m.attach(sl.replace(dictionary(model_name="gpt2"), force=True), at="blocks.0.hook_resid_post") as lens:
        m.run("hello")
    assert lens.sites == ["blocks.0.hook_resid_post"]


def test_names_of_one_model_in_two_spellings_match():
    m = tiny.live()
    m.name = "org/Tiny-Llama"
    with m.attach(dictionary(model_name="tiny-llama")):
        pass


def test_an_edit_must_keep_the_shape():
    m = tiny.live()
    with (
        pytest.raises(InputError, match=f"edit at {SITE} returned"),
        m.attach(sl.edit(SITE, lambda x: x[..., :-1])),
    ):
        m.run("hello")
    with pytest.raises(InputError, match="returned str"), m.attach(sl.edit(SITE, lambda x: "no")):
        m.run("hello")


def test_nan_activations_are_named_and_the_model_is_clean_afterwards():
    m = tiny.live()
    clean = m.run("hello").logits
    spoil = sl.edit("blocks.0.hook_resid_post", lambda x: x * float("nan"))
    with pytest.raises(NotFiniteError), m.attach([spoil, dictionary()]):
        m.run("hello")
    assert torch.equal(m.run("hello").logits, clean)

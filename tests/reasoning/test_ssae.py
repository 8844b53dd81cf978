"""Identities of the step-level SAE, on tiny models."""

import copy

import pytest
import torch

import sparselens as sl
from sparselens.errors import FileFormatError, FitError, InputError, NotFiniteError
from sparselens.reasoning import SparsityController, StepDataset, StepSAE, read_traces
from sparselens.reasoning.ssae import _without
from sparselens.reasoning.ssae_write import write_ids
from tests import tiny

PAIRS = [(f"What is {a} plus {b}?\n", f"So {a} + {b} = {a + b}.") for a in range(2, 8) for b in range(3, 11)]
QUICK = {"progress": False, "live": False}


@pytest.fixture(scope="module")
def m():
    return tiny.live()


def made(m, **settings):
    """A step-level SAE with weights far from their start."""
    ssae = StepSAE(m, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [ssae.W_enc, ssae.b_enc, *ssae.mlp.parameters(), *ssae.encoder.adapters.parameters()]:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return ssae


# --- codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", [1, 2])
def test_codes_lie_on_the_unit_sphere(m, expansion):
    found = made(m, expansion=expansion).transform(PAIRS)
    n = 32 * expansion
    assert found.z.shape == (len(PAIRS), n) and bool((found.z >= 0).all())
    torch.testing.assert_close(found.z.norm(dim=-1), torch.ones(len(PAIRS)))
    assert bool((found.l1 >= 1 - 1e-6).all() and (found.l1 <= n**0.5 + 1e-6).all())
    assert bool((found.l0 >= found.l1.square() - 1e-4).all())
    assert found.off_share == 0 and bool((found.norm > 0).all())


def test_a_code_is_the_formula_of_the_paper(m):
    ssae = made(m)
    batch = StepDataset.from_pairs(PAIRS[:1], m.tokenizer).batch([0])
    rows = m.module.get_input_embeddings().weight.detach()
    embeds = rows[batch.ids]
    embeds[0, batch.sep] = ssae.encoder.sep
    state = m.module.model(inputs_embeds=embeds).last_hidden_state[0, -1]
    a = torch.relu(state @ ssae.W_enc + ssae.b_enc)
    torch.testing.assert_close(ssae.transform(PAIRS[:1]).z[0], (a / a.norm()).detach())
    assert batch.ids[0, -1] == m.tokenizer.eos_token_id and int(batch.sep) == len(m.tokenizer(PAIRS[0][0]).input_ids)


def test_the_summary_may_be_the_mean_over_the_step(m):
    ssae, data = made(m, pooling="mean"), StepDataset.from_pairs(PAIRS[:3] + [("q", "longer " * 9)], m.tokenizer)
    batch = data.batch(range(4))
    states = ssae.encoder.states(ssae.encoder.embed(batch))
    wanted = torch.stack([states[i, batch.sep[i] + 1 : batch.length[i]].mean(0) for i in range(4)])
    torch.testing.assert_close(ssae.summary(batch), wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_summary_may_be_read_after_any_block(family):
    m = tiny.live(family)
    batch = StepDataset.from_pairs(PAIRS[:2], m.tokenizer).batch([0, 1])
    ssae = StepSAE(m, layer=1)
    wanted = m.module.base_model(inputs_embeds=ssae.encoder.embed(batch), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ssae.summary(batch), wanted[[0, 1], batch.length - 1].detach())
    StepSAE(m, layer=0, tuning="lora").fit(PAIRS[:16], batch_size=8, **QUICK)
    for wrong in ({"layer": 3}, {"layer": 1, "tuning": "full"}):
        with pytest.raises(InputError, match="layer"):
            StepSAE(m, **wrong)


def test_no_feature_on_gives_zero_not_nan(m):
    ssae = made(m)
    with torch.no_grad():
        ssae.b_enc.fill_(-1e6)
    found = ssae.transform(PAIRS[:5])
    assert bool((found.z == 0).all()) and found.off_share == 1.0 and found.top(0) == []
    loss = ssae.loss(ssae.dataset(PAIRS[:5]).batch(range(5)), torch.Generator().manual_seed(0))
    (loss.ce + loss.l1).backward()
    assert all(torch.isfinite(p.grad).all() for p in ssae.groups()["new"] if p.grad is not None)


def test_extraction_has_no_noise_and_no_masks(m):
    ssae = made(m, noise=0.5, mask_share=0.5)
    assert torch.equal(ssae.transform(PAIRS).z, ssae.transform(PAIRS).z)
    batch = ssae.dataset(PAIRS).batch(range(6))
    quiet, again = ssae.loss(batch), ssae.loss(batch)
    noisy = ssae.loss(batch, torch.Generator().manual_seed(0))
    assert torch.equal(quiet.nll, again.nll) and not torch.allclose(quiet.nll, noisy.nll)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_nll_counts_step_and_end_only_and_ignores_padding(m):
    ssae = made(m)
    data = StepDataset.from_pairs(PAIRS, m.tokenizer)
    alone = [ssae.loss(data.batch([i])) for i in range(4)]
    data.steps[5] = data.steps[5] * 3  # a long neighbour pads the others
    together = ssae.loss(data.batch([0, 1, 2, 3, 5]))
    torch.testing.assert_close(together.nll[:4], torch.cat([one.nll for one in alone]), rtol=1e-5, atol=1e-4)
    assert together.tokens.tolist() == [len(data.steps[i]) + 1 for i in (0, 1, 2, 3, 5)]


@pytest.mark.parametrize("place", ["front", "step"])
def test_nll_is_the_sum_over_the_models_own_logits(m, place):
    ssae, c = made(m, expansion=3, place=place, lead=True), 4  # the lead, then three
    data = StepDataset.from_pairs(PAIRS[:1], m.tokenizer)
    batch = data.batch([0])
    z = ssae.transform(data).z
    ids, sep = batch.ids[0], int(batch.sep)
    embeds = m.module.get_input_embeddings().weight.detach()[ids]
    embeds[sep] = ssae.decoder.sep
    before = 0 if place == "front" else sep + 1
    whole = torch.cat([embeds[:before], ssae.prefix(z)[0], embeds[before:-1]])
    assert len(whole) == c + len(ids) - 1 and torch.equal(whole[before], ssae.first) and c == 4
    logp = m.module(inputs_embeds=whole[None]).logits[0].log_softmax(-1)
    wanted = -sum(logp[c - 1 + j, ids[j]] for j in range(sep + 1, len(ids)))
    torch.testing.assert_close(ssae.decode(z, batch)[0][0], wanted)


@pytest.mark.parametrize("place", ["front", "step"])
def test_position_j_predicts_token_j(m, monkeypatch, place):
    """With a decoder that only passes on the token before, all but the first target are read off exactly."""
    ssae, data = made(m, place=place), StepDataset([[5, 6], [7]], [[8, 9, 10], [11, 12]], 2)
    monkeypatch.setattr(ssae.decoder, "states", lambda embeds, mask=None: embeds)
    seen = []
    monkeypatch.setattr(ssae.decoder, "logits", lambda states: seen.append(states) or torch.zeros(len(states), 300))
    ssae.decode(torch.zeros(2, 32), data.batch([0, 1]))
    rows = m.module.get_input_embeddings().weight
    first = ssae.decoder.sep if place == "front" else ssae.prefix(torch.zeros(1, 32))[0, -1]
    wanted = torch.stack([first, *rows[[8, 9, 10]], first, *rows[[11, 12]]])
    torch.testing.assert_close(seen[0], wanted)


def test_a_prefix_next_to_the_step_leaves_the_context_as_it_is(m):
    ssae = made(m, place="step", expansion=2)
    data = StepDataset([[5, 6, 7], [9]], [[8, 9], [8, 9, 3]], 2)
    batch, seen = data.batch([0, 1]), []
    states = ssae.decoder.states
    ssae.decoder.states = lambda embeds, mask=None: seen.append(states(embeds, mask)) or seen[-1]
    keep = batch.mask.clone()
    keep[1, 3] = False
    for code in (torch.rand(2, 64), torch.rand(2, 64)):
        ssae.decode(code, batch)
    for row, sep in ((0, 3), (1, 1)):
        torch.testing.assert_close(seen[0][row, : sep + 1], seen[1][row, : sep + 1])
        assert not torch.allclose(seen[0][row, sep + 1], seen[1][row, sep + 1])
    hidden = ssae.decode(code, batch, keep)[0]
    other = StepDataset([[5, 6, 7], [9]], [[8, 9], [8, 1, 3]], 2).batch([0, 1])  # another token where none may look
    changed = ssae.decode(code, other, keep)[0]
    own = ssae.decode(code, batch)[0]
    torch.testing.assert_close(hidden[0], own[0])
    assert not torch.isclose(hidden[1], own[1], rtol=1e-4) and not torch.isclose(hidden[1], changed[1], rtol=1e-4)


def test_swapping_two_codes_swaps_what_they_do(m):
    ssae = made(m)
    same = [PAIRS[0], PAIRS[0]]
    z = torch.stack([ssae.transform(PAIRS).z[3], ssae.transform(PAIRS).z[9]])
    there, back = ssae.nll(same, z), ssae.nll(same, z.flip(0))
    assert not torch.isclose(there[0], there[1], rtol=1e-4)
    torch.testing.assert_close(there, back.flip(0))


def test_the_decoder_may_be_kept_from_the_context(m):
    blind, data = made(m, condition_on_context=False), StepDataset([[5, 6, 7], [9]], [[8, 9], [8, 9]], 2)
    z = torch.rand(1, 32).expand(2, -1)
    nll = blind.nll(data, z)
    torch.testing.assert_close(nll[0], nll[1])
    seeing = made(m).nll(data, z)
    assert not torch.isclose(seeing[0], seeing[1], rtol=1e-4)
    batch = data.batch([0, 1])
    keep = batch.mask.clone()
    keep[0, int(batch.sep[0]) + 1] = False  # the first token of the step is hidden, wherever the context put it
    masked = blind.decode(z, batch, keep)[0]
    assert not torch.isclose(masked[0], masked[1], rtol=1e-4)


def test_without_a_code_the_model_is_read_as_it_is(m):
    ssae, data = made(m, lead=False), StepDataset.from_pairs(PAIRS[:3], m.tokenizer)
    batch = data.batch([1])
    embeds = m.module.get_input_embeddings().weight.detach()[batch.ids[0]]
    embeds[batch.sep] = ssae.decoder.sep
    logp = m.module(inputs_embeds=embeds[None]).logits[0, :-1].log_softmax(-1)
    target = batch.targets[0, 1:]
    wanted = -logp[target].gather(1, batch.ids[0, 1:][target][:, None]).mean()
    torch.testing.assert_close(ssae.nll(data, "none")[1], wanted)


# --- masks -------------------------------------------------------------------------------------------------------


def test_official_masking_leaks_the_last_targets(m, monkeypatch):
    """The published code drops the wrong token from the decoder's input: the last targets stand in their own place."""
    ids = torch.arange(10.0)[None, :, None]
    assert _without(ids, torch.tensor([9]))[0, :, 0].tolist() == list(range(9))
    assert _without(ids, torch.tensor([6]))[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]  # prefix + i: 7 at 7
    data = StepDataset([[5, 6]], [[8, 9, 10, 11, 12, 13]], 2)
    batch = data.batch([0])
    keep = batch.mask.clone()
    keep[0, [4, 5]] = False
    rows = m.module.get_input_embeddings().weight
    for official, leaks in ((True, 2), (False, 0)):
        ssae, seen = made(m, official_masking=official, lead=False), []
        monkeypatch.setattr(ssae.decoder, "states", lambda embeds, mask=None, seen=seen: seen.append(embeds) or embeds)
        ssae.decode(torch.zeros(1, 32), batch, keep)
        own = [torch.equal(seen[0][0, j], rows[batch.ids[0, j]]) for j in range(3, 10)]  # target j at its own place
        assert sum(own) == leaks and own[-leaks:] == [True] * leaks if leaks else not any(own)


def test_official_masking_reads_the_summary_too_early(m):
    data = StepDataset([[5, 6]], [[8, 9, 10, 11]], 2)
    batch = data.batch([0])
    keep = batch.mask.clone()
    keep[0, 4] = False
    ours, theirs = made(m), made(m, official_masking=True)
    states = ours.encoder.states(ours.encoder.embed(batch), keep)[0].float()
    torch.testing.assert_close(ours.summary(batch, keep)[0], states[-1])
    torch.testing.assert_close(theirs.summary(batch, keep)[0], states[-2])
    torch.testing.assert_close(theirs.summary(batch)[0], ours.summary(batch)[0])


def test_masks_hide_the_right_share_of_step_tokens_only(m, monkeypatch):
    ssae = made(m, mask_share=0.3)
    data = StepDataset([[5] * 20] * 40, [[8] * 50] * 40, 2)
    seen = []
    monkeypatch.setattr(ssae, "decode", lambda z, batch, keep: seen.append(keep) or (z[:, 0], z[:, 0]))
    ssae.loss(data.batch(range(40)), torch.Generator().manual_seed(0))
    keep = seen[0]
    assert bool(keep[:, :21].all()) and bool(keep[:, -1].all())
    assert abs(float((~keep[:, 21:-1]).float().mean()) - 0.3) < 0.03


# --- the controller ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("l1", "factor"), [(11.0, 1.01), (9.0, 0.99)])
def test_the_controller_follows_a_constant(l1, factor):
    controller = SparsityController(10.0, every=7)
    for _ in range(7 * 5 + 6):
        controller.update(l1)
    assert controller.weight == pytest.approx(1e-4 * factor**5)
    for _ in range(7 * 2000):
        controller.update(l1)
    assert controller.weight == (0.1 if factor > 1 else 1e-6)


def test_the_controller_refuses_what_cannot_be():
    for wrong in ({"target": 0.5}, {"every": 0}, {"rate": 1.5}, {"bounds": (0.1, 0.01)}):
        with pytest.raises(InputError):
            SparsityController(**wrong)


# --- the live model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_serves_and_is_left_as_it_was(family):
    m = tiny.live(family)
    before, flags = copy.deepcopy(m.module.state_dict()), [p.requires_grad for p in m.module.parameters()]
    logits = m.run("one two").logits
    for tuning in ("frozen", "lora", "full"):
        ssae = StepSAE(m, tuning=tuning)
        ssae.fit(PAIRS[:16], batch_size=8, lr_lm=1e-2, **QUICK)
        assert len(ssae.groups()["lm"]) == 0 if tuning == "frozen" else ssae.groups()["lm"]
        ssae.generate(ssae.transform(PAIRS[:2]).z, [c for c, _ in PAIRS[:2]], 3)
    assert m.module.get_input_embeddings().num_embeddings == tiny.VOCAB and len(m.tokenizer) == len(tiny.tokenizer())
    assert all(torch.equal(value, before[name]) for name, value in m.module.state_dict().items())
    assert [p.requires_grad for p in m.module.parameters()] == flags
    assert all(p.grad is None for p in m.module.parameters())
    assert torch.equal(m.run("one two").logits, logits)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_backends_agree(backend):
    wanted, found = (made(tiny.live("llama", b), tuning="lora") for b in ("torch", backend))
    z = found.transform(PAIRS[:6]).z
    torch.testing.assert_close(z, wanted.transform(PAIRS[:6]).z, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.nll(PAIRS[:6], z), wanted.nll(PAIRS[:6], z), atol=1e-4, rtol=0)


def test_attachments_of_the_user_are_not_read(m):
    ssae = made(m)
    plain = ssae.transform(PAIRS[:4]).z
    with m.attach(sl.ablate("blocks.1.hook_resid_post")):
        assert torch.equal(ssae.transform(PAIRS[:4]).z, plain)
        blank = m.run("a b").logits
    assert not torch.equal(m.run("a b").logits, blank)


def test_frozen_models_are_shared_and_adapters_small(m):
    frozen, lora, full = (StepSAE(m, tuning=t) for t in ("frozen", "lora", "full"))
    weights = sum(p.numel() for p in m.module.parameters())
    assert frozen.n_trained == 3 * 32 * 32 + 3 * 32 + 32 + 32
    assert frozen.n_trained < lora.n_trained
    assert full.n_trained == frozen.n_trained + 2 * weights  # a separator of the encoder in place of the lead
    assert StepSAE(m, tuning=("frozen", "lora")).tuning == ("frozen", "lora")


def test_untrained_adapters_change_nothing_and_trained_ones_can_be_attached(m):
    ssae = StepSAE(m, tuning="lora", rank=4)
    plain = m.run("one two three").logits
    with m.attach(ssae.decoder):
        assert torch.equal(m.run("one two three").logits, plain)
    ssae.fit(PAIRS, lr_lm=1e-2, **QUICK)
    with m.attach(ssae.decoder):
        attached = m.run("one two three").logits
    merged = copy.deepcopy(m.module)
    for site, adapter in ssae.decoder.adapters.items():
        linear = dict(zip(m.module.modules(), merged.modules(), strict=True))[m.linear(site.replace("/", "."))]
        linear.weight.data += (adapter.scale * adapter.A @ adapter.B).T
    wanted = sl.wrap(merged, m.tokenizer).run("one two three").logits
    assert not torch.allclose(attached, plain, atol=1e-3)
    torch.testing.assert_close(attached, wanted, atol=1e-4, rtol=0)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["frozen", ("lora", "frozen"), "full"])
def test_a_killed_run_goes_on_to_the_same_weights(m, tmp_path, monkeypatch, tuning):
    from sparselens.reasoning.ssae_train import StepTrainer

    def run(out=None):
        ssae = StepSAE(m, tuning=tuning)
        controller = SparsityController(3.0, every=2)
        return ssae, ssae.fit(PAIRS, epochs=3, controller=controller, out=out, checkpoint_every=2, **QUICK), controller

    wanted, record, controller = run()
    update = StepTrainer.update
    monkeypatch.setattr(StepTrainer, "update", lambda self: update(self) if self.step < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run")
    monkeypatch.setattr(StepTrainer, "update", update)
    resumed, again, second = run(tmp_path / "run")
    assert torch.equal(resumed.transform(PAIRS).z, wanted.transform(PAIRS).z)
    assert torch.equal(resumed.nll(PAIRS), wanted.nll(PAIRS))
    assert again.history == record.history and again.tokens == record.tokens and second == controller
    monkeypatch.setattr(StepTrainer, "update", lambda self: 1 / 0)
    assert torch.equal(run(tmp_path / "run")[0].transform(PAIRS).z, wanted.transform(PAIRS).z)  # finished: only loaded
    with pytest.raises(InputError, match="lr_new"):
        StepSAE(m, tuning=tuning).fit(PAIRS, epochs=3, lr_new=5e-3, controller=SparsityController(3.0, every=2),
                                      out=tmp_path / "run", **QUICK)


def test_training_lowers_the_loss_and_moves_the_norm_to_its_target(m):
    ssae = StepSAE(m, tuning="lora")
    controller = SparsityController(2.5, every=2, rate=0.1)
    run = ssae.fit(PAIRS, epochs=30, controller=controller, lr_new=2e-3, lr_lm=2e-3, **QUICK)
    first, last = run.history[0], run.history[-1]
    assert last["ce"] < first["ce"] - 1.0
    assert abs(last["l1"] - 2.5) < 0.5 < max(e["l1"] for e in run.history) - 2.5
    assert run.tokens_per_second > 0 and len(run.to_frame()) == len(run.history) and "tokens" in run._repr_html_()
    assert len(run.plot().axes) >= 4


def test_accumulated_batches_are_one_large_batch(m):
    data = StepDataset([[5, 6]] * 16, [[i, i + 1] for i in range(10, 26)], 2)  # equal lengths: means of means are means
    plain = {"noise": 0.0, "mask_share": 0.0}
    whole, parts = StepSAE(m, **plain), StepSAE(m, **plain)
    whole.fit(data, batch_size=16, **QUICK)
    parts.fit(data, batch_size=4, accumulate=4, **QUICK)
    torch.testing.assert_close(whole.W_enc, parts.W_enc, atol=1e-5, rtol=0)


def test_an_estimate_changes_nothing_and_scales_with_the_run(m):
    ssae = made(m, tuning=("frozen", "lora"))
    before = {name: value.clone() for name, value in ssae.named_parameters()}
    one, four = ssae.estimate(PAIRS), ssae.estimate(PAIRS, epochs=4)
    assert all(torch.equal(value, before[name]) for name, value in ssae.named_parameters())
    run = ssae.fit(PAIRS, epochs=4, **QUICK)
    assert four.tokens == run.tokens and four.updates == 12 and 2 < four.tokens / one.tokens < 3
    assert four.seconds < 5 * run.seconds and run.seconds < 5 * four.seconds  # loose: the machine may be busy
    assert len(one.to_frame()) == 1 and "memory" in one._repr_html_() and one.memory > 0


def test_a_loss_that_blows_up_is_an_error(m):
    ssae = made(m)
    with torch.no_grad():
        ssae.mlp[0].weight.fill_(float("inf"))
    with pytest.raises(NotFiniteError):
        ssae.fit(PAIRS, **QUICK)


def test_codes_that_become_constant_end_the_run(m):
    ssae = StepSAE(m)
    with torch.no_grad():
        ssae.b_enc.fill_(-1e3)[0] = 1e3
    with pytest.raises(InputError, match="no code had more than one active feature"):
        ssae.fit(PAIRS, epochs=20, batch_size=4, **QUICK)
    # few codes are on, but these have two features: they still learn, so the run goes on
    few = StepSAE(m, pooling="mean")
    with torch.no_grad():
        few.W_enc.zero_()[0, :2] = 1.0
        few.b_enc.fill_(-0.8)
    few.fit(PAIRS, epochs=40, batch_size=len(PAIRS), lr_new=0.0, **QUICK)
    assert 0 < float(few.transform(PAIRS).l0.float().mean()) < 1


# --- phases 2 and 3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_the_prior_learns_what_follows_a_context(m, tuning):
    ssae = made(m)
    with pytest.raises(InputError, match="no prior"):
        ssae.sample(["x"])
    before = {name: value.clone() for name, value in ssae.named_parameters()}
    data = StepDataset([[5, 6], [7, 8, 9]] * 12, [[20], [30, 31, 32]] * 12, 2)
    run = ssae.fit_prior(data, epochs=100, variance_epochs=3, batch_size=24, lr=5e-3, tuning=tuning, progress=False)
    assert run.history[-1]["nll"] < run.history[0]["nll"] - 0.5 and len(run.history) == 103
    assert all(torch.equal(value, before[name]) for name, value in ssae.named_parameters() if name in before)
    own = ssae.transform(data).z[:2]
    mean, log_variance = ssae.prior(ssae.prior.state(data.batch([0, 1])))
    near, far = torch.cosine_similarity(mean, own), torch.cosine_similarity(mean, own.flip(0))
    assert bool((near > 0.9).all()) and bool((near > far + 0.02).all())
    z = ssae.sample([context for context, _ in PAIRS], n=8)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(len(PAIRS), 8))
    assert bool((z >= 0).all()) and bool((log_variance.exp().mean(-1) < 0.1).all())


def test_the_prior_does_not_see_the_step(m):
    ssae = made(m)
    ssae.fit_prior(PAIRS[:16], epochs=1, variance_epochs=0, progress=False)
    one, two = (StepDataset([[5, 6]], [step], 2) for step in ([7], [8, 9, 10]))
    assert torch.equal(ssae.prior.state(one.batch([0])), ssae.prior.state(two.batch([0])))


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["frozen", "lora", ("full", "frozen")])
def test_files_bring_it_back_exactly(m, tmp_path, tuning):
    ssae = made(m, tuning=tuning, expansion=2, noise=0.02)
    ssae.fit(PAIRS, **QUICK)
    ssae.fit_prior(PAIRS[:16], epochs=1, variance_epochs=1, progress=False)
    again = StepSAE.load(ssae.save(tmp_path / "a"), m)
    assert torch.equal(again.transform(PAIRS).z, ssae.transform(PAIRS).z)
    assert torch.equal(again.nll(PAIRS), ssae.nll(PAIRS)) and torch.equal(again.sample(["x"]), ssae.sample(["x"]))
    assert again.metadata == ssae.metadata and again.noise == 0.02


def test_files_of_another_model_or_damaged_ones_are_refused(m, tmp_path):
    folder = made(m).save(tmp_path / "a")
    with pytest.raises(FitError, match="are others"):
        StepSAE.load(folder, tiny.live(seed=1))
    with pytest.raises(FitError, match="width"):
        StepSAE.load(folder, sl.wrap(_narrow(), tiny.tokenizer()))
    half = sl.wrap(tiny.model().to(torch.bfloat16), tiny.tokenizer())
    assert StepSAE.load(folder, half).n_latents == 32  # the same model in another precision
    with pytest.raises(InputError, match="shipped"):
        StepSAE.load(tmp_path / "nothing", m)
    (folder / "ssae.safetensors").write_bytes(b"cut off")
    with pytest.raises(FileFormatError):
        StepSAE.load(folder, m)


def _narrow():
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(**{**tiny._LLAMA, "hidden_size": 16, "head_dim": 4})).eval()


# --- input -------------------------------------------------------------------------------------------------------


def test_steps_come_from_traces(m):
    traces = read_traces([{"question": "How many?", "answer": "2 and 2\nmake 4\n#### 4"},
                          {"question": "", "answer": "x = 1\ny"}])
    data = StepDataset.from_traces(traces, m.tokenizer)
    assert len(data) == traces.n_steps and len(set(data.problems)) == 2
    assert m.tokenizer.decode(data.contexts[1]) == "How many?\n2 and 2\n"
    assert data.contexts[2] == []  # an empty question
    ssae = made(m)
    assert ssae.transform(traces).to_frame().shape == (len(data), 5)
    assert torch.equal(ssae.transform(traces).z, ssae.transform(data).z)
    assert len(ssae.reconstruct(traces, 2)) == len(data)


def test_long_and_odd_steps(m):
    long = [("q\n", "1 + " * 500)]
    with pytest.raises(InputError, match="max_step"):
        StepDataset.from_pairs(long, m.tokenizer)
    cut = StepDataset.from_pairs(long, m.tokenizer, max_step=40, max_context=10, long="cut")
    assert cut.cut == 1 and len(cut.steps[0]) == 40 and "1 cut" in repr(cut)
    assert StepDataset.from_pairs([("abcdef" * 99, "x")], m.tokenizer, max_context=4).contexts[0] == \
        m.tokenizer("abcdef" * 99).input_ids[-4:]
    ssae = made(m)
    assert ssae.transform([("", "Это шаг."), ("", "步驟")]).z.isfinite().all()  # another language, no context
    for wrong in ([], [("q", "")]):
        with pytest.raises(InputError):
            ssae.transform(wrong)
    for wrong in ({"expansion": 0}, {"tuning": "lorra"}, {"tuning": ["frozen"]}, {"noise": -1.0}, {"pooling": "max"},
                  {"place": "end"}, {"place": "step", "official_masking": True}):
        with pytest.raises(InputError):
            StepSAE(m, **wrong)
    with pytest.raises(InputError, match="shape"):
        ssae.nll(PAIRS, torch.zeros(2, 32))
    for use in (lambda z: ssae.nll(PAIRS[:1], z), lambda z: ssae.generate(z, ["q"])):
        with pytest.raises(NotFiniteError, match="codes"):
            use(torch.full((1, 32), float("nan")))
    with pytest.raises(InputError, match="no update"):
        ssae.fit(PAIRS, accumulate=100, **QUICK)


@pytest.mark.parametrize("place", ["front", "step"])
def test_what_is_written_matches_step_by_step_decoding(m, place):
    ssae = made(m, expansion=2, place=place)
    z, contexts = ssae.transform(PAIRS[:3]).z, [[5, 6, 7, 8], [9], []]
    found = write_ids(ssae, z, contexts, 2, 6)
    for row, context, code in zip(found, contexts, z, strict=True):
        alone: list[int] = []
        for _ in range(6):
            batch = StepDataset([context], [[*alone, 0]], 2).batch([0])
            whole, at = ssae.decoder.embed(batch)[:, :-2], 0 if place == "front" else len(context) + 1
            embeds = torch.cat([whole[:, :at], ssae.prefix(code[None]), whole[:, at:]], 1)
            token = int(ssae.decoder.logits(ssae.decoder.states(embeds)[0, -1:]).argmax())
            if token == 2:
                break
            alone.append(token)
        assert row == alone

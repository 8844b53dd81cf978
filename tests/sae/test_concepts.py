"""Probes and directions of concepts: planted answers, chance, and what the theory gives exactly."""

import pytest
import torch

from sparselens.errors import FitError, InputError
from sparselens.sae import SAE, concept_alignment, posterior_linearity, probe_agreement, read_pairs
from sparselens.sae.concepts import correlations, probe_logit
from tests import tiny


def concept_world(n=1200, d=16, concepts=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, concepts, generator=g) < 0.5
    directions = torch.linalg.qr(torch.randn(d, concepts, generator=g)).Q.T
    return (2 * labels.float() - 1) @ directions * 1.5 + torch.randn(n, d, generator=g), labels, directions


def test_a_latent_that_is_the_logit_scores_one_and_random_codes_are_at_chance():
    x, labels, _ = concept_world()
    train = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).chunk(3)[0]  # as it splits the rows
    noise = torch.randn(len(x), 40, generator=torch.Generator().manual_seed(5)).relu()
    codes = noise.clone()
    codes[:, 3] = 2 * probe_logit(x, labels[:, 0], train, "a") + 1
    found = probe_agreement({"planted": codes, "noise": noise}, x, labels, names=["a", "b"])
    frame = found.to_frame().set_index(["dictionary", "concept"])
    assert frame.loc[("planted", "a"), "score"] == pytest.approx(1, abs=1e-4)
    assert frame.loc[("planted", "a"), "latent"] == 3
    assert (frame.loc["noise", "score"] < 0.2).all()
    assert all(found.bound[name] > 0.9 > found.chance[name] > 0.2 for name in ("a", "b"))
    assert list(found.means.index) == ["planted", "noise"] and "<table" in found._repr_html_()
    assert len(found.plot().lines) >= 2


def test_an_sae_is_encoded():
    x, labels, directions = concept_world()
    sae = SAE("relu", d_in=16, d_sae=16).requires_grad_(False)
    sae.W_enc[:, :2] = directions.T
    found = probe_agreement({"sae": sae}, x, labels)
    assert found.scores["latent"].tolist() == [0, 1] and found.scores["score"].min() > 0.7


def test_correlations_of_columns():
    a, b = torch.randn(200, 3), torch.randn(200, 2)
    truth = torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:]
    torch.testing.assert_close(correlations(a, b), truth, atol=1e-5, rtol=1e-4)
    assert correlations(torch.ones(9, 1), torch.randn(9, 1)).item() == 0


def test_an_exactly_linear_concept_model_is_aligned():
    g = torch.Generator().manual_seed(0)
    v = torch.linalg.qr(torch.randn(32, 3, generator=g)).Q.T
    base = torch.randn(40, 32, generator=g)
    base = base - base @ v.T @ v  # contexts know nothing of the concepts
    pairs = {f"c{k}": (base, base + v[k]) for k in range(3)}
    found = concept_alignment(pairs)
    assert found.gap > 0.5 and found.diagonal > 0.99 and found.off_diagonal < 0.05
    assert abs(float(found.null.mean())) < 0.35
    assert found.to_frame().shape == (3, 3) and "<table" in found._repr_html_() and found.plot().images


def test_pairs_are_read_at_the_last_token_of_each_text():
    m = tiny.live("llama")
    found = read_pairs(m, {"plural": [("a cat", "some cats"), ("hat", "the hats")] * 2}, "blocks.1.hook_resid_post")
    alone = m.capture("the hats", "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"][0, -1]
    torch.testing.assert_close(found["plural"][1][1], alone, atol=1e-5, rtol=1e-4)


def test_representations_that_are_linear_in_the_log_posterior():
    logits = 3 * torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(1)
    f = (log_p - log_p.mean(1, keepdim=True)) @ torch.randn(5, 9)
    in_log = posterior_linearity(f, log_p)
    in_prob = posterior_linearity(log_p.exp() @ torch.randn(5, 9), log_p)
    assert in_log.r2_log == pytest.approx(1, abs=1e-6) and in_log.r2_prob < 0.95
    assert in_prob.r2_prob == pytest.approx(1, abs=1e-6) and in_prob.r2_log < 0.95


def test_what_does_not_fit_is_an_error():
    x, labels, _ = concept_world(n=60)
    with pytest.raises(InputError, match="holds for 0 of"):
        probe_agreement({}, x, torch.zeros(60, 1, dtype=torch.bool))
    with pytest.raises(FitError, match="codes of 5 rows"):
        probe_agreement({"a": torch.randn(5, 3)}, x, labels)
    with pytest.raises(FitError, match="60 rows"):
        probe_agreement({}, x, labels[:9])
    with pytest.raises(InputError, match="four pairs"):
        concept_alignment({"a": (x[:2], x[:2])})

"""Choosing by gradient: beta 0 is TopK, scores by hand, invariances, training, influences against differences."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError, NotFiniteError, SiteError
from sparselens.sae import SAE, GradTopK, encode_with_gradients, influence, selection_overlap, train_sae
from sparselens.sae.store import harvest
from tests import tiny
from tests.sae.synthetic import QUIET

SITE = "blocks.1.hook_resid_post"
X = torch.ones(2, 8)
TEXTS = ["one two three four five six", "seven eight nine ten eleven", "a b c d e f g"] * 6


def sae(d: int = 8, d_sae: int = 24, k: int = 3) -> SAE:
    return SAE("topk", d_in=d, d_sae=d_sae, k=k).requires_grad_(False)


def test_scores_by_hand():
    pre, grads = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # influences 0, 1, 1: their mean is 2/3
    assert GradTopK(1.0).scores(pre, grads, rows).tolist() == [[2.0, 2.5, 0.0]]
    assert GradTopK(2.0, "none").scores(pre, grads, rows).tolist() == [[2.0, 3.0, 0.0]]
    assert GradTopK(1.0).kept(pre, grads, rows, 1).tolist() == [[1]]
    assert GradTopK(0.0).kept(pre, grads, rows, 1).tolist() == [[0]]


def test_beta_0_is_topk_and_values_are_the_activations():
    x, grads, one = torch.randn(50, 8), torch.randn(50, 8), sae()
    assert torch.equal(encode_with_gradients(one, x, grads, 0.0).dense(), one.encode(x).dense())
    z, pre = encode_with_gradients(one, x, grads, 5.0).dense(), one.pre_activations(x)
    assert torch.equal(z[z != 0], pre.relu()[z != 0]) and not torch.equal(z, one.encode(x).dense())


def test_the_size_of_gradients_and_the_order_of_latents_do_not_matter():
    x, grads, one, other = torch.randn(50, 8), torch.randn(50, 8), sae(), sae()
    z = encode_with_gradients(one, x, grads, 3.0).dense()
    torch.testing.assert_close(encode_with_gradients(one, x, 100 * grads, 3.0).dense(), z)
    order = torch.randperm(24)
    other.W_dec.data, other.W_enc.data = one.W_dec[order], one.W_enc[:, order]
    torch.testing.assert_close(encode_with_gradients(other, x, grads, 3.0).dense(), z[:, order])


def test_the_more_weight_the_other_the_choice():
    x, grads = torch.randn(200, 8), torch.randn(200, 8)
    found = selection_overlap(sae(), x, grads, (0.0, 1.0, 10.0))
    assert found.jaccard[0] == 1 and list(found.jaccard) == sorted(found.jaccard, reverse=True)
    assert len(found.to_frame()) == 3 and "<table" in found._repr_html_()


def test_training_with_beta_0_is_training_topk(tmp_path):
    m = tiny.live()
    acts = harvest(m, TEXTS, SITE, tmp_path / "acts", 10_000, gradients=True, progress=False)
    settings = dict(site=SITE, n_tokens=400, batch_size=40, d_sae=40, k=4, **QUIET)
    plain, _ = train_sae(acts, **settings)
    zero, _ = train_sae(acts, rules=[GradTopK(0.0)], **settings)
    one, _ = train_sae(acts, rules=[GradTopK(5.0)], **settings)
    torch.testing.assert_close(plain.W_dec, zero.W_dec, atol=1e-4, rtol=1e-4)
    assert float((plain.W_dec - one.W_dec).abs().max()) > 0.01


def test_influences_are_the_first_order_effect_of_dropping_a_latent():
    m = tiny.live()
    x = m.capture(TEXTS[:1], SITE)[SITE][0]
    one = SAE("topk", d_in=m.d_model, d_sae=64, k=4, site=SITE).requires_grad_(False)
    one.W_dec.data = 0.001 * one.W_dec  # so that one latent changes little, and the first order is all
    one.W_enc.data = 1000 * one.W_enc
    before = m.module.training
    found = influence(m, one, TEXTS[0], lambda logits: logits[-1, 5])
    row = found.top(1).iloc[0]
    z = one.encode(x).dense()
    z[int(row.position), int(row.feature)] = 0
    step = 1e-2
    change = (one.decode(z) - one(x)) * step
    with m.attach(sl.edit(SITE, lambda value: value + change)):
        after = m.run(TEXTS[:1]).logits[0, -1, 5]
    assert float(after - m.run(TEXTS[:1]).logits[0, -1, 5]) / step == pytest.approx(row.effect, rel=0.05)
    assert m.module.training == before and all(p.grad is None for p in m.module.parameters())
    assert len(influence(m, one, TEXTS[0]).to_frame()) and "<table" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: GradTopK(-1.0), InputError, "negative"),
        (lambda: GradTopK(influence_norm="tokens"), InputError, "token"),
        (lambda: encode_with_gradients(SAE("relu", d_in=8, d_sae=9), X, X), InputError, "relu"),
        (lambda: encode_with_gradients(sae(), X, torch.full((2, 8), torch.nan)), NotFiniteError, "NaN"),
        (lambda: influence(tiny.live(), sae(), "a"), FitError, "site"),
        (lambda: train_sae(X.repeat(99, 1), n_tokens=9, d_sae=9, k=2, rules=[GradTopK()], **QUIET), SiteError, "grad"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, says):
    with pytest.raises(error, match=says):
        call()

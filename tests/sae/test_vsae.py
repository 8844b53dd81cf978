"""The variational rule: without noise and weight it is TopK; the KL term and its gradient; noise only in training."""

import pytest
import torch

from sparselens.errors import InputError
from sparselens.sae import SAE, GaussianPrior, selection_churn, train_sae
from sparselens.sae.trainer import SAETrainer
from tests.sae.synthetic import QUIET, planted


def trained(rules=(), **settings):
    x, _ = planted(rows=4000, d=16, features=24)
    given = {"architecture": "topk", "d_sae": 32, "k": 3, "n_tokens": 20_000, "batch_size": 200, "dead": "none"}
    return train_sae(x, rules=rules, **given | settings, **QUIET)[0], x


def test_without_noise_and_weight_it_is_topk():
    plain, x = trained()
    for variance in ("none", "fixed"):
        sae, _ = trained([GaussianPrior(beta=0.0, variance=variance, sigma=0.0)])
        torch.testing.assert_close(sae(x), plain(x), atol=1e-4, rtol=1e-4)


def test_without_variance_the_term_is_a_penalty_on_the_squares_of_all_means():
    x = torch.randn(60, 8)
    grads = []
    for rules in ((GaussianPrior(beta=0.3, warm_up=0.0),), (GaussianPrior(beta=0.0, warm_up=0.0),)):
        t = SAETrainer(SAE("topk", d_in=8, d_sae=12, k=2), x, k=2, lr=0.0, dead_after=10**9, rules=rules)
        means: list[torch.Tensor] = []
        t._descend = lambda _factor, t=t: grads.append(t.model.W_enc.grad.clone())  # the gradient, not the step
        t.step(x, 1.0)
        inner = t.prepare(x)[0]
        weights = t.model.W_enc.detach().clone().requires_grad_()
        means.append(((inner - t.model.b_dec.detach()) @ weights).relu())
        (0.3 / 2 * means[0].square().sum() / len(x)).backward()
        extra = weights.grad
    torch.testing.assert_close(grads[0] - grads[1], extra, atol=1e-5, rtol=1e-4)


def test_the_divergence_and_its_gradient():
    mu = torch.randn(5, 7, dtype=torch.float64).float().requires_grad_()
    log_var = (0.3 * torch.randn(5, 7)).requires_grad_()
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(mu, (0.5 * log_var).exp()), normal(0.0, 1.0)).sum() / 5
    found = GaussianPrior.kl(mu, log_var)
    torch.testing.assert_close(found, truth)
    found.backward()
    torch.testing.assert_close(mu.grad, mu.detach() / 5)
    torch.testing.assert_close(log_var.grad, 0.5 * (log_var.exp() - 1).detach() / 5)
    assert float(GaussianPrior.kl(torch.zeros(3, 4), torch.zeros(3, 4))) == 0


def test_noise_has_the_size_it_says_and_is_gone_in_use():
    x = torch.randn(4000, 8)
    rule = GaussianPrior(beta=0.0, variance="fixed", sigma=0.5, relu_mu=False)
    t = SAETrainer(SAE("abstopk", d_in=8, d_sae=8, k=8), x, k=8, lr=0.0, dead_after=10**9, rules=[rule])
    from sparselens.sae.rules import Step

    inner = t.prepare(x)[0]
    s = Step(t.model, inner, inner, 0, 0.0, torch.tensor([], dtype=torch.int64))
    noise = t.rules[-1].codes(t, s).detach() - s.pre.detach()
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(0.5, rel=0.02)
    sae = t.export()
    assert torch.equal(sae.encode(x[:9]).dense(), sae.encode(x[:9]).dense())


def test_a_learned_variance_stays_in_its_limits_and_is_not_kept():
    sae, x = trained([GaussianPrior(beta=0.01, variance="learned", sigma=0.3, log_var_range=(-3.0, -1.0))])
    assert set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert float((sae(x) - x).square().sum()) < float((x - x.mean(0)).square().sum())


def test_noise_changes_what_is_kept_the_more_the_larger():
    sae, x = trained()
    churn = selection_churn(sae, x[:500], (0.0, 0.1, 0.5, 2.0))
    assert churn.jaccard[0] == 1 and list(churn.jaccard) == sorted(churn.jaccard, reverse=True)
    assert list(churn.fvu) == sorted(churn.fvu) and len(churn.to_frame()) == 4 and len(churn.plot().lines) == 2
    assert "<table" in churn._repr_html_()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: GaussianPrior(variance="learnt"), "learned"),
        (lambda: GaussianPrior(variance="learned", sigma=0.0), "above 0"),
        (lambda: trained([GaussianPrior()], architecture="relu"), "topk and abstopk"),
        (lambda: selection_churn(SAE("relu", d_in=4, d_sae=8), torch.randn(5, 4)), "fixed number"),
    ],
)
def test_what_does_not_fit_is_an_error(call, says):
    with pytest.raises(InputError, match=says):
        call()

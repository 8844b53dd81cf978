import pytest
import torch

from sparselens.sae import SAE
from sparselens.sae.losses import BANDWIDTH, Above, Jump
from sparselens.sae.rules import Step
from sparselens.sae.trainer import SAETrainer


def trainer(architecture: str, k: int, d_sae: int = 60, **settings) -> tuple[SAETrainer, torch.Tensor]:
    x = torch.randn(300, 16)
    wants = SAE(architecture, d_in=16, d_sae=d_sae, k=k if "topk" in architecture else None)
    return SAETrainer(wants, x, k=k, lr=1e-3, dead_after=10**9, **settings), x


def test_the_thresholds_gradient_is_the_kernel_estimate():
    pre, grad = torch.randn(500, 6, dtype=torch.float64), torch.randn(500, 6, dtype=torch.float64)
    threshold = torch.rand(6, dtype=torch.float64).requires_grad_()
    near = ((pre - threshold).abs() < BANDWIDTH / 2).double()
    (Jump.apply(pre, threshold) * grad).sum().backward()
    torch.testing.assert_close(threshold.grad, (-threshold / BANDWIDTH * (near * grad).sum(0)).detach())
    threshold.grad = None
    (Above.apply(pre, threshold) * grad).sum().backward()
    torch.testing.assert_close(threshold.grad, (-(near * grad).sum(0) / BANDWIDTH).detach())


def test_the_estimate_agrees_with_the_change_of_the_expected_count():
    pre = torch.randn(400_000, 1, dtype=torch.float64)
    threshold = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    Above.apply(pre, threshold).mean().backward()
    slope = (float((pre > 0.85).double().mean()) - float((pre > 0.75).double().mean())) / 0.1
    assert float(threshold.grad) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("architecture", ["batchtopk", "batch_abstopk", "jumprelu"])
def test_training_starts_with_k_active_latents(architecture):
    t, x = trainer(architecture, 5)
    assert float(t.step(x, 0.0).l0) == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_the_l1_weight_moves_towards_the_target(architecture):
    for k, sign in ((1, 1), (59, -1)):
        t, x = trainer(architecture, k)
        before = float(t.extra["log_l1"])
        t.step(x, 0.0)
        assert sign * (float(t.extra["log_l1"]) - before) > 0


def test_the_gate_is_trained_by_what_it_reconstructs_alone():
    """The step function of the gate passes no gradient, so this term is all that the gate's bias has from the error."""
    t, x = trainer("gated", 5)
    inner, _, _ = t.prepare(x)
    s = Step(t.model, inner, inner, 0, 0.0, torch.empty(0, dtype=torch.int64))
    s.codes, s.error = t.rules[0].codes(t, s), torch.zeros(())
    t.extra["log_l1"] = torch.tensor(-torch.inf)
    (mine,) = torch.autograd.grad(t.rules[0].loss(t, s), t.model.activation.b_gate)
    gate = ((inner - t.model.b_dec) @ t.model.W_enc).detach().requires_grad_()
    alone = gate.relu() @ t.model.W_dec.detach() + t.model.b_dec.detach()
    ((inner - alone).square().sum() / len(x)).backward()
    torch.testing.assert_close(mine, gate.grad.sum(0))
    (none,) = torch.autograd.grad(s.codes.sum(), t.model.activation.b_gate, allow_unused=True)
    assert none is None or not none.any()

import pytest
import torch

from sparselens.sae.losses import BANDWIDTH, Jump, Step, dense_gradients, initial_extra
from tests.sae.test_topk_step import weights


def test_the_thresholds_gradient_is_the_kernel_estimate():
    pre, grad = torch.randn(500, 6, dtype=torch.float64), torch.randn(500, 6, dtype=torch.float64)
    threshold = torch.rand(6, dtype=torch.float64).requires_grad_()
    near = ((pre - threshold).abs() < BANDWIDTH / 2).double()
    (Jump.apply(pre, threshold) * grad).sum().backward()
    torch.testing.assert_close(threshold.grad, (-threshold / BANDWIDTH * (near * grad).sum(0)).detach())
    threshold.grad = None
    (Step.apply(pre, threshold) * grad).sum().backward()
    torch.testing.assert_close(threshold.grad, (-(near * grad).sum(0) / BANDWIDTH).detach())


def test_the_estimate_agrees_with_the_change_of_the_expected_count():
    pre = torch.randn(400_000, 1, dtype=torch.float64)
    threshold = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    Step.apply(pre, threshold).mean().backward()
    slope = (float((pre > 0.85).double().mean()) - float((pre > 0.75).double().mean())) / 0.1
    assert float(threshold.grad) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_training_starts_with_k_active_latents(architecture):
    w, x = weights(16, 60, torch.float32), torch.randn(300, 16)
    extra = initial_extra(architecture, w, x, 5)
    _, seen = dense_gradients(architecture, w, x, 5, extra)
    assert float(seen.l0) == pytest.approx(5, abs=0.05)


def test_the_l1_weight_moves_towards_the_target():
    w, x = weights(16, 60, torch.float32), torch.randn(300, 16)
    for k, sign in ((1, 1), (59, -1)):
        extra = initial_extra("relu", w, x, k)
        before = float(extra["log_l1"])
        dense_gradients("relu", w, x, k, extra)
        assert sign * (float(extra["log_l1"]) - before) > 0

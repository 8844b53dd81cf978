"""The dense training step: plain autograd through the SAE in training, for whatever is no selection of latents."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.latents import Latents
from sparselens.sae.lean_step import StepResult, auxiliary_codes
from sparselens.sae.losses import as_dense, dense_codes
from sparselens.sae.rules import Step

if TYPE_CHECKING:
    from sparselens.sae.trainer import SAETrainer


def dense_gradients(t: "SAETrainer", s: Step, half: bool = False) -> StepResult:
    """Leave the gradients of the loss in the parameters of `t.model`, and return what the step saw.

    Args:
        t: the trainer, with its rules.
        s: the step.
        half: run the products in bfloat16.
    """
    with torch.autocast(s.x.device.type, torch.bfloat16, enabled=half):
        codes = s.codes = _codes(t, s)
        squared = _reconstruct(t, s, codes)
        loss = squared
        for rule in t.rules:
            more = rule.loss(t, s)
            loss = loss if more is None else loss + more
        revive = t.to_revive(s)
        if revive is not None and len(revive):
            loss = loss + t.aux_weight * auxiliary_loss(s, revive)
    t.zero_grad()
    loss.backward()
    fires = (as_dense(codes).detach() != 0).sum(0)
    return StepResult(fires, fires.sum() / len(s.x), s.error.detach().square().sum() / len(s.x))


def auxiliary_loss(s: Step, revive: Tensor) -> Tensor:
    """`mean ||(y - y_hat) - aux_hat||^2`, with aux_hat from the latents to revive alone and y_hat held fixed."""
    codes = auxiliary_codes(s.pre[:, revive], s.y.shape[1], s.model.activation.signed)
    return (s.error.detach() + codes @ s.model.W_dec[revive]).square().sum() / len(s.x)


def _codes(t: "SAETrainer", s: Step) -> Latents | Tensor:
    """The first rule that has codes or a choice of its own decides; the later a rule was given, the earlier it is
    asked."""
    for rule in reversed(t.rules):
        codes = rule.codes(t, s)
        if codes is not None:
            return codes
        where = rule.choose(t, s)
        if where is not None:
            return dense_codes(where, s.pre, s.model.activation.signed)
    raise InputError(f"no rule says how a {s.model.architecture} SAE gets its codes in training.")


def _reconstruct(t: "SAETrainer", s: Step, codes: Latents | Tensor) -> Tensor:
    """Set `s.error`; return the mean over tokens of its square, or the mean of that over the prefixes."""
    model = s.model
    rest = model.b_dec - s.y
    around = model.measure(s.x)
    if around is not None and around.bypass is not None:
        rest = rest + around.bypass
    if len(t.prefixes) < 2:
        s.error = model.contributions(codes) + rest
        return s.error.square().sum() / len(s.x)
    z, total, begin = as_dense(codes), torch.zeros((), device=s.x.device), 0
    for end in t.prefixes:
        rest = rest + z[:, begin:end] @ model.W_dec[begin:end]
        total, begin = total + rest.square().sum() / len(s.x), end
    s.error = rest
    return total / len(t.prefixes)

"""One SAE in training: parameters, optimiser, dead-latent bookkeeping. All state that only training needs is here."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError, NotFiniteError
from sparselens.sae.activations import BatchTopK, JumpReLU
from sparselens.sae.losses import dense_gradients, initial_extra
from sparselens.sae.sae import SAE
from sparselens.sae.topk_step import StepResult, Weights, topk_gradients


class SAETrainer:
    """Trains one SAE on batches of activations.

    Inputs are scaled to a mean norm of sqrt(d_in), so that learning rates carry over between models; the scale goes
    back into the weights at the end. Decoder rows keep norm 1. Master weights are float32.

    Args:
        sae: the SAE to train, fresh or trained; it is filled by `export`. Fresh means `b_dec` is zero: then `b_dec`
            starts at the mean of `sample`.
        sample: some activations `[n, d_in]`, to take scale and mean from.
        k: active latents per token (for relu and jumprelu: aimed at).
        lr: peak learning rate of Adam.
        dead_after: a latent that has not fired for this many tokens is dead.

    Raises:
        InputError: the SAE has an input norm, does not subtract `b_dec`, or lacks a k.
        NotFiniteError: the sample holds NaN or infinite numbers.
    """

    def __init__(
        self, sae: SAE, sample: Float[Tensor, "n d_in"], *, k: int | float | None, lr: float, dead_after: int
    ) -> None:
        if not sae.subtract_b_dec or sae.input_norm.kind != "none":
            raise InputError("only SAEs with input_norm='none' and subtract_b_dec=True can be trained.")
        if k is None:
            raise InputError(f"a {sae.architecture} SAE is trained towards k active latents per token: give k.")
        if not torch.isfinite(sample).all():
            raise NotFiniteError("the activations hold NaN or infinite numbers.")
        self.sae, self.k, self.lr, self.dead_after = sae, k, lr, dead_after
        self.scale = float(sae.d_in**0.5 / sample.norm(dim=1).mean().clamp_min(1e-12))
        b_dec = sae.b_dec.detach() * self.scale
        if not b_dec.any():
            b_dec = sample.mean(0) * self.scale
        parts = (sae.W_enc.detach().T, sae.b_enc.detach() * self.scale, sae.W_dec.detach(), b_dec)
        self.weights = Weights(*(part.float().contiguous().clone().to(sample.device) for part in parts))
        self.since = torch.zeros(sae.d_sae, dtype=torch.int64, device=sample.device)
        self.extra: dict[str, Tensor] = {}
        if sae.architecture != "topk":
            self.extra = initial_extra(sae.architecture, self.weights, sample * self.scale, k)
        if isinstance(sae.activation, JumpReLU) and sae.activation.threshold.any():  # it was trained before
            self.extra["threshold"] = (sae.activation.threshold.detach().float() * self.scale).requires_grad_()
        learned = [*self.weights, *(tensor for tensor in self.extra.values() if tensor.requires_grad)]
        self.optimiser = torch.optim.Adam([nn.Parameter(t, requires_grad=False) for t in learned], lr, fused=True)

    def step(self, x: Float[Tensor, "batch d_in"], lr_factor: float) -> StepResult:
        """One optimiser step on a batch of activations, at `lr_factor` times the peak learning rate.

        Raises:
            NotFiniteError: the loss is NaN or infinite; the weights are left as they were.
        """
        x = x * self.scale
        w, dead = self.weights, (self.since >= self.dead_after).nonzero().flatten()
        if self.sae.architecture == "topk":
            grads, seen = topk_gradients(w, x, int(self.k), dead)
        else:
            grads, seen = dense_gradients(self.sae.architecture, w, x, self.k, self.extra, dead)
        if not torch.isfinite(seen.error):
            raise NotFiniteError(
                "the training loss is NaN or infinite: the activations hold such numbers, or the learning rate "
                f"({self.lr * lr_factor:.1e}) is too high."
            )
        # decoder rows stay on the unit sphere: no gradient along them, renormalised after the step
        grads.dec.addcmul_(torch.linalg.vecdot(grads.dec, w.dec).unsqueeze(1), w.dec, value=-1)
        learned = [*grads, *(tensor.grad for tensor in self.extra.values() if tensor.requires_grad)]
        for parameter, grad in zip(self._parameters(), learned, strict=True):
            parameter.grad = grad
        for tensor in self.extra.values():
            tensor.grad = None
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * lr_factor
        self.optimiser.step()
        self._after_step(seen, len(x))
        return seen

    @property
    def dead_share(self) -> float:
        """Share of latents that have not fired for `dead_after` tokens."""
        return float((self.since >= self.dead_after).double().mean())

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly from here, as named tensors."""
        tensors = {f"weights.{name}": value for name, value in self.weights._asdict().items()}
        tensors |= {f"extra.{name}": value.detach() for name, value in self.extra.items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in slots.items()}
        return tensors | {"since": self.since, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        own = self.state()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value
            elif name != "scale":
                own[name].copy_(value)
        self.scale = float(tensors["scale"])
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": slots, "param_groups": groups})

    def export(self) -> SAE:
        """Bring the weights back to the activations' own scale and put them into the SAE, which is returned."""
        w, sae, s = self.weights, self.sae, self.scale
        values = {"W_enc": w.enc.T, "b_enc": w.b_enc / s, "W_dec": w.dec, "b_dec": w.b_dec / s}
        if isinstance(sae.activation, JumpReLU):
            sae.activation.threshold.data = (self.extra["threshold"] / s).detach().to(sae.W_dec.device)
        elif isinstance(sae.activation, BatchTopK):
            sae.activation.threshold = (self.extra["threshold"] / s).to(sae.W_dec.device)
        for name, value in values.items():
            parameter = getattr(sae, name)
            parameter.data = value.detach().to(parameter).contiguous().clone()
        return sae.requires_grad_(False)

    def _parameters(self) -> list[Any]:
        return self.optimiser.param_groups[0]["params"]

    @torch.no_grad()
    def _after_step(self, seen: StepResult, tokens: int) -> None:
        self.weights.dec.div_(self.weights.dec.norm(dim=1, keepdim=True))
        if "threshold" in self.extra:
            self.extra["threshold"].clamp_(min=0)
        self.since += tokens
        self.since[seen.fired] = 0

"""top-AFA: latents are kept until the norm of the code matches the norm of the input (Lee et al., 2025)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.activations import Activation
from sparselens.sae.latents import Latents
from sparselens.sae.rules import Rule, Step

if TYPE_CHECKING:
    from sparselens.sae.sae import SAE
    from sparselens.sae.trainer import SAETrainer


class TopAFA(Activation):
    """Keeps the largest latents of a token, as many as bring the norm of its code closest to the norm of its input.

    If decoder directions were orthogonal, a right code would have exactly that norm ("approximate feature
    activation"). There is no k. The norm of a code counts each latent times the norm of its decoder row; at least one
    latent is kept.

    Args:
        max_k: most latents per token; None: all.
        min_act: latents below this share of the token's largest are not kept. A little cross-talk on many latents
            adds up and would be counted in otherwise.
    """

    name = "topafa"
    ranks = True

    def __init__(self, max_k: int | None = None, min_act: float = 0.0) -> None:
        super().__init__(max_k=max_k, min_act=min_act)
        if max_k is not None and max_k < 1:
            raise InputError(f"max_k must be at least 1, not {max_k}.")
        if not 0 <= min_act < 1:
            raise InputError(f"min_act is a share of the largest activation, from 0 to below 1, not {min_act}.")
        self.max_k, self.min_act = max_k, min_act

    def encode(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        pre = sae.linear(x)
        norms = torch.ones(()) if sae.rank_by_decoder_norm else sae.W_dec.norm(dim=1)
        return self.keep(pre.relu(), norms.to(pre), x.norm(dim=1))

    def keep(
        self, acts: Float[Tensor, "n d_sae"], norms: Tensor, target: Float[Tensor, " n"]
    ) -> Float[Tensor, "n d_sae"]:
        """The activations that stay: `k(b) = argmin_m | ||largest m of acts * norms|| - target |`, at least one."""
        if not acts.numel():
            return acts
        weighed = (acts * norms).float()
        most = min(self.max_k or acts.shape[1], acts.shape[1])
        values, where = weighed.topk(most, dim=1)
        shown = values * (values >= self.min_act * values[:, :1])
        total = shown.square().cumsum(1).sqrt()
        count = 1 + (total - target[:, None]).abs().argmin(1)
        kept = (torch.arange(most, device=acts.device) < count[:, None]) & (shown > 0)
        return acts * torch.zeros_like(acts).scatter(1, where, kept.to(acts.dtype))


@dataclass(frozen=True)
class MatchNorm(Rule):
    """Trains top-AFA: squared error, and the squared difference between the norm of the code and that of the input.

    Args:
        weight: of that difference, against the squared error per number. It takes the place of k: a larger one keeps
            more latents.
    """

    weight: float = 1 / 32

    def codes(self, t: "SAETrainer", s: Step) -> Latents | Tensor:
        return s.model.activation.encode(s.model, s.centred)

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        weighed = s.codes if s.model.rank_by_decoder_norm else s.codes * s.model.W_dec.norm(dim=1)
        norms = (weighed.square().sum(1) + 1e-12).sqrt()
        return s.y.shape[1] * self.weight * (norms - s.x.norm(dim=1)).square().mean()

"""What turns pre-activations into latents. Each is one small part of an `SAE`; `architectures.py` lists them."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.sae.latents import Latents
from sparselens.sae.selection import largest_of_batch, largest_of_token

if TYPE_CHECKING:
    from sparselens.sae.decoders import Bypass
    from sparselens.sae.sae import SAE


class Activation(nn.Module):
    """Base of the activation parts: `forward(pre [n, d_sae])` gives codes, dense or `Latents`.

    A part that needs more than the pre-activations overrides `encode`. A subclass says in class attributes what it is.

    Attributes:
        name: the name of the architecture.
        wants_k: "whole" (a k per token), "number" (a mean) or "" (no k).
        sparse: whether the codes are `Latents` of k entries a token.
        signed: whether codes may be negative.
        ranks: whether it chooses by size, so that `rank_by_decoder_norm` means something.
        encoder: the encoder tensors that the SAE keeps for it, of "W_enc" and "b_enc". Without "W_enc" the encoder is
            the decoder's transpose.
        options: what it was built with, as JSON; `type(part)(**part.options)` builds another one.
    """

    name: ClassVar[str] = ""
    wants_k: ClassVar[str] = ""
    sparse: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    encoder: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc")
    k: int | float | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def make(cls, d_sae: int, k: int | float | None) -> "Activation":
        """The part as it comes by its name, for `d_sae` latents and a k that fits."""
        return cls(k=k) if cls.wants_k else cls()

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Latents | Float[Tensor, "n d_sae"]:
        """Codes of pre-activations."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def encode(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Latents | Float[Tensor, "n d_sae"]:
        """Codes of rows that are normalised and centred already (`sae.centred`)."""
        return self(sae.linear(x))

    def around(self, d_in: int, d_sae: int) -> "Bypass | None":
        """The part that goes around the codes where none is given; None for an architecture without."""
        return None

    def rescale(self, factor: float) -> None:
        """Follow a change of unit: pre-activations and codes come out `factor` times as large from now on."""


class ReLU(Activation):
    """Keeps the positive pre-activations."""

    name = "relu"

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu()


class JumpReLU(Activation):
    """Keeps positive pre-activations above a threshold of each latent (Rajamanoharan et al., 2024b)."""

    name = "jumprelu"

    def __init__(self, d_sae: int) -> None:
        super().__init__(d_sae=d_sae)
        self.threshold = nn.Parameter(torch.zeros(d_sae))

    @classmethod
    def make(cls, d_sae: int, k: int | float | None) -> "JumpReLU":
        return cls(d_sae)

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu() * (pre > self.threshold)

    def rescale(self, factor: float) -> None:
        self.threshold.data = self.threshold.data * factor


class Gated(Activation):
    """One gate and one size from the same product `u = x @ W_enc` (Rajamanoharan et al., 2024a).

    `z = [u + b_gate > 0] * relu(u * exp(r_mag) + b_mag)`. The SAE has no `b_enc` of its own.
    """

    name = "gated"
    encoder = ("W_enc",)

    def __init__(self, d_sae: int) -> None:
        super().__init__(d_sae=d_sae)
        self.b_gate, self.b_mag, self.r_mag = (nn.Parameter(torch.zeros(d_sae)) for _ in range(3))

    @classmethod
    def make(cls, d_sae: int, k: int | float | None) -> "Gated":
        return cls(d_sae)

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return (pre * self.r_mag.exp() + self.b_mag).relu() * (pre + self.b_gate > 0)

    def rescale(self, factor: float) -> None:
        self.b_gate.data, self.b_mag.data = self.b_gate.data * factor, self.b_mag.data * factor


class TopK(Activation):
    """Keeps the k largest pre-activations of a token, where positive (Gao et al., 2024)."""

    name = "topk"
    wants_k = "whole"
    sparse = True
    ranks = True
    k: int

    def __init__(self, k: int) -> None:
        super().__init__(k=int(k))
        self.k = int(k)

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Latents:
        indices = largest_of_token(pre.detach(), self.k)
        return Latents(pre.gather(1, indices).relu(), indices, pre.shape[-1])


class AbsTopK(TopK):
    """Keeps the k pre-activations of a token that are largest in size, with their sign (Zhu et al., 2025)."""

    name = "abstopk"
    signed = True

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Latents:
        indices = largest_of_token(pre.detach(), self.k, signed=True)
        return Latents(pre.gather(1, indices), indices, pre.shape[-1])


class BatchTopK(Activation):
    """Trained to keep the k largest per token on average over a batch (Bussmann et al., 2024).

    In use it is a JumpReLU with one threshold, estimated while training: a token's codes never depend on the
    other tokens of its batch. Until a threshold is estimated it is 0, which is a ReLU.
    """

    name = "batchtopk"
    wants_k = "number"
    ranks = True
    k: int | float
    threshold: Tensor

    def __init__(self, k: int | float) -> None:
        super().__init__(k=k)
        self.k = k
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu() * (pre > self.threshold)

    def select(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """The codes used in training: the `k * n` largest pre-activations of the whole batch, where positive."""
        where = largest_of_batch(pre.detach(), self.k, signed=self.signed)
        values = pre.flatten()[where]
        values = values if self.signed else values.relu()
        return torch.zeros_like(pre).flatten().scatter(0, where, values).view_as(pre)

    def rescale(self, factor: float) -> None:
        self.threshold = self.threshold * factor


class BatchAbsTopK(BatchTopK):
    """Trained to keep the largest pre-activations in size of a batch, k a token on average, with their sign.

    In use it keeps those whose size is above the threshold.
    """

    name = "batch_abstopk"
    signed = True

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre * (pre.abs() > self.threshold)


class FeatureChoice(Activation):
    """Trained to keep, of each latent, its largest pre-activations over a batch (Ayonrinde, 2024).

    In use it is a JumpReLU with a threshold for each latent, estimated while training.

    Args:
        k: active latents per token on average; a batch of n tokens has `k * n` of them to give away.
        d_sae: number of latents.
        budget: "uniform" gives every latent the same number, "zipf" more to those that fire more often.
        alpha, beta: the Zipf-Mandelbrot law of the budget: the latent of rank r gets a share of `(r + beta)^-alpha`.
    """

    name = "featurechoice"
    wants_k = "number"
    k: int | float
    threshold: Tensor

    def __init__(self, k: int | float, d_sae: int, budget: str = "zipf", alpha: float = 1.0, beta: float = 4.0) -> None:
        super().__init__(k=k, d_sae=d_sae, budget=budget, alpha=alpha, beta=beta)
        self.k, self.budget, self.alpha, self.beta = k, budget, alpha, beta
        self.register_buffer("threshold", torch.zeros(d_sae))

    @classmethod
    def make(cls, d_sae: int, k: int | float | None) -> "FeatureChoice":
        assert k is not None
        return cls(k, d_sae)

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu() * (pre > self.threshold)

    def rescale(self, factor: float) -> None:
        self.threshold = self.threshold * factor

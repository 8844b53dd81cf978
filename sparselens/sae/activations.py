"""What turns pre-activations into latents. Each is one small part of an `SAE`; a new one is added to `ACTIVATIONS`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError, closest
from sparselens.sae.latents import Latents


class Activation(nn.Module):
    """Base of the activation parts: `forward(pre [n, d_sae])` gives codes, dense or `Latents`."""

    name = ""
    k: int | float | None = None
    sparse = False  # True: the codes are `Latents` with k entries a row


class ReLU(Activation):
    """Keeps the positive pre-activations."""

    name = "relu"

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu()


class JumpReLU(Activation):
    """Keeps positive pre-activations above a threshold of each latent (Rajamanoharan et al., 2024)."""

    name = "jumprelu"

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu() * (pre > self.threshold)


class TopK(Activation):
    """Keeps the k largest pre-activations of a token, where positive (Gao et al., 2024)."""

    name = "topk"
    k: int
    sparse = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Latents:
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return Latents(values.relu(), indices, pre.shape[-1])


class BatchTopK(Activation):
    """Trained to keep the k largest per token on average over a batch (Bussmann et al., 2024).

    In use it is a JumpReLU with one threshold, estimated while training: a token's codes never depend on the
    other tokens of its batch. Until a threshold is estimated it is 0, which is a ReLU.
    """

    name = "batchtopk"
    k: int | float
    threshold: Tensor

    def __init__(self, k: int | float) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre.relu() * (pre > self.threshold)

    def select(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """The codes used in training: the `k * n` largest positive pre-activations of the whole batch."""
        positive = pre.relu()
        keep = min(int(self.k * pre.shape[0]), pre.numel())
        values, where = positive.flatten().topk(keep, sorted=False)
        return torch.zeros_like(positive).flatten().scatter(0, where, values).view_as(positive)


ACTIVATIONS = {part.name: part for part in (ReLU, JumpReLU, TopK, BatchTopK)}
ALIASES = {"standard": "relu"}


def make_activation(architecture: str, d_sae: int, k: int | float | None) -> Activation:
    """Build the activation part called `architecture` for `d_sae` latents.

    Raises:
        InputError: the name is unknown (the closest is named), or `k` is missing, impossible, or out of place.
    """
    name = ALIASES.get(architecture, architecture)
    if name not in ACTIVATIONS:
        raise InputError(
            f"unknown architecture {architecture!r}; valid: {', '.join(sorted({*ACTIVATIONS, *ALIASES}))}."
            f"{closest(architecture, [*ACTIVATIONS, *ALIASES])}"
        )
    if name == "relu" or name == "jumprelu":
        if k is not None:
            raise InputError(f"{name} takes no k (it was given k={k}); its sparsity is learned.")
        return ReLU() if name == "relu" else JumpReLU(d_sae)
    if k is None:
        raise InputError(f"{name} needs k, the number of latents kept per token, e.g. k=32.")
    whole = name == "topk"
    if isinstance(k, bool) or not isinstance(k, int | float) or (whole and int(k) != k) or not 0 < k <= d_sae:
        kind = "a whole number from 1" if whole else "a number above 0"
        raise InputError(f"k={k!r} does not fit {name}: it must be {kind} to d_sae={d_sae}.")
    return TopK(int(k)) if whole else BatchTopK(k)

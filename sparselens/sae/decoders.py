"""From codes to reconstructions: the linear decoder, and the slots for others.

A decoder part takes the place of `W_dec`; a bypass part writes to the output without passing through the codes.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselens.sae.latents import Latents, to_dense

if TYPE_CHECKING:
    from sparselens.sae.sae import SAE

# Gathering decoder rows beats the dense product from about this d_sae / k on (1.0x at 12, 1.4x at 18, 10x at 144).
GATHER_FROM = 16
# Numbers held at once in a dense piece of sparse codes (128 MB in float32).
BUFFER = 2**25


class Decoder(nn.Module):
    """Base of the decoder parts: `forward(z) -> [n, d_out]` without `b_dec`, for flat codes, dense or `Latents`.

    Attributes:
        name: what files call it.
        options: what it was built with, as JSON; `type(part)(**part.options)` builds another one.
    """

    name: ClassVar[str] = ""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    @property
    def atoms(self) -> Float[Tensor, "d_sae d_out"]:
        """The linear direction of every latent; `sae.W_dec` gives it."""
        raise NotImplementedError(f"{type(self).__name__} has no atoms.")

    def rescale(self, codes: float, output: float) -> None:
        """Follow a change of unit: codes come in `codes` times as large, outputs are to be `output` times as large."""
        raise NotImplementedError(f"{type(self).__name__} has no rescale.")

    def settle(self) -> None:
        """After each step of training: bring the weights back, in place, to where the part needs them."""


class Bypass(nn.Module):
    """Base of the bypass parts: `forward(sae, x) -> [n, d_out]`, added to the reconstruction.

    `x [n, d_in]` is normalised and centred (`sae.centred`). `decode` gets the result through `sae.measure`.
    """

    name: ClassVar[str] = ""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def rescale(self, codes: float, output: float) -> None:
        """Follow a change of unit of the codes and of the output, as in `Decoder.rescale`."""
        raise NotImplementedError(f"{type(self).__name__} has no rescale.")

    def forward(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """What is added to the reconstruction of each row."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")


def linear_decode(
    z: Latents | Float[Tensor, "n d_sae"], W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "n d_out"]:
    """`z @ W_dec` for flat codes; `Latents` are gathered where that is faster than the dense product."""
    if isinstance(z, Tensor):
        return z @ W_dec
    k = z.values.shape[1]
    if z.d_sae >= GATHER_FROM * k:
        return functional.embedding_bag(z.indices, W_dec, mode="sum", per_sample_weights=z.values)
    rows = max(1, BUFFER // z.d_sae)
    pieces = zip(z.values.split(rows), z.indices.split(rows), strict=True)
    return torch.cat([to_dense(Latents(v, i, z.d_sae)) @ W_dec for v, i in pieces])

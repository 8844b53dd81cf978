"""A yardstick for sparsifiers: channels kept by lot."""

import zlib
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.activation.gates import Gate
from sparselens.activation.linears import Linear
from sparselens.activation.sparse_linear import SparseLinear
from sparselens.activation.sparsifier import Sparsifier
from sparselens.errors import InputError


class RandomChannels(Sparsifier):
    """Keeps as many input channels as the others, chosen by lot for every layer and place in the row.

    The lot depends on nothing else, so generating with a cache gives what reading the whole text gives.

    Args:
        seed: of the lot.
        sparsity, dense_prefix, phase: as for `Sparsifier`.
    """

    def __init__(
        self,
        sparsity: float | int | Mapping[str, float] = 0.5,
        *,
        seed: int = 0,
        dense_prefix: int | float = 8,
        phase: str = "both",
    ):
        self.seed = seed
        super().__init__(sparsity, dense_prefix=dense_prefix, phase=phase, speed="mask")

    def layer(self, linear: Linear, sparsity: float) -> SparseLinear:
        return _Lot(linear, self.gate_for(linear, sparsity), self.seed)


class _Lot(SparseLinear):
    """A layer whose scores are pseudo-random numbers."""

    def __init__(self, linear: Linear, gate: Gate, seed: int):
        super().__init__(linear, gate)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {linear.site}".encode()))
        self.own = torch.randint(2**62, (linear.d_in,), generator=generator)

    def scores(
        self, x: Float[Tensor, "*batch d_in"], at: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        if at is None:
            raise InputError("channels kept by lot need the places of the tokens.")
        mixed = at.long()[..., None] * 6364136223846793005 + self.own.to(x.device)  # int64 wraps around
        for shift, factor in ((29, -4658895280553007687), (32, -7723592293110705685)):  # the finaliser of splitmix64
            mixed = (mixed ^ (mixed >> shift)) * factor
        return ((mixed >> 40) & 0xFFFFFF).float()

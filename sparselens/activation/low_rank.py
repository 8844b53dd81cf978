"""The best approximation of a weight by a matrix of low rank, made once and kept."""

import weakref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.activation.linears import Linear
from sparselens.errors import NotFiniteError


def low_rank(
    weight: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "d_out _"], Float[Tensor, "d_in _"]]:
    """Factors of the truncated singular value decomposition, `W_r = left @ right.T`.

    The singular vectors of the shorter side are the eigenvectors of the weight's Gram matrix, in float64; the weight
    projected on the first `rank` of them is `W_r`. That is several times faster than a full decomposition, and the
    other factor carries the singular values, so that none is rounded away.

    Returns:
        left, right: float32, or float64 for a weight in float64; on the device of the weight.

    Raises:
        NotFiniteError: the weight has values that are NaN or infinite.
    """
    exact = weight.detach().double().cpu()
    if not bool(exact.isfinite().all()):
        raise NotFiniteError("the weight has values that are NaN or infinite, so it has no singular values.")
    wide = exact.shape[0] <= exact.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    first = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    pair = (first, exact.T @ first) if wide else (exact @ first, first)
    kind = torch.promote_types(weight.dtype, torch.float32)
    left, right = (factor.to(weight.device, kind).contiguous() for factor in pair)
    return left, right


class Factors:
    """Low-rank factors of the layers of models, each made at its first use, and again when its weight has changed.

    Args:
        spare: also keep factors up to this rank, by site: where ranks will go up and down, they are made only once.
    """

    def __init__(self, spare: dict[str, int] | None = None):
        self.spare = spare or {}
        self._kept: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()

    def of(self, linear: Linear, rank: int) -> tuple[Float[Tensor, "d_out _"], Float[Tensor, "d_in _"]]:
        """`left, right` of a layer, `[out, rank]` and `[in, rank]`."""
        weight: Tensor = linear.module.weight  # type: ignore[assignment]
        stamp = (weight.data_ptr(), weight._version, weight.dtype)
        found = self._kept.get(linear.module)
        if found is None or found[0] != stamp or found[1].shape[1] < rank:
            found = (stamp, *low_rank(linear.weight, max(rank, self.spare.get(linear.site, 0))))
            self._kept[linear.module] = found
        return found[1][:, :rank], found[2][:, :rank]

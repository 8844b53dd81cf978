"""Sparse codes with a fixed number of entries per token, and the ways out of them.

A latent is **active** when it is not zero (signed latents exist); a zero may occur among the k entries of a row.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import scipy.sparse


class Latents(NamedTuple):
    """Codes of `k` entries a token: `values [..., k]` at `indices [..., k]` (int64) out of `d_sae` latents."""

    values: Tensor
    indices: Tensor
    d_sae: int

    def dense(self) -> Float[Tensor, "... d_sae"]:
        """The codes as a dense tensor `[..., d_sae]`."""
        return to_dense(self)

    def csr(self) -> "scipy.sparse.csr_matrix":
        """The active codes as a SciPy CSR matrix `[tokens, d_sae]`, leading dimensions flattened."""
        return to_csr(self)


def to_dense(z: Latents | Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
    """Return `[..., d_sae]`; a dense tensor comes back as it is."""
    if isinstance(z, Tensor):
        return z
    empty = z.values.new_zeros(*z.values.shape[:-1], z.d_sae)
    return empty.scatter_add(-1, z.indices, z.values)


def to_csr(z: Latents | Float[Tensor, "... d_sae"]) -> "scipy.sparse.csr_matrix":
    """Return the active codes as SciPy CSR `[tokens, d_sae]` with sorted indices, leading dimensions flattened.

    Half precision becomes float32 (SciPy has no half).
    """
    from scipy.sparse import csr_matrix

    width = z.shape[-1] if isinstance(z, Tensor) else z.d_sae
    if isinstance(z, Tensor):
        flat = z.detach().reshape(-1, width)
        rows, columns = flat.nonzero(as_tuple=True)
        values, n_rows = flat[rows, columns], flat.shape[0]
    else:
        k = z.values.shape[-1]
        kept, indices = z.values.detach().reshape(-1, k), z.indices.reshape(-1, k)
        n_rows = kept.shape[0]
        rows, slots = (kept != 0).nonzero(as_tuple=True)
        values, columns = kept[rows, slots], indices[rows, slots]
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    counts = torch.bincount(rows, minlength=n_rows)
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    matrix = csr_matrix((values.cpu().numpy(), columns.cpu().numpy(), pointers.cpu().numpy()), shape=(n_rows, width))
    matrix.sort_indices()
    return matrix


def active_counts(z: Latents | Float[Tensor, "... d_sae"]) -> Int[Tensor, "..."]:
    """Return the number of active latents of each token, `[...]` int64."""
    return ((z if isinstance(z, Tensor) else z.values) != 0).sum(-1)

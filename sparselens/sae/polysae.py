"""A polynomial decoder: two latents that fire together write a third direction (Koromilas et al., 2026).

arXiv 2602.01322. The encoder stays an ordinary one. All codes pass through one orthonormal table U; powers of the
result are written by a matrix each: `x_hat = b_dec + a C1' + l2 a^2 C2' + l3 a^3 C3'` with `a = z U` (powers entry by
entry; lower ranks reuse the first columns). So `sae.W_dec` (the linear atoms `U C1'`) is only part of what a latent
does: see `contribution`, and do not scale its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.errors import FitError, InputError
from sparselens.sae.decoders import Decoder, linear_decode
from sparselens.sae.latents import Latents, to_csr

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.sae.sae import SAE

_LAMBDAS = (-0.5, 0.5)  # of the squares and of the cubes, at the start
_PAIRS = 4096  # pairs measured together


class PolyDecoder(Decoder):
    """Decodes by a polynomial of low rank. Give it to `SAE(..., decoder=PolyDecoder(d_sae, d_out, ranks))`.

    It starts as an ordinary dictionary of random unit rows, without squares and cubes, so that a pair gets a direction
    only where the data asks for one. (The published start is an orthonormal table times random matrices: that bunches
    the atoms, which left 2 to 8 times the variance on planted directions, and gives every pair a random direction.)

    Args:
        d_sae: number of latents.
        d_out: width of the activations it writes.
        ranks: of the linear (at most d_out), the quadratic and the cubic term, falling; two numbers leave the cubic
            term out.
        seed: of the initial weights.

    Attributes:
        U: `[d_sae, ranks[0]]`, orthonormal columns; training keeps them so.
        C1, C2, C3: `[d_out, rank]` each. lambdas `[len(ranks) - 1]`: learned weights of squares and cubes.

    Raises:
        InputError: ranks that do not fall, or do not fit d_sae.
    """

    name = "poly"
    C1: nn.Parameter
    C2: nn.Parameter

    def __init__(self, d_sae: int, d_out: int, ranks: Sequence[int] = (576, 64, 64), seed: int = 0) -> None:
        ranks = tuple(int(r) for r in ranks)
        falls = list(ranks) == sorted(ranks, reverse=True)
        if len(ranks) not in (2, 3) or not falls or ranks[-1] < 1 or ranks[0] > min(d_sae, d_out):
            most = min(d_sae, d_out)
            raise InputError(f"ranks={ranks}: give two or three numbers that fall, from at most {most} to 1.")
        super().__init__(d_sae=d_sae, d_out=d_out, ranks=list(ranks), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.ranks = ranks
        rows = nn.functional.normalize(torch.randn(d_sae, d_out, generator=generator), dim=1)
        left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
        self.U = nn.Parameter(left[:, : ranks[0]].contiguous())
        self.C1 = nn.Parameter((right.T * sizes)[:, : ranks[0]].contiguous())
        for order, rank in enumerate(ranks[1:], 2):
            self.register_parameter(f"C{order}", nn.Parameter(torch.zeros(d_out, rank)))
        self.lambdas = nn.Parameter(torch.tensor(_LAMBDAS[: len(ranks) - 1]))

    @property
    def atoms(self) -> Float[Tensor, "d_sae d_out"]:
        """The linear atoms `U C1'`; their norms are not 1 and cannot be set one by one."""
        return self.U @ self.C1.T

    def forward(self, z: Latents | Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_out"]:
        """What flat codes write, without `b_dec`."""
        a = linear_decode(z, self.U)
        out = a @ self.C1.T
        for order, (rank, weight) in enumerate(zip(self.ranks[1:], self.lambdas, strict=True), 2):
            out = out + weight * (a[:, :rank] ** order @ getattr(self, f"C{order}").T)
        return out

    def pair_directions(self, pairs: Int[Tensor, "n 2"]) -> Float[Tensor, "n d_out"]:
        """What two latents write together at activations of 1, beyond what each writes alone: `2 l2 B_ij` (squares
        only; the cubic term adds to it as activations grow)."""
        both = self.U[pairs[:, 0], : self.ranks[1]] * self.U[pairs[:, 1], : self.ranks[1]]
        return 2 * self.lambdas[0] * (both @ self.C2.T)

    def rescale(self, codes: float, output: float) -> None:
        """Follow a change of unit of the codes and of the output: a power p takes up `codes**p`."""
        for order in range(1, len(self.ranks) + 1):
            getattr(self, f"C{order}").data *= output / codes**order

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the columns of U back to orthonormal, without turning any of them round."""
        self.U.data.copy_(_orthonormal(self.U.data))  # in place: the optimiser holds the same memory


def _orthonormal(U: Tensor) -> Tensor:
    """The orthonormal factor of U whose triangular one has a positive diagonal: an orthonormal U stays as it is."""
    Q, R = torch.linalg.qr(U)
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)


@torch.no_grad()
def contribution(
    sae: "SAE", z: Latents | Float[Tensor, "n d_sae"], feature: int
) -> Float[Tensor, "n d_out"]:
    """What one latent adds to each reconstruction: with it minus without it. Exact for any decoder, where the
    activation times the decoder row is right for the linear one alone.

    Args:
        sae: the dictionary.
        z: flat codes, as `encode` gives them.
        feature: the latent.

    Raises:
        FitError: no such latent, or codes of another dictionary.
    """
    width = z.d_sae if isinstance(z, Latents) else z.shape[1]
    if width != sae.d_sae:
        raise FitError(f"codes have {width} latents, this SAE has d_sae={sae.d_sae}.")
    if not 0 <= feature < sae.d_sae:
        raise FitError(f"feature={feature} is not among the {sae.d_sae} latents, 0 to {sae.d_sae - 1}.")
    if isinstance(z, Latents):
        without: Latents | Tensor = z._replace(values=z.values * (z.indices != feature))
    else:
        without = z.clone()
        without[:, feature] = 0  # type: ignore[index]
    return sae.contributions(z) - sae.contributions(without)


@dataclass(frozen=True)
class Interactions:
    """Pairs of latents that fire together, and what each pair writes; the strongest first.

    Attributes:
        pairs: `[n, 2]`, the smaller index first. count: tokens on which both fire `[n]`.
        strength: norm of what the pair writes beyond both alone, at activations of 1 (activation units) `[n]`.
        covariance: of the two latents' activations `[n]`.
    """

    pairs: Int[Tensor, "n 2"]
    count: Int[Tensor, " n"]
    strength: Float[Tensor, " n"]
    covariance: Float[Tensor, " n"]

    def correlation(self, of: str = "strength") -> float:
        """Pearson correlation over pairs between `of` ("strength" or "covariance") and how often they fire together.

        A dictionary whose pairs only mirror co-occurrence has a high one.
        """
        if of not in ("strength", "covariance"):
            raise InputError(f"of={of!r} is unknown; valid: strength, covariance.")
        if len(self.pairs) < 2:
            return float("nan")
        return float(torch.corrcoef(torch.stack([getattr(self, of).double(), self.count.double()]))[0, 1])

    def to_frame(self) -> "pandas.DataFrame":
        """A row a pair: `feature_a, feature_b, count, strength, covariance`."""
        import pandas as pd

        columns: dict[str, Any] = {"feature_a": self.pairs[:, 0].numpy(), "feature_b": self.pairs[:, 1].numpy()}
        return pd.DataFrame(columns | {n: getattr(self, n).numpy() for n in ("count", "strength", "covariance")})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw strength against how often the pair fires, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 4))[1]
        ax.scatter(self.count, self.strength, s=5, alpha=0.4, color="#0072B2")
        ax.set(xlabel="tokens on which both fire", ylabel="strength of the pair", xscale="log")
        ax.set_title(f"correlation {self.correlation():.2f}", fontsize=10)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().head(20).to_html(index=False, float_format="{:.3g}".format)


@torch.no_grad()
def interactions(sae: "SAE", acts: Float[Tensor, "n d_in"], min_count: int = 20) -> Interactions:
    """Every pair of latents that fires together on at least `min_count` rows, with what the pair writes.

    Args:
        sae: a dictionary with a polynomial decoder.
        acts: activations of its site.
        min_count: rows on which both must fire.

    Raises:
        InputError: another decoder, or a min_count below 1.
    """
    if not isinstance(sae.decoder, PolyDecoder):
        raise InputError("only a dictionary with a polynomial decoder has interactions: SAE(..., decoder=PolyDecoder)")
    if min_count < 1:
        raise InputError(f"min_count must be at least 1, not {min_count}.")
    pairs, count, covariance = _together(to_csr(sae.encode(acts)), min_count)
    found = [sae.decoder.pair_directions(piece).norm(dim=1) for piece in pairs.split(_PAIRS)]
    strength = torch.cat(found) if found else torch.zeros(0)
    order = strength.argsort(descending=True)
    return Interactions(pairs[order], count[order], strength[order], covariance[order])


def _together(codes: "scipy.sparse.csr_matrix", min_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of columns that are active together often enough, how often, and the covariance of their values."""
    import numpy as np
    from scipy.sparse import triu

    active = codes.copy()
    active.data = np.ones_like(active.data, dtype=np.float32)
    both = triu(active.T @ active, k=1).tocoo()
    kept = both.data >= min_count
    i, j = both.row[kept], both.col[kept]
    means = np.asarray(codes.mean(axis=0), dtype=np.float64).ravel()
    product = (codes.T.astype(np.float64) @ codes).tocsr()
    joint = np.asarray(product[i, j]).ravel() if len(i) else np.zeros(0)
    covariance = joint / max(1, codes.shape[0]) - means[i] * means[j]
    pairs = torch.from_numpy(np.stack([i, j], axis=1).astype(np.int64))
    return pairs, torch.from_numpy(both.data[kept].astype(np.int64)), torch.from_numpy(covariance)

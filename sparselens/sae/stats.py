"""Running sums behind the metrics of a dictionary: one definition each, float64, any number of batches."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.sae.latents import Latents, active_counts


class FvuSum:
    """Fraction of variance unexplained: `sum ||x - x_hat||^2 / sum ||x - mean(x)||^2` over all rows added.

    The mean is over those same rows. Sums are kept relative to the mean of the first batch, so a large common
    offset costs no digits.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.error = 0.0
        self._square = 0.0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(())

    def add(self, x: Float[Tensor, "*batch d"], x_hat: Float[Tensor, "*batch d"]) -> None:
        """Add rows `x [*batch, d]` and what stands in for them, `x_hat` of the same shape."""
        flat = x.detach().reshape(-1, x.shape[-1]).double()
        if not flat.shape[0]:
            return
        if self._shift is None:
            self._shift = flat.mean(0)
            self._sum = torch.zeros_like(self._shift)
        centred = flat - self._shift
        self.rows += flat.shape[0]
        self.error += float((flat - x_hat.detach().reshape(flat.shape).double()).square().sum())
        self._square += float(centred.square().sum())
        self._sum += centred.sum(0)

    @property
    def variance(self) -> float:
        """The sum `||x - mean(x)||^2` over the rows added (not divided by their number)."""
        if not self.rows:
            return 0.0
        return max(self._square - float(self._sum.square().sum()) / self.rows, 0.0)

    @property
    def value(self) -> float:
        """The fraction; NaN when no rows were added or all rows are equal."""
        return self.error / self.variance if self.variance > 0 else float("nan")


class ActiveSum:
    """Mean number of active latents per token (l0), and which latents were ever active."""

    def __init__(self, d_sae: int) -> None:
        self.rows = 0
        self.fires = torch.zeros(d_sae, dtype=torch.int64)
        self._active = 0

    def add(self, z: Latents | Float[Tensor, "*batch d_sae"]) -> None:
        """Add the codes of some tokens."""
        counts = active_counts(z)
        self.rows += counts.numel()
        self._active += int(counts.sum())
        if isinstance(z, Tensor):
            self.fires += (z != 0).reshape(-1, z.shape[-1]).sum(0).cpu()
        else:
            which = z.indices[z.values != 0]
            self.fires += torch.bincount(which, minlength=z.d_sae).cpu()

    @property
    def l0(self) -> float:
        """Mean number of active latents per token; NaN when no tokens were added."""
        return self._active / self.rows if self.rows else float("nan")

    @property
    def dead_share(self) -> float:
        """Share of latents that never fired on the tokens added."""
        return float((self.fires == 0).double().mean())

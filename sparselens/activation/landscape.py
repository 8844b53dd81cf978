"""For one layer: what channels and rank cost, and what they bring."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.activation.channels import site_of
from sparselens.activation.linears import column_norms, linears
from sparselens.activation.r_sparse import Budget, RSparse, split_budget
from sparselens.errors import InputError
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

GRID = 25
RHOS = 41


@dataclass(frozen=True)
class Landscape:
    """Error of one linear layer over kept channels and rank. Made by `RSparse.landscape`.

    Attributes:
        budget: the layer, its budget, and the point that the recipe chose.
        tokens: how many tokens the errors are taken on.
        channels, ranks: the grid.
        error: `[channels, ranks]` relative errors of the output, `||y - y_dense|| / ||y_dense||` over all tokens.
        line: `(rho, kept, rank, error)` along the line of the layer's budget, rho ascending from 0 to 1.
    """

    budget: Budget
    tokens: int
    channels: tuple[int, ...]
    ranks: tuple[int, ...]
    error: Float[Tensor, "channels ranks"]
    line: tuple[tuple[float, int, int, float], ...]

    @property
    def best(self) -> tuple[float, int, int, float]:
        """`(rho, kept, rank, error)` of the least error within the budget; of equals the largest rho."""
        return min(reversed(self.line), key=lambda point: point[3])

    def to_frame(self) -> "pandas.DataFrame":
        """A row a point of the grid: kept, rank, error, read (weights read for a token)."""
        import pandas as pd

        one = self.budget
        return pd.DataFrame([
            {"kept": kept, "rank": rank, "error": float(self.error[a, b]),
             "read": kept * one.d_out + rank * (one.d_in + one.d_out)}
            for a, kept in enumerate(self.channels)
            for b, rank in enumerate(self.ranks)
        ])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        best = self.best
        rows: list[list[Any]] = [["rho", "kept", "rank", "error"], *(list(point) for point in self.line[::4])]
        title = f"R-Sparse at {self.budget.site}: least error {best[3]:.3f} at rho {best[0]:.2f}"
        return report_html(title, rows)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the errors, the line of the budget, and the recipe's choice on it. Returns the axes."""
        from sparselens.views import landscape

        one = self.budget
        return landscape(self.channels, self.ranks, self.error.numpy(), (one.d_out, one.d_in), one.sparsity,
                         (one.kept, one.rank), ax, title=one.site)


def survey(
    recipe: RSparse, model: LiveModel, texts: Any, layer: int, proj: str, max_tokens: int = 512
) -> Landscape:
    """Measure the landscape of one layer on what it reads in the dense model.

    Args:
        recipe: whose choice is shown.
        model: a live model.
        texts: what `model.batches` takes.
        layer, proj: the linear layer, as 0 and "q".
        max_tokens: tokens to take the errors on; the first of each row, an attention sink, is left out.

    Raises:
        InputError: no such layer, one that the recipe leaves dense, or no tokens.
    """
    (linear,) = linears(model, site_of(recipe, model, layer, proj))
    (budget,) = recipe.budgets(model, linear.site).rows
    x = _inputs(model, texts, linear.site, max_tokens).double().cpu()
    weight = linear.weight.double().cpu()
    _, values, axes = torch.linalg.svd(weight, full_matrices=False)
    place = (x.abs() * column_norms(weight)).argsort(-1, descending=True).argsort(-1)
    size = float((x @ weight.T).square().sum())
    tails: dict[int, Tensor] = {}

    def error(kept: int, rank: int) -> float:
        """`||sum over dropped j of x_j (W - W_r)_j||`: what singular values from `rank` on do to dropped channels."""
        if kept not in tails:
            parts = (x.masked_fill(place < kept, 0) @ axes.T).square().sum(0) * values.square()
            tails[kept] = torch.cat([parts.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.double)])
        return (float(tails[kept][rank]) / size) ** 0.5 if size else 0.0

    top = min(2 * split_budget(budget.d_out, budget.d_in, budget.sparsity, 0.0)[1] + 1, len(values))
    channels, ranks = _steps(budget.d_in), _steps(top)
    line = []
    for i in range(RHOS):
        rho = i / (RHOS - 1)
        kept, rank = split_budget(budget.d_out, budget.d_in, budget.sparsity, rho)
        line.append((rho, kept, rank, error(kept, rank)))
    grid = torch.tensor([[error(kept, rank) for rank in ranks] for kept in channels])
    return Landscape(budget, len(x), channels, ranks, grid, tuple(line))


def _inputs(model: LiveModel, texts: Any, site: str, max_tokens: int) -> Tensor:
    """What a layer reads, `[tokens, d_in]`."""
    parts, count = [], 0
    with model.untouched():
        for batch in model.stream(texts, site, long="chunk", empty="skip"):
            parts.append(batch.values[~batch.first])
            count += len(parts[-1])
            if count >= max_tokens:
                break
    if not count:
        raise InputError("the texts have no tokens to measure on, besides the first of each, which is left out.")
    return torch.cat(parts)[:max_tokens]


def _steps(top: int) -> tuple[int, ...]:
    """Whole numbers from 0 to `top`, about `GRID` of them."""
    return tuple(sorted({round(top * i / (GRID - 1)) for i in range(GRID)}))

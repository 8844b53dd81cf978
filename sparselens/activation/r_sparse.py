"""R-Sparse (Zhang et al., 2025, arXiv 2504.19449): exact weights for few channels, a low-rank branch for the others."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.activation.gates import Gate, Threshold, TopK
from sparselens.activation.kernels import Columns
from sparselens.activation.linears import Linear, linears, spread
from sparselens.activation.low_rank import Factors
from sparselens.activation.sparse_linear import SparseLinear
from sparselens.activation.sparsifier import Sparsifier
from sparselens.attach import Sites
from sparselens.errors import FileFormatError, InputError, closest
from sparselens.files import read_json, write_json
from sparselens.models.engine import Change
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.activation.calibration import Calibration
    from sparselens.activation.landscape import Landscape

SCORES = ("weighted", "magnitude")
FORMAT = "sparselens R-Sparse recipe 1"
#: Ranks up to this are not worth a branch of their own.
LOWEST = 1


def split_budget(d_out: int, d_in: int, sparsity: float, rho: float) -> tuple[int, int]:
    """Kept channels and rank of a layer that may read `(1 - sparsity) * d_in * d_out` weights a token.

    `rho` of it goes to channels, of `d_out` weights each; the rest to the rank, `d_in + d_out` each. A rank of 1 or
    less is not used; its share goes to channels too.
    """
    share = 1 - sparsity
    kept = max(floor(d_in * share * rho + 1e-6), int(rho > 0))
    rank = max(floor(((d_in * share - kept) * d_out) / (d_in + d_out) + 1e-6), 0)
    if kept and rank <= LOWEST:
        return max(floor(d_in * share + 1e-6), 1), 0
    return kept, rank


class RSparse(Sparsifier):
    """Keeps the input channels of largest `|x_j| * ||W_:,j||`, and computes all others through a truncated SVD.

    `y = (x * kept) W^T + (x * dropped) W_r^T + b`. Each layer reads at most `1 - sparsity` of its weights a token.

    Args:
        sparsity: share of the weights not to read; as for `Sparsifier`.
        rho: share of what is read that goes to channels, from 0 (only the SVD) to 1 (only channels); or projection,
            site or glob -> share, where layers not named have 1. `RSparse.search` finds one for each layer.
        score_at_rho1: score of layers whose rho is 1: "weighted" as elsewhere, or "magnitude" for `|x_j|`, as in the
            authors' code.
        gate, dense_prefix, phase, calibration, speed: as for `Sparsifier`. The paper uses gate="threshold".

    Example:
        >>> with m.attach(sl.RSparse(sparsity=0.5, rho={"blocks.0.attn.q.hook_in": 0.15})) as lens: lens.report(texts)
    """

    def __init__(
        self,
        sparsity: float | int | Mapping[str, float] = 0.5,
        *,
        rho: float | int | Mapping[str, float] = 0.95,
        score_at_rho1: str = "weighted",
        gate: str = "topk",
        dense_prefix: int | float = 8,
        phase: str = "both",
        calibration: "Calibration | None" = None,
        speed: str = "auto",
    ):
        if score_at_rho1 not in SCORES:
            raise InputError(f"score_at_rho1={score_at_rho1!r} is unknown; valid are {', '.join(SCORES)}."
                             f"{closest(str(score_at_rho1), SCORES)}")
        self.rho: float | Mapping[str, float] = (
            {str(name): _checked(value) for name, value in rho.items()} if isinstance(rho, Mapping) else _checked(rho)
        )
        self.score_at_rho1, self.factors = score_at_rho1, Factors()
        super().__init__(sparsity, gate=gate, dense_prefix=dense_prefix, phase=phase, calibration=calibration,
                         speed=speed)

    def __repr__(self) -> str:
        rho = f"{len(self.rho)} values" if isinstance(self.rho, Mapping) else self.rho
        return f"RSparse({self.sparsity}, rho={rho}, gate={self.gate!r}, dense_prefix={self.dense_prefix})"

    def edits(self, model: LiveModel, at: Sites = None) -> Sequence[Change]:
        """What to install. Warns of layers whose rho is below 1 but buys no rank."""
        bare = [row for row in self.budgets(model, at).rows if row.rho < 1 and not row.rank]
        if bare:
            warnings.warn(
                f"{len(bare)} layers have a rho below 1 that leaves a rank of {LOWEST} or less, such as "
                f"{bare[0].site} ({bare[0].rho:g}). They read channels alone.",
                stacklevel=2,
            )
        return super().edits(model, at)

    def layers(self, model: LiveModel, at: Sites = None) -> list[SparseLinear]:
        found = {linear.site: linear for linear in linears(model, at)}
        return [self._layer(found[row.site], row) for row in self.budgets(model, at).rows if row.sparsity]

    def _layer(self, linear: Linear, row: "Budget") -> SparseLinear:
        weighted = row.rho < 1 or self.score_at_rho1 == "weighted"
        gate: Gate = TopK(row.kept)
        if self.gate == "threshold" and self.calibration is not None and row.kept:
            dropped = 1 - (1 - row.sparsity) * (row.rho if row.rank else 1)
            gate = Threshold(self.calibration.threshold(linear.site, dropped, weighted))
        return _RankAware(linear, gate, weighted, row.rank, self.factors)

    def budgets(self, model: LiveModel, at: Sites = None) -> "Budgets":
        """How many channels and which rank each layer of a model gets. `at`: only these inputs of linear layers."""
        every = linears(model)
        share, rho = self.shares(model, every), spread(self.rho, model, every, default=1.0, what="rho")
        rows = []
        for linear in every if at is None else linears(model, at):
            size, sparsity = (linear.d_out, linear.d_in), share[linear.site]
            kept, rank = split_budget(*size, sparsity, rho[linear.site]) if sparsity else (linear.d_in, 0)
            rows.append(Budget(linear.site, linear.layer, linear.proj, *size, sparsity, rho[linear.site], kept, rank))
        return Budgets(model.name, tuple(rows))

    def landscape(self, model: LiveModel, texts: Any, layer: int, proj: str, *, max_tokens: int = 512) -> "Landscape":
        """The error of one layer over kept channels and rank, on texts, with this recipe's choice. See `Landscape`."""
        from sparselens.activation.landscape import survey

        return survey(self, model, texts, layer, proj, max_tokens)

    @classmethod
    def search(cls, model: LiveModel, texts: Any, sparsity: float = 0.5, **settings: Any) -> "RSparse":
        """The recipe of an evolutionary search; `search_rho` has the settings, and gives the history too."""
        from sparselens.activation.search import search_rho

        return search_rho(model, texts, sparsity, **settings).recipe

    def save(self, path: str | os.PathLike) -> Path:
        """Write the recipe as JSON. A calibration is saved by itself."""
        write_json(path, {
            "format": FORMAT, "sparsity": self.sparsity, "rho": self.rho, "score_at_rho1": self.score_at_rho1,
            "gate": self.gate, "dense_prefix": self.dense_prefix, "phase": self.phase,
        })
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike, calibration: "Calibration | None" = None) -> "RSparse":
        """Read what `save` wrote.

        Args:
            path: the file.
            calibration: needed by recipes with gate="threshold".

        Raises:
            InputError: no such file, or no calibration where one is needed. FileFormatError: not such a recipe.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"{file} is not there, so no recipe can be read from it.")
        facts = read_json(file)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise FileFormatError(f"{file} is not an R-Sparse recipe that can be read ({FORMAT!r}).")
        names = ("rho", "score_at_rho1", "gate", "dense_prefix", "phase")
        missing = [name for name in ("sparsity", *names) if name not in facts]
        unknown = [name for name in facts if name not in ("format", "sparsity", *names)]
        if missing or unknown:
            raise FileFormatError(f"{file}: missing {missing}, unknown {unknown}. Was it edited?")
        return cls(facts["sparsity"], **{name: facts[name] for name in names}, calibration=calibration)


class _RankAware(SparseLinear):
    """A layer with a low-rank branch for the channels that are dropped."""

    def __init__(self, linear: Linear, gate: Gate, weighted: bool, rank: int, factors: Factors):
        super().__init__(linear, gate, weighted)
        self.rank, self.factors = rank, factors
        self.extra = rank * (linear.d_in + linear.d_out)

    def product(
        self, x: Float[Tensor, "*batch d_in"], keep: Bool[Tensor, "*batch d_in"], original: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "*batch d_out"]:
        y = super().product(x, keep, original)
        if not self.rank:
            return y
        left, right = self.factors.of(self.linear, self.rank)
        return y + ((x.masked_fill(keep, 0).to(right.dtype) @ right) @ left.T).to(y.dtype)

    def make_columns(self) -> Columns:
        return Columns(self.linear.weight, self.factors.of(self.linear, self.rank) if self.rank else None)


@dataclass(frozen=True)
class Budget:
    """What one linear layer may read, and how it is spent. Sizes and weights are counts."""

    site: str
    layer: int
    proj: str
    d_out: int
    d_in: int
    sparsity: float
    rho: float
    kept: int
    rank: int

    @property
    def read(self) -> int:
        """Weights read for a token."""
        return self.kept * self.d_out + self.rank * (self.d_in + self.d_out)

    @property
    def allowed(self) -> float:
        """Weights that may be read for a token."""
        return (1 - self.sparsity) * self.d_in * self.d_out


@dataclass(frozen=True)
class Budgets:
    """The layers of a model under a recipe. Made by `RSparse.budgets`."""

    model: str
    rows: tuple[Budget, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a layer: site, layer, proj, d_out, d_in, sparsity, rho, kept, rank, read, allowed."""
        import pandas as pd

        return pd.DataFrame([vars(row) | {"read": row.read, "allowed": row.allowed} for row in self.rows])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        names = ["site", "rho", "kept", "rank", "read", "allowed"]
        rows: list[list[Any]] = [names, *self.to_frame()[names].itertuples(index=False)]
        return report_html(f"R-Sparse on {self.model}: what each layer reads for a token", [list(row) for row in rows])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw rho of each block and projection. Returns the axes."""
        from sparselens.views import rho_grid

        table = self.to_frame().pivot(index="layer", columns="proj", values="rho").fillna(1.0)
        names = list(dict.fromkeys(row.proj for row in self.rows))
        return rho_grid(table[names].to_numpy(), names, ax, title=f"R-Sparse on {self.model}")


def _checked(rho: Any) -> float:
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 <= rho <= 1:
        raise InputError(f"rho={rho!r} is not in [0, 1]: 1 spends the whole budget on channels, 0 on the rank.")
    return float(rho)

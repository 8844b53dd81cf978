"""WINA (Chen et al., 2025, arXiv 2505.19427): input channels are weighed by the norms of their weight columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparselens.activation.sparsifier import Sparsifier
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    from sparselens.activation.calibration import Calibration

SCOPES = ("official", "all")
OFFICIAL = ("k", "gate")


class WINA(Sparsifier):
    """Keeps the input channels of largest `|x_j| * ||W_:,j||`. R-Sparse used the same score before.

    Args:
        scope: "official" weighs by the norms only for the k and gate projections, as the paper's section 3.4 and code
            do, and takes `|x_j|` elsewhere; "all" weighs everywhere.
        sparsity, gate, dense_prefix, phase, calibration, allocation, transform, speed: as for `Sparsifier`. The paper
            uses transform="orthogonal".

    Example:
        >>> with m.attach(sl.WINA(sparsity=0.5)) as lens: lens.report(texts)
    """

    def __init__(
        self,
        sparsity: float | int | Mapping[str, float] = 0.5,
        *,
        scope: str = "official",
        gate: str = "topk",
        dense_prefix: int | float = 8,
        phase: str = "both",
        calibration: "Calibration | None" = None,
        allocation: str = "uniform",
        transform: str | None = None,
        speed: str = "auto",
    ):
        if scope not in SCOPES:
            raise InputError(f"scope={scope!r} is unknown; valid are {', '.join(SCOPES)}.{closest(str(scope), SCOPES)}")
        self.scope = scope
        super().__init__(sparsity, gate=gate, dense_prefix=dense_prefix, phase=phase, calibration=calibration,
                         allocation=allocation, transform=transform, speed=speed)

    @property
    def key(self) -> str:
        return f"{super().key}-{self.scope}"

    def weighted(self, proj: str) -> bool:
        return self.scope == "all" or proj in OFFICIAL

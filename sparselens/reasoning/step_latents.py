"""The codes of steps: one sparse vector a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import pandas
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class StepLatents:
    """What `StepSAE.transform` gives.

    Attributes:
        z: codes `[steps, n]`, of L2 norm 1, or 0 where no feature is on.
        norm: `[steps]` their norm before it was taken out. It is kept because the magnitude tells something too.
        problems: the problem of each step.
    """

    z: Float[Tensor, "steps n"]
    norm: Float[Tensor, "steps"]
    problems: Sequence[Any]

    def __len__(self) -> int:
        return len(self.z)

    def __repr__(self) -> str:
        return f"StepLatents({len(self):,} steps, {self.z.shape[1]} features, l0 {float(self.l0.float().mean()):.1f})"

    @property
    def l0(self) -> Tensor:
        """`[steps]` active features. At least the L1 norm squared."""
        return (self.z != 0).sum(-1)

    @property
    def l1(self) -> Tensor:
        """`[steps]` L1 norms, between 1 and the root of n."""
        return self.z.abs().sum(-1)

    @property
    def off_share(self) -> float:
        """Share of steps without any active feature."""
        return float((self.norm == 0).float().mean())

    @property
    def matrix(self) -> "csr_array":
        """The codes as a scipy CSR array `[steps, n]`."""
        from scipy.sparse import csr_array

        return csr_array(self.z.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.z.numpy(), dtype=dtype)

    def top(self, step: int, k: int = 5) -> list[tuple[int, float]]:
        """The strongest features of a step, as (feature, value), strongest first."""
        values, features = self.z[step].topk(min(k, self.z.shape[1]))
        return [(int(f), float(v)) for f, v in zip(features, values, strict=True) if v != 0]

    def steps_of(self, feature: int, k: int = 10) -> list[tuple[int, float]]:
        """The steps in which a feature is strongest, as (step, value), strongest first."""
        values, steps = self.z[:, feature].topk(min(k, len(self)))
        return [(int(s), float(v)) for s, v in zip(steps, values, strict=True) if v != 0]

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step: `problem`, `l0`, `l1`, `norm`, `top` (the five strongest features)."""
        import pandas as pd

        tops = [[feature for feature, _ in self.top(i)] for i in range(len(self))]
        return pd.DataFrame({"problem": list(self.problems), "l0": self.l0.numpy(), "l1": self.l1.numpy(),
                             "norm": self.norm.numpy(), "top": tops})

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        mean = torch.mean
        rows = [("steps", len(self)), ("active features a step", float(mean(self.l0.float()))),
                ("L1 norm", float(mean(self.l1))), ("steps with none", self.off_share)]
        return report_html("Codes of steps", rows)

"""The weight of the sparsity penalty, steered so that the mean L1 norm of the codes reaches a target."""

from dataclasses import asdict, dataclass
from typing import Any

from sparselens.errors import InputError


@dataclass
class SparsityController:
    """Raises the weight while the mean `||z||_1` is above the target and lowers it below (Yang et al., 2026).

    Codes have L2 norm 1, so `1 <= ||z||_1 <= sqrt(n)`, and a code has at least `||z||_1 ** 2` active features: a target
    of 10 asks for 100 or more, 5 for 25, 3 for 9. It is no count.

    Args:
        target: of the mean L1 norm.
        every: updates of the weight come after so many batches. The paper's 100 is slow: from 1e-4 to 1e-2 it takes
            46,000 batches.
        rate: the weight is multiplied by `1 + rate` or `1 - rate`.
        bounds: the weight stays between these.
        weight: to start with.

    Raises:
        InputError: a target below 1, or numbers out of order.
    """

    target: int | float = 10
    every: int = 100
    rate: float = 0.01
    bounds: tuple[float, float] = (1e-6, 0.1)
    weight: float = 1e-4
    total: float = 0.0
    seen: int = 0

    def __post_init__(self) -> None:
        self.bounds = (float(self.bounds[0]), float(self.bounds[1]))
        if self.target < 1:
            raise InputError(f"target={self.target}: the L1 norm of a code of L2 norm 1 is at least 1.")
        if self.every < 1 or not 0 < self.rate < 1 or not 0 < self.bounds[0] <= self.bounds[1]:
            raise InputError(f"every={self.every}, rate={self.rate}, bounds={self.bounds}: every is 1 or more, the "
                             "rate between 0 and 1, and the bounds are positive and in order.")

    def update(self, l1: float) -> float:
        """Take in the mean L1 norm of one batch; returns the weight for the next."""
        self.total, self.seen = self.total + l1, self.seen + 1
        if self.seen == self.every:
            up = self.total / self.seen > self.target
            self.weight *= 1 + self.rate if up else 1 - self.rate
            self.weight = min(max(self.weight, self.bounds[0]), self.bounds[1])
            self.total, self.seen = 0.0, 0
        return self.weight

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, its state included."""
        return asdict(self) | {"bounds": list(self.bounds)}

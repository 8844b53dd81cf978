"""Quantiles of a stream of magnitudes, in fixed memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import InputError, NotFiniteError

#: A bin holds the float32 numbers that agree in their exponent and in the first bits of their mantissa.
MANTISSA_BITS = 7
_SHIFT = 23 - MANTISSA_BITS
_BINS = 1 << (8 + MANTISSA_BITS)
_INFINITE = 255 << MANTISSA_BITS
#: A quantile is off by less than this share of its value: the relative width of a bin.
ERROR = 2.0**-MANTISSA_BITS


class Sketch:
    """Counts of `|value|` in bins whose width is a fixed share of the value (0.8 %), over all of float32.

    Sketches of two streams add up to the sketch of both, exactly. A quantile is off by less than `ERROR` times its
    value, whatever the law of the values; below the least normal number, 1e-38, by less than that number.

    Args:
        counts: `[32768]` counts per bin; none by default.
    """

    def __init__(self, counts: Int[Tensor, "bins"] | None = None):
        self.counts = torch.zeros(_BINS, dtype=torch.int64) if counts is None else counts

    @property
    def count(self) -> int:
        """How many values went in."""
        return int(self.counts.sum())

    def add(self, values: Float[Tensor, "*any"]) -> None:
        """Put values in; their sign does not count.

        Raises:
            NotFiniteError: one of them is NaN or infinite.
        """
        bins = values.detach().float().abs().view(torch.int32).bitwise_right_shift(_SHIFT).flatten()
        new = torch.bincount(bins, minlength=_BINS).cpu()
        if bool(new[_INFINITE:].any()):
            raise NotFiniteError("NaN or infinite activations cannot be counted.")
        self.counts = self.counts + new

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of both streams."""
        return Sketch(self.counts + other.counts)

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the values does not exceed.

        Raises:
            InputError: nothing went in, or `q` is not in [0, 1].
        """
        total = self.count
        if not total or not 0 <= q <= 1:
            raise InputError(f"no quantile {q} of {total:,} values: q must be in [0, 1], of one value or more.")
        rank = max(q * total, 1.0)
        sums = self.counts.cumsum(0)
        at = int(torch.searchsorted(sums, torch.tensor(rank, dtype=torch.float64).ceil().long()))
        inside = (rank - float(sums[at] - self.counts[at])) / float(self.counts[at])
        low, high = (_edge(i) for i in (at, at + 1))
        return low + (high - low) * min(inside, 1.0)

    def trimmed(self) -> tuple[int, Int[Tensor, "occupied"]]:
        """The first bin that is not empty, and the counts from there to the last one that is not."""
        some = self.counts.nonzero()[:, 0]
        low, high = (int(some[0]), int(some[-1]) + 1) if len(some) else (0, 0)
        return low, self.counts[low:high].clone()

    @classmethod
    def of_trimmed(cls, low: int, counts: Tensor) -> "Sketch":
        """The inverse of `trimmed`.

        Raises:
            InputError: these counts are not those of a sketch.
        """
        if low < 0 or low + len(counts) > _INFINITE or counts.dtype != torch.int64 or bool((counts < 0).any()):
            raise InputError("these are not the counts of a sketch.")
        whole = cls()
        whole.counts[low : low + len(counts)] = counts
        return whole


def _edge(bin_: int) -> float:
    return float(torch.tensor(bin_ << _SHIFT, dtype=torch.int32).view(torch.float32))

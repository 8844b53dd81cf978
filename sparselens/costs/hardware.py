"""Accelerators: what an hour, an operation and a byte of them cost."""

from dataclasses import dataclass

from sparselens.errors import InputError, closest


@dataclass(frozen=True)
class Hardware:
    """One accelerator. Figures of Step-3 (arXiv 2507.19427), tables 4 and 5.

    Attributes:
        name: its name.
        bandwidth: bytes a second from its memory.
        usd_per_hour: rent of one card; None when not published.
        fp16, fp8: peak operations a second; None where it has no such arithmetic, or it is not published.
        network: bytes a second in and out of a server of eight cards.
    """

    name: str
    bandwidth: float
    usd_per_hour: float | None = None
    fp16: float | None = None
    fp8: float | None = None
    network: float | None = None

    @property
    def peak(self) -> float:
        """Operations a second: in 8 bits where the card has them, else in 16."""
        return self._known("peak", self.fp8 or self.fp16)

    @property
    def roofline(self) -> float:
        """Operations per byte from which on arithmetic, not memory, is what a card waits for."""
        return self.peak / self.bandwidth

    @property
    def flop_price(self) -> float:
        """USD per operation at peak."""
        return self._known("usd_per_hour", self.usd_per_hour) / 3600 / self.peak

    @property
    def byte_price(self) -> float:
        """USD per byte read at full bandwidth."""
        return self._known("usd_per_hour", self.usd_per_hour) / 3600 / self.bandwidth

    def _known(self, what: str, value: float | None) -> float:
        if not value:
            raise InputError(f"the {what} of {self.name} is not known: give costs.Hardware(...) with that number.")
        return value


HARDWARE = {
    one.name: one
    for one in (
        Hardware("H800", 3.35e12, 2.00, 9.89e14, 1.98e15, 400e9),
        Hardware("H20", 4.00e12, 0.80, 1.48e14, 2.96e14, 400e9),
        Hardware("A800", 2.00e12, 0.75, 3.12e14, None, 200e9),
        Hardware("910B", 1.60e12, 0.67, 2.80e14, None, 200e9),
        Hardware("L20", 864e9),
        Hardware("L4", 300e9),
    )
}
PRICED = ("H800", "H20", "A800", "910B")


def hardware(name: "str | Hardware") -> Hardware:
    """A card by name, or one's own as it is.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(name, Hardware):
        return name
    if name not in HARDWARE:
        raise InputError(f"no card {name!r}: there are {', '.join(HARDWARE)}, or make a costs.Hardware(...)."
                         f"{closest(name, HARDWARE)}")
    return HARDWARE[name]

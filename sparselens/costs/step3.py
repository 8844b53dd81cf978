"""Step-3: what a decoded token costs on which card, attention and feed-forward priced apart (arXiv 2507.19427)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparselens.costs.hardware import PRICED, Hardware, hardware
from sparselens.costs.shapes import Shape, shape
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

MILLION = 1e6
STAGE_SECONDS = 0.050 / 3  # a third of 50 ms a token: attention, communication and feed-forward take turns


@dataclass(frozen=True)
class DecodeCost:
    """What one million decoded tokens cost. Made by `decode_cost`.

    Attributes:
        shape: of the model.
        context: tokens before the decoded one.
        density: share of them that is attended to.
        cards: the cards that were priced.
    """

    shape: Shape
    context: int
    density: float
    cards: tuple[Hardware, ...]

    def attention(self, card: str | Hardware) -> float:
        """USD per million tokens for attention: the dearer of operations and bytes of the core, plus projections.

        The projections stay outside the maximum, as in table 6 of the report.
        """
        on = hardware(card)
        core = max(
            self.shape.core_flops(self.context, self.density) * on.flop_price,
            self.shape.kv_bytes(self.context, self.density) * on.byte_price,
        )
        return MILLION * (core + self.shape.linear_flops * on.flop_price)

    def ffn(self, card: str | Hardware) -> float:
        """USD per million tokens for the feed-forward layers, in batches large enough to reach the peak."""
        return MILLION * self.shape.ffn_flops * hardware(card).flop_price

    def total(self, deployment: str = "afd") -> float:
        """USD per million tokens on the cheapest cards.

        Args:
            deployment: "afd" takes the cheapest card for each of the two parts; "together" one card for both.
        """
        if deployment == "afd":
            return min(map(self.attention, self.cards)) + min(map(self.ffn, self.cards))
        if deployment == "together":
            return min(self.attention(card) + self.ffn(card) for card in self.cards)
        raise InputError(f"deployment is 'afd' or 'together', not {deployment!r}.")

    def to_frame(self) -> "pandas.DataFrame":
        """A row a card: attention, ffn, total (USD per million tokens), and bound ("memory" or "arithmetic")."""
        import pandas as pd

        intensity = self.shape.core_flops(self.context, self.density) / self.shape.kv_bytes(self.context, self.density)
        return pd.DataFrame([
            {"model": self.shape.name, "card": card.name, "attention": self.attention(card), "ffn": self.ffn(card),
             "total": self.attention(card) + self.ffn(card),
             "bound": "arithmetic" if intensity > card.roofline else "memory"}
            for card in self.cards
        ])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the cost on each card, feed-forward on top of attention. Returns the axes."""
        from sparselens.costs.figures import axes

        frame, ax = self.to_frame(), axes(ax)
        ax.bar(frame["card"], frame["attention"], color="#0072B2", label="attention")
        ax.bar(frame["card"], frame["ffn"], bottom=frame["attention"], color="#D55E00", label="feed-forward")
        ax.set(ylabel="USD per million tokens", title=f"{self.shape.name}, {self.context:,} tokens")
        ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4f}".format)


def decode_cost(
    model: Any, context: int, *, density: Any = 1.0, cards: Sequence[str | Hardware] = PRICED
) -> DecodeCost:
    """Price a decoded token.

    Args:
        model: a name of `costs.PRESETS`, a `costs.Shape`, or a live or transformers model.
        context: tokens before the decoded one.
        density: share of them that is attended to, from above 0 to 1: a number, or a measurement that has `.density`.
            Operations of the core and bytes of the cache both shrink with it.
        cards: names of `costs.HARDWARE`, or `costs.Hardware`.

    Raises:
        InputError: an unknown model or card, or numbers out of range.
    """
    if not cards:
        raise InputError(f"name at least one card, such as {', '.join(PRICED)}.")
    return DecodeCost(shape(model), whole(context), share_of(density), tuple(map(hardware, cards)))


def share_of(density: Any) -> float:
    """A density as a number.

    Raises:
        InputError: no number above 0 and up to 1.
    """
    value = getattr(density, "density", density)
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"density is the share of tokens attended to, above 0 and at most 1; got {value!r}.")
    return float(value)


def whole(context: int) -> int:
    """A number of tokens.

    Raises:
        InputError: not a whole number from 1 on.
    """
    if not isinstance(context, int) or context < 1:
        raise InputError(f"a number of tokens is whole and at least 1; got {context!r}.")
    return context


def moe_sparsity_floor(
    card: str | Hardware, *, hidden: int, layers: int, stage_seconds: float = STAGE_SECONDS
) -> float:
    """Least share of active experts at which the network can feed experts that compute at peak.

    `hidden * FLOPs * layers * 3 / (2 * network * bandwidth * stage)`: the batch that reaches the peak with 8-bit
    weights, `FLOPs / (2 * share * bandwidth)`, must pass the network in one stage (one byte in, two out).
    """
    on = hardware(card)
    net = on._known("network", on.network)
    return 3 * hidden * on.peak * layers / (2 * net * on.bandwidth * stage_seconds)


def context_per_card(model: Any, card: str | Hardware, *, stage_seconds: float = STAGE_SECONDS) -> int:
    """Tokens of cache, of all requests together, that one card can read in its time for a layer.

    The weights of a layer are read too: the output projection split over eight cards, the others on each.
    """
    it = shape(model)
    one = it.attention[0]
    budget = hardware(card).bandwidth * stage_seconds / it.layers - one.projections - one.output / 8
    return max(0, int(budget / (one.kv_numbers * one.kv_bytes)))

"""Attention and feed-forward on separate servers: a pipeline of three stages, simulated (Step-3, arXiv 2507.19427)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparselens.costs.hardware import Hardware, hardware
from sparselens.costs.shapes import Attention, shape
from sparselens.costs.step3 import share_of, whole
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

CARDS = 8  # cards in a server
MICRO_BATCHES = 3


@dataclass(frozen=True)
class Pipeline:
    """Steady state of three micro-batches that pass attention, network and feed-forward in turn. Made by `afd`.

    Attributes:
        stages: seconds of one micro-batch in one layer: attention, network, feed-forward.
        layers: number of blocks.
        batch: requests decoded together, in three micro-batches.
        cards: cards in all.
    """

    stages: dict[str, float]
    layers: int
    batch: int
    cards: int

    @property
    def bottleneck(self) -> str:
        """The slowest stage."""
        return max(self.stages, key=self.stages.__getitem__)

    @property
    def tpot_ms(self) -> float:
        """Milliseconds from one token of a request to its next."""
        return 1e3 * self.layers * MICRO_BATCHES * self.stages[self.bottleneck]

    @property
    def tgs(self) -> float:
        """Tokens per second and card."""
        return tokens_per_card(self.batch, self.tpot_ms, self.cards)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a stage: stage, microseconds a layer, busy (share of the time)."""
        import pandas as pd

        slowest = self.stages[self.bottleneck]
        return pd.DataFrame([{"stage": name, "microseconds": 1e6 * t, "busy": t / slowest}
                             for name, t in self.stages.items()])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw what the three stages do with the three micro-batches in the first layers. Returns the axes."""
        from sparselens.costs.figures import COLOURS, axes

        ax, beat = axes(ax, (7.0, 2.4)), 1e6 * self.stages[self.bottleneck]
        for layer in range(3):
            for micro in range(MICRO_BATCHES):
                for row, (name, seconds) in enumerate(self.stages.items()):
                    start = beat * (layer * MICRO_BATCHES + micro + row)
                    ax.barh(name, 1e6 * seconds, left=start, color=COLOURS[micro], edgecolor="white",
                            label=f"micro-batch {micro + 1}" if layer == row == 0 else None)
        ax.invert_yaxis()
        ax.set(xlabel="microseconds", title=f"{self.tpot_ms:.1f} ms a token, {self.tgs:,.0f} tokens/s and card")
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.3f}".format)


def tokens_per_card(batch: int, tpot_ms: float, cards: int) -> float:
    """Tokens per second and card when a batch takes `tpot_ms` for each token."""
    return batch / (tpot_ms / 1e3) / cards


def longer_context(tgs: float, attention: int, ffn: int, factor: float) -> float:
    """Tokens per second and card when the context grows by `factor` and attention servers are added in proportion."""
    return tgs * (attention + ffn) / (factor * attention + ffn)


def attention_seconds(
    kind: Attention, context: int, batch: float, card: str | Hardware, *, tensor_parallel: int = CARDS,
    weight_bytes: float = 1.0, density: float = 1.0, compute: float = 1.0, memory: float = 1.0,
) -> float:
    """Seconds of one attention layer, projections included, on one card.

    Args:
        kind: the attention.
        context: tokens before the decoded ones.
        batch: requests on this card; their caches are on it whole.
        card: name or `Hardware`.
        tensor_parallel: cards that share the output projection; the other projections are on each card.
        weight_bytes: bytes of a weight; from 2 on, arithmetic is in 16 bits.
        density: share of the context that is attended to.
        compute, memory: efficiencies, of peak operations and of peak bandwidth, above 0 to 1.
    """
    on = hardware(card)
    weights = kind.projections + kind.output / tensor_parallel
    cached = density * kind.attended(context)
    flops = batch * (kind.core_flops * cached + kind.state_flops + 2 * (kind.projections + kind.output))
    moved = batch * (kind.kv_numbers * kind.kv_bytes * cached + kind.state_bytes) + weights * weight_bytes
    peak = on._known("fp16", on.fp16) if weight_bytes >= 2 else on.peak
    return max(flops / (peak * compute), moved / (on.bandwidth * memory))


def afd(
    model: Any,
    context: int,
    batch: int,
    *,
    attention: int = 2,
    ffn: int = 2,
    attention_card: str | Hardware = "H800",
    ffn_card: str | Hardware = "H800",
    attention_bytes: float = 1.0,
    network: float | None = None,
    density: Any = 1.0,
    compute: float = 1.0,
    memory: float = 1.0,
) -> Pipeline:
    """Simulate decoding with attention and feed-forward on servers of their own.

    Args:
        model: a name of `costs.PRESETS`, a `costs.Shape`, or a model; its layers are taken as all alike (the mean).
        context: tokens before the decoded one.
        batch: requests decoded together.
        attention, ffn: servers of eight cards for each part.
        attention_card, ffn_card: what is in them.
        attention_bytes: bytes of a weight and of a cached number in attention; 1 keeps the model's own cache.
        network: bytes a second in and out of a server; the card's own by default.
        density: as for `decode_cost`.
        compute, memory: efficiencies, above 0 to 1. At 1 the times are lower bounds.

    Raises:
        InputError: unknown names, or numbers out of range.
    """
    it, density = shape(model), share_of(density)
    whole(context)
    for name, count in (("batch", batch), ("attention", attention), ("ffn", ffn)):
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name} is a whole number of at least 1; got {count!r}.")
    for name, rate in (("compute", compute), ("memory", memory)):
        if not 0 < rate <= 1:
            raise InputError(f"{name} is a share of the peak, above 0 and at most 1; got {rate!r}.")
    kinds = it.attention if attention_bytes == 1 else it.with_cache(attention_bytes).attention
    micro = batch / MICRO_BATCHES
    seconds = sum(
        kind.layers * attention_seconds(
            kind, context, micro / (CARDS * attention), attention_card, weight_bytes=attention_bytes,
            density=density, compute=compute, memory=memory,
        )
        for kind in kinds
    )
    on = hardware(ffn_card)
    experts = max(
        it.ffn_flops * micro / (CARDS * ffn * on.peak * compute), it.ffn_weights / (CARDS * ffn * on.bandwidth * memory)
    )
    passed = 3 * it.d * micro  # one byte to the experts, two back
    sides = (on, network), (hardware(attention_card), network)
    rates = [given if given else card._known("network", card.network) for card, given in sides]
    wire = max(passed / rates[0], passed / attention * ffn / rates[1])
    stages = {"attention": seconds / it.layers, "network": wire, "feed-forward": experts / it.layers}
    return Pipeline(stages, it.layers, batch, CARDS * (attention + ffn))


@dataclass(frozen=True)
class Efficiency:
    """Efficiencies of one card that come closest to measured times. Made by `fit_efficiency`.

    Attributes:
        card: its name.
        compute, memory: shares of peak operations and bandwidth.
        rows: (kind, context, measured, fitted) in microseconds.
    """

    card: str
    compute: float
    memory: float
    rows: tuple[tuple[str, int, float, float], ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a measurement: card, kind, context, measured, fitted (microseconds), error (relative)."""
        import pandas as pd

        return pd.DataFrame([
            {"card": self.card, "kind": kind, "context": n, "measured": seen, "fitted": made, "error": made / seen - 1}
            for kind, n, seen, made in self.rows
        ])


def fit_efficiency(
    measured: dict[tuple[str, int], float], kinds: dict[str, Attention], card: str, batch: float,
    tensor_parallel: int, weight_bytes: float = 2.0,
) -> Efficiency:
    """Fit the two efficiencies to times of attention layers, by least squares of the logarithm on a grid.

    Args:
        measured: (kind, context) -> microseconds.
        kinds: what each kind is.
        card: the card that was measured.
        batch: requests on a card.
        tensor_parallel, weight_bytes: as for `attention_seconds`; the cache has `weight_bytes` a number too.
    """
    from math import log

    cached = {name: replace(kind, kv_bytes=weight_bytes) for name, kind in kinds.items()}

    def times(compute: float, memory: float) -> list[float]:
        return [
            1e6 * attention_seconds(cached[kind], context, batch, card, tensor_parallel=tensor_parallel,
                                    weight_bytes=weight_bytes, compute=compute, memory=memory)
            for kind, context in measured
        ]

    def misfit(pair: tuple[float, float]) -> float:
        return sum(log(made / seen) ** 2 for made, seen in zip(times(*pair), measured.values(), strict=True))

    grid = [i / 50 for i in range(5, 51)]
    best = min(((c, m) for c in grid for m in grid), key=misfit)
    rows = ((kind, n, seen, made) for ((kind, n), seen), made in zip(measured.items(), times(*best), strict=True))
    return Efficiency(card, *best, tuple(rows))

"""What a density of attention would save in prefill and decoding, from closed formulas.

The formulas are those of The Sparse Frontier (arXiv 2504.17768): operations in prefill, bytes in decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparselens.costs.shapes import Attention, shape
from sparselens.costs.step3 import share_of, whole
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

LENGTHS = (4096, 16384, 65536, 131072)
WINDOW, BLOCK, PAGE = 256, 16, 16  # of Vertical-Slash, Block-Sparse and Quest


def _head(kind: Attention) -> int:
    return kind.core_flops // (4 * kind.heads)


# What finding the pattern costs: operations of a layer in prefill, numbers read by a layer in decoding.
INDEX_FLOPS = {
    "none": lambda kind, length: 0.0,
    "vertical_slash": lambda kind, length: 2.0 * kind.heads * min(WINDOW, length) * length * _head(kind),
    "block": lambda kind, length: 2.0 * kind.heads * (length / BLOCK) ** 2 * _head(kind),
}
INDEX_NUMBERS = {
    "none": lambda kind, length: 0.0,
    "quest": lambda kind, length: length / PAGE * kind.kv_numbers,  # least and largest of each channel: as many as k, v
}


def prefill_flops(
    model: Any, length: int, *, density: Any = 1.0, index: str = "none", causal_half: bool = False
) -> float:
    """Operations to read `length` tokens, unembedding left out.

    Args:
        model: a name of `costs.PRESETS`, a `costs.Shape`, or a live or transformers model.
        length: tokens.
        density: share of allowed pairs that are attended to: a number, or a measurement that has `.density`.
        index: what finding the pattern costs: "none", "vertical_slash" (a window of 256 queries) or "block" (pooled
            blocks of 16).
        causal_half: count half of the pairs. Without it all `length^2` are counted, as in the paper.

    Raises:
        InputError: numbers out of range, or an attention without keys and values of its own for each head size.
    """
    it, density = shape(model), share_of(density)
    pairs = whole(length) ** 2 * (0.5 if causal_half else 1.0)
    finding = _named(index, INDEX_FLOPS)
    total = length * (it.linear_flops + it.ffn_flops)
    for kind in it.attention:
        if kind.kind not in ("GQA", "MFA"):
            raise InputError(f"the prefill formula is for GQA and MFA; {it.name} has {kind.kind} layers.")
        seen = pairs if kind.window is None else min(pairs, length * kind.window)
        core = density * seen * (kind.core_flops + 3 * kind.heads)  # scores and values, and the softmax
        total += kind.layers * (core + (finding(kind, length) if density < 1 else 0.0))
    return total


def decode_bytes(
    model: Any, context: int, *, density: Any = 1.0, index: str = "none", batch: int = 1, weight_bytes: float = 2.0
) -> float:
    """Bytes read to decode one token of each of `batch` requests: all weights once, and each request's cache.

    Args:
        model, density: as for `prefill_flops`.
        context: tokens before the decoded one.
        index: "none", or "quest" (least and largest key of each page of 16).
        batch: requests decoded together. With one, the weights hide what attention saves.
        weight_bytes: bytes of a weight; experts that no token needs are counted as read.

    Raises:
        InputError: numbers out of range.
    """
    it, density = shape(model), share_of(density)
    finding = _named(index, INDEX_NUMBERS)
    weights = (it.linear_flops / 2 + it.ffn_weights) * weight_bytes
    found = sum(k.layers * k.kv_bytes * finding(k, k.attended(context)) for k in it.attention) if density < 1 else 0.0
    return weights + whole(batch) * (it.kv_bytes(whole(context), density) + found)


def _named(index: str, known: dict[str, Any]) -> Any:
    if index not in known:
        raise InputError(f"index is one of {', '.join(known)}; got {index!r}.{closest(index, known)}")
    return known[index]


@dataclass(frozen=True)
class Savings:
    """Dense against sparse at several lengths. Made by `what_if`.

    Attributes:
        model: its name.
        phase: "prefill" (operations) or "decode" (bytes).
        density: share of allowed pairs that are attended to.
        rows: (tokens, dense, sparse).
    """

    model: str
    phase: str
    density: float
    rows: tuple[tuple[int, float, float], ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a length: tokens, dense, sparse (operations in prefill, bytes in decoding), times (dense / sparse)."""
        import pandas as pd

        return pd.DataFrame([{"tokens": n, "dense": dense, "sparse": sparse, "times": dense / sparse}
                             for n, dense, sparse in self.rows])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how many times less is needed, over the length. Returns the axes."""
        from sparselens.costs.figures import COLOURS, axes

        frame, ax = self.to_frame(), axes(ax)
        ax.plot(frame["tokens"], frame["times"], marker="o", color=COLOURS[0])
        what = "fewer operations in prefill" if self.phase == "prefill" else "fewer bytes in decoding"
        ax.set(xscale="log", xlabel="tokens", ylabel=f"times {what}", title=f"{self.model}, density {self.density:.3g}")
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4g}".format)


def what_if(
    model: Any, density: Any, lengths: Sequence[int] = LENGTHS, *, phase: str = "decode", index: str = "none",
    batch: int = 1,
) -> Savings:
    """What a density, measured or wished for, would save on a model of any size.

    Args:
        model: a name of `costs.PRESETS`, a `costs.Shape`, or a live or transformers model.
        density: share of allowed pairs that are attended to: a number, or a measurement that has `.density`.
        lengths: tokens.
        phase: "prefill" counts operations, "decode" bytes.
        index: what finding the pattern costs; see `prefill_flops` and `decode_bytes`.
        batch: requests decoded together.

    Raises:
        InputError: as for the two formulas, or an unknown phase.
    """
    it, kept = shape(model), share_of(density)
    if phase == "prefill":
        rows = [(n, prefill_flops(it, n), prefill_flops(it, n, density=kept, index=index)) for n in lengths]
    elif phase == "decode":
        rows = [(n, decode_bytes(it, n, batch=batch), decode_bytes(it, n, density=kept, index=index, batch=batch))
                for n in lengths]
    else:
        raise InputError(f"phase is 'prefill' or 'decode', not {phase!r}.")
    return Savings(it.name, phase, kept, tuple(rows))

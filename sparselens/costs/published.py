"""Figures that Step-3 (arXiv 2507.19427) published, beside what the formulas here give."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparselens.costs.hardware import PRICED
from sparselens.costs.pipeline import Efficiency, afd, fit_efficiency, longer_context, tokens_per_card
from sparselens.costs.shapes import PRESETS
from sparselens.costs.step3 import context_per_card, decode_cost, moe_sparsity_floor

if TYPE_CHECKING:
    import pandas

WORK = ("cache bytes", "core FLOPs", "linear FLOPs", "FFN FLOPs")
TABLE_2 = {  # 8K
    "dsv3": (2.88e8, 1.47e11, 2.28e10, 4.84e10), "kimi-k2": (2.88e8, 7.37e10, 1.23e10, 4.84e10),
    "qwen3-235b": (7.89e8, 2.52e10, 1.34e10, 2.84e10), "qwen3-32b": (1.07e9, 1.72e10, 1.21e10, 5.03e10),
    "llama4-maverick": (1.01e9, 8.05e9, 6.04e9, 2.42e10), "minimax-m1": (9.23e8, 3.42e9, 3.75e10, 5.44e10),
    "ernie45": (9.06e8, 1.45e10, 1.63e10, 7.61e10), "pangu-pro": (8.05e8, 8.05e9, 6.04e9, 2.38e10),
    "step3": (2.56e8, 3.27e10, 2.07e10, 5.33e10),
}
TABLE_3 = {  # 32K: cache bytes, core FLOPs
    "step3": (1.02e9, 1.31e11), "dsv3": (1.15e9, 5.89e11), "qwen3-235b": (3.15e9, 1.01e11),
    "llama4-maverick": (2.21e9, 1.41e10), "minimax-m1": (1.93e9, 1.15e10),
}
TABLE_6 = {  # USD per million tokens on H800, H20, A800, 910B
    ("attention", 8192): {
        "dsv3": (0.054, 0.128, 0.114, 0.113), "kimi-k2": (0.051, 0.065, 0.057, 0.057),
        "qwen3-235b": (0.135, 0.054, 0.091, 0.101), "qwen3-32b": (0.181, 0.069, 0.120, 0.133),
        "llama4-maverick": (0.169, 0.060, 0.109, 0.121), "minimax-m1": (0.164, 0.079, 0.121, 0.132),
        "ernie45": (0.155, 0.063, 0.105, 0.116), "pangu-pro": (0.135, 0.049, 0.088, 0.098),
        "step3": (0.048, 0.040, 0.040, 0.043),
    },
    ("attention", 32768): {
        "dsv3": (0.197, 0.460, 0.409, 0.407), "qwen3-235b": (0.527, 0.185, 0.338, 0.376),
        "step3": (0.176, 0.114, 0.120, 0.133),
    },
    ("ffn", 8192): {
        "dsv3": (0.014, 0.036, 0.032, 0.032), "qwen3-235b": (0.008, 0.021, 0.019, 0.019),
        "step3": (0.015, 0.040, 0.036, 0.035),
    },
}
TOTALS = {
    ("step3", 8192, "afd"): 0.055, ("dsv3", 8192, "together"): 0.068, ("qwen3-235b", 8192, "afd"): 0.062,
    ("step3", 32768, "afd"): 0.129, ("dsv3", 32768, "together"): 0.211, ("qwen3-235b", 32768, "afd"): 0.193,
}
TABLE_7 = {"H800": 0.058, "H20": 0.007, "A800": 0.031, "910B": 0.034}
INTENSITY = {"step3": 128.0, "dsv3": 512.0, "qwen3-235b": 32.0}
TABLE_9 = {  # microseconds of a layer on 4 cards, batch 256, 16-bit attention; (kind, context) -> H800, H20, A800
    ("MFA", 8192): (281, 438, 531), ("MLA", 8192): (372, 1252, None), ("GQA", 8192): (382, 812, 791),
    ("MFA", 32768): (791, 1452, 1484), ("MLA", 32768): (1125, 4817, None), ("GQA", 32768): (1391, 3042, 3010),
}
TABLE_8 = (  # measured on Hopper: attention servers, ffn servers, bytes of attention, context, batch, tokens/s and card
    (2, 2, 1.0, 4096, 6144, 4039), (3, 2, 2.0, 4096, 6048, 3321), (4, 2, 1.0, 8192, 6144, 2643),
)


@dataclass(frozen=True)
class Compared:
    """One published figure beside ours; `tolerance` is absolute."""

    table: str
    what: str
    published: float
    ours: float
    tolerance: float


def compared() -> Iterator[Compared]:
    """Every figure that follows from the formulas alone, with the tolerance it is held to."""
    for context, table in ((8192, TABLE_2), (32768, TABLE_3)):
        for name, values in table.items():
            it = PRESETS[name]
            ours = it.kv_bytes(context), it.core_flops(context), it.linear_flops, it.ffn_flops
            for what, given, made in zip(WORK, values, ours, strict=False):
                yield Compared("2" if context == 8192 else "3", f"{name} {what}", given, made, 0.005 * given)
    for (part, context), rows in TABLE_6.items():
        for name, prices in rows.items():
            cost = decode_cost(name, context)
            for card, given in zip(PRICED, prices, strict=True):
                yield Compared("6", f"{name} {part} {context:,} {card}", given, getattr(cost, part)(card), 0.0006)
    for (name, context, deployment), given in TOTALS.items():
        yield Compared("6", f"{name} total {context:,}", given, decode_cost(name, context).total(deployment), 0.001)
    for card, given in TABLE_7.items():  # printed to three places
        yield Compared("7", f"least share {card}", given, moe_sparsity_floor(card, hidden=7168, layers=61), 0.0005)
    for name, given in INTENSITY.items():
        yield Compared("intensity", name, given, PRESETS[name].attention[0].intensity, 0.0)
    yield Compared("text", "tokens of cache on an L20", 328e3, float(context_per_card("step3", "L20")), 0.01 * 328e3)
    yield Compared("text", "tokens/s and card at 8K", 2693.0, longer_context(4039.0, 2, 2, 2.0), 1.0)
    yield Compared("text", "tokens/s and card at 32K", 898.0, longer_context(2693.0, 4, 2, 4.0), 1.0)


def validate() -> "pandas.DataFrame":
    """Every published figure that the formulas give: table, what, published, ours, error, tolerance, within."""
    import pandas as pd

    rows = list(compared())
    frame = pd.DataFrame([vars(row) for row in rows])
    frame["error"] = frame["ours"] / frame["published"] - 1
    frame["within"] = (frame["ours"] - frame["published"]).abs() <= frame["tolerance"]
    return frame


def validate_throughput() -> "pandas.DataFrame":
    """Measured throughput (table 8) beside the simulator, whose times are lower bounds.

    Columns: attention, ffn (servers), context, batch, measured (tokens per second and card), tpot_ms (that this
    implies), simulated_ms (at full efficiency), bottleneck, share (simulated over measured time).
    """
    import pandas as pd

    rows = []
    for attention, ffn, size, context, batch, measured in TABLE_8:
        ran = afd("step3", context, batch, attention=attention, ffn=ffn, attention_bytes=size)
        tpot = 1e3 * batch / (measured * ran.cards)
        rows.append({"attention": attention, "ffn": ffn, "context": context, "batch": batch, "measured": measured,
                     "at_50_ms": tokens_per_card(batch, 50.0, ran.cards), "tpot_ms": tpot, "simulated_ms": ran.tpot_ms,
                     "bottleneck": ran.bottleneck, "share": ran.tpot_ms / tpot})
    return pd.DataFrame(rows)


def fit_layers() -> list[Efficiency]:
    """Efficiencies of H800, H20 and A800 fitted to the measured attention layers of table 9, with all residuals."""
    kinds = {"MFA": PRESETS["step3"].attention[0], "MLA": PRESETS["dsv3"].attention[0],
             "GQA": PRESETS["qwen3-235b"].attention[0]}
    found = []
    for i, card in enumerate(("H800", "H20", "A800")):
        measured = {key: float(seen) for key, times in TABLE_9.items() if (seen := times[i])}
        found.append(fit_efficiency(measured, kinds, card, batch=64.0, tensor_parallel=4))
    return found

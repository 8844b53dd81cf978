"""Sparse attention on a CPU: the `gather` executor against dense causal attention, and what planning costs apart.

Figures are CPU seconds of one thread, the least of several rounds that take turns.

    python -m tests.benchmarks.bench_attention        # the whole curve, and its picture beside that of flex.json

writes `attention.json` and `docs/assets/attention_speed.png`.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sparselens.attention.executors import gather
from sparselens.attention.pattern import Allowed, Pattern, top_blocks
from sparselens.models.attention_function import Heads

HEADS, KV, D, BLOCK, ROUNDS = 9, 3, 64, 64, 5
LENGTHS, DENSITIES = (1024, 2048, 4096), (0.11, 0.25, 0.5)
AIMS = {0.11: 2.5, 0.25: 1.3}
CURVE = ((512, 1024, 2048, 4096, 8192), (0.03, 0.06, 0.11, 0.25, 0.5, 0.7, 0.85, 1.0))
HERE = Path(__file__).resolve()
RECORD, GPU = HERE.with_name("attention.json"), HERE.with_name("flex.json")
PICTURE = HERE.parents[2] / "docs" / "assets" / "attention_speed.png"


def run() -> list[dict[str, object]]:
    """Rows by length and density: speed over dense causal attention."""
    rows: list[dict[str, object]] = []
    for n in LENGTHS:
        for wanted, density, gathered, whole in measured(n, DENSITIES):
            aimed = n > 1024 and wanted in AIMS
            rows.append({
                "name": f"gather, {n} tokens, density {density:.2f}",
                "ours": 1 / gathered,
                "baseline": 1 / whole,
                "target": f">= {AIMS[wanted]}" if aimed else "> 0",
                "unit": "layers/s",
                "note": f"{HEADS} heads of {D} ({KV} for keys), blocks of {BLOCK}, float32, one thread, planning apart",
            })
    return rows + planning()


def measured(n: int, densities: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """For each density asked for: it, the one that came out, and seconds of `gather` and of dense attention."""
    heads, allowed = random_heads(n), Allowed(n, n)
    patterns = {density: random_pattern(allowed, density) for density in densities}
    work: dict[str, Callable] = {"dense": lambda: dense(heads)}
    work |= {str(d): lambda pattern=pattern: gather(heads, pattern, allowed) for d, pattern in patterns.items()}
    seconds = least(work)
    return [(d, patterns[d].density(allowed), seconds[str(d)], seconds["dense"]) for d in densities]


def curve() -> None:
    """Measure all of `CURVE`, write it down and draw it."""
    lengths, densities = CURVE
    found = {str(n): [[density, whole / gathered] for _, density, gathered, whole in measured(n, densities)]
             for n in lengths}
    how = (f"gather against dense causal attention, {HEADS} heads of {D} ({KV} for keys), blocks of {BLOCK}, float32, "
           f"one thread, CPU seconds, least of {ROUNDS} rounds; torch {torch.__version__}")
    record = {"how": how, "speed by tokens: density, times dense": found}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    draw(found)


def draw(found: dict[str, list[list[float]]]) -> None:
    """The curves of the CPU, and those of `flex.json`."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", dpi=100)
    for n, points in found.items():
        left.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{int(n):,} tokens")
    left.set_title("CPU, gather, causal", loc="left", fontsize=10)
    gpu = json.loads(GPU.read_text("utf-8"))
    for against, style in (("FlashAttention", "-"), ("cuDNN", "--")):
        for tokens, colour in (("65,536", "#0072B2"), ("32,768", "#D55E00")):
            points = flex_points(gpu["rows"], tokens, against)
            right.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3,
                       label=f"{tokens} tokens, against {against}")
    right.set_title(f"{gpu['made_with']['card']}, flex, causal, head dim 128", loc="left", fontsize=10)
    for axes in (left, right):
        axes.axhline(1, color="#888888", linewidth=1)
        axes.set(xlabel="share of the pairs of tokens", ylabel="times as fast as dense", yscale="log")
        axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE)


def flex_points(rows: list[dict], tokens: str, against: str) -> list[tuple[float, float]]:
    """Density and speed of flex over one kernel of dense attention, from recorded rows."""
    points = []
    for row in rows:
        name = re.fullmatch(rf"flex, {tokens} tokens, causal, head dim 128, density ([\d.]+)", row["name"])
        if name:
            cudnn = float(re.search(r"cuDNN's dense ([\d.]+) ms", row["note"])[1])
            points.append((float(name[1]), (row["baseline"] if against == "FlashAttention" else cudnn) / row["ours"]))
    return points


def planning() -> list[dict[str, object]]:
    """What it costs to choose the pattern, beside dense attention, at 2,048 tokens and an eighth."""
    import sparselens as sl
    from sparselens.attention.method import Layer

    n = 2048
    heads = random_heads(n)
    ask = Layer(heads.query, heads.key, Allowed(n, n), 0, heads.scale, {})
    things = {"BlockSparse": sl.BlockSparse(0.125, block=BLOCK), "VerticalSlash": sl.VerticalSlash(0.125),
              "ASA": sl.ASA(0.125, block=BLOCK)}
    seconds = least({"dense": lambda: dense(heads)} | {k: lambda t=t: t.prefill(ask) for k, t in things.items()})
    return [{"name": f"planning {name}, {n} tokens", "ours": seconds[name], "baseline": seconds["dense"],
             "target": "> 0", "unit": "s", "note": "of one layer; a cost on top of the executor's"} for name in things]


def random_heads(n: int) -> Heads:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, n, D, generator=generator) for h in (HEADS, KV, KV))
    return Heads(query, key, value, None, True, D**-0.5)


def dense(heads: Heads) -> torch.Tensor:
    k, v = (x.repeat_interleave(HEADS // KV, 1) for x in (heads.key, heads.value))
    return F.scaled_dot_product_attention(heads.query, k, v, is_causal=True)


def random_pattern(allowed: Allowed, density: float) -> Pattern:
    """Blocks by lot, the same number in each row where there are as many, with the diagonal."""
    n = allowed.n_q // BLOCK
    possible = torch.ones(n, n, dtype=torch.bool).tril()
    scores = torch.rand(1, HEADS, n, n).masked_fill(torch.eye(n, dtype=torch.bool), 2.0)
    patterns = [Pattern(top_blocks(scores, t, possible), (BLOCK, BLOCK)) for t in range(1, n + 1)]
    return min(patterns, key=lambda p: abs(p.density(allowed) - density))


def least(work: dict[str, Callable]) -> dict[str, float]:
    """Least CPU seconds of each, rounds taking turns."""
    torch.set_num_threads(1)
    seconds = dict.fromkeys(work, float("inf"))
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, call in work.items():
                start = time.process_time()
                call()
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


if __name__ == "__main__":
    curve()

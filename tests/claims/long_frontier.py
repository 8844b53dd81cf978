"""The Sparse Frontier's claims at lengths that want a GPU: `python -m tests.claims.long_frontier --out FILE`.

KL(dense || sparse) over the last half of the positions of real text (see `texts.py`), and how much of what a needle
brings is left, by method and density; all layers sparse in the prompt. Rounds go on while there is time, a passage or
a text of each task in each; what is there when it is over is written. Densities are measured.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

import torch

import sparselens as sl
from sparselens.attention.frontier import score
from sparselens.attention.tasks import LongText
from tests.claims.claim_frontier import Late, budget_for, late_logits
from tests.claims.texts import token_ids
from tests.collect import save, table

DENSITIES = (1 / 8, 1 / 2, 1 / 16, 1 / 4)
Make = Callable[[float], sl.attention.SparseAttention]
METHODS: dict[str, Make] = {
    "TopKOracle": lambda b: sl.TopKOracle(b, executor="masked"),
    "Quest": lambda b: sl.Quest(b, phase="prefill", executor="masked"),
    "BlockSparse": lambda b: sl.BlockSparse(b, executor="masked"),
    "VerticalSlash": lambda b: sl.VerticalSlash(b, executor="masked"),
    "SinkWindow": lambda b: sl.SinkWindow(b, phase="prefill", executor="masked"),
    "RandomBlocks": lambda b: sl.RandomBlocks(b, phase="prefill", executor="masked"),
}
DECODING: dict[str, Make] = {"SnapKV": sl.SnapKV, "AdaSnapKV": sl.AdaSnapKV, "Quest, decoding": sl.Quest}
PRACTICAL = ("Quest", "BlockSparse", "VerticalSlash", "SinkWindow")
ADJUSTED = ("BlockSparse", "VerticalSlash")  # others keep their share of every row
Row = dict[str, Any]


class Clock:
    """Says when the time is over."""

    def __init__(self, seconds: float):
        self.start, self.seconds = time.perf_counter(), seconds

    @property
    def over(self) -> bool:
        return time.perf_counter() - self.start > self.seconds

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.start:.0f} s"


def flex_agrees(model: sl.LiveModel, ids: torch.Tensor) -> list[Row]:
    """Log-probabilities under `flex` and `masked` for one pattern, at one length."""
    found = {}
    for executor in ("masked", "flex"):
        with model.attach(sl.BlockSparse(0.3, block=128, executor=executor)):
            found[executor] = late_logits(model, ids)
    apart = float((found["masked"].exp() * (found["masked"] - found["flex"])).sum(-1).mean())
    return [{"part": "flex", "method": "BlockSparse", "density": 0.3, "length": len(ids), "kl": apart,
             "max": float((found["masked"] - found["flex"]).abs().max())}]


def passages(model: sl.LiveModel, ids: torch.Tensor, lengths: list[int], most: int, clock: Clock) -> list[Row]:
    """A row for each passage, length, method and density. Shorter lengths are the beginnings of the same passages."""
    rows: list[Row] = []
    budgets: dict[Any, float] = {}
    longest = max(lengths)
    for i in range(min(most, len(ids) // longest)):
        for n in lengths:
            row = ids[i * longest : i * longest + n]
            dense = late_logits(model, row)
            for wanted in DENSITIES:
                for name, make in METHODS.items():
                    if clock.over:
                        return rows
                    key = (name, wanted, n)
                    if key not in budgets:
                        budgets[key] = budget_for(model, make, row, wanted) if name in ADJUSTED else wanted
                    watched = Late(make(budgets[key]))
                    with model.attach(watched):
                        sparse = late_logits(model, row)
                    rows.append({"part": "text", "method": name, "wanted": wanted, "length": n, "passage": i,
                                 "kl": float((dense.exp() * (dense - sparse)).sum(-1).mean()),
                                 "density": watched.density})
        print(f"passage {i}: {clock}", file=sys.stderr, flush=True)
    return rows


def needles(model: sl.LiveModel, tasks: list[str], tokens: int, most: int, clock: Clock) -> list[Row]:
    """A row for each text of a task, method and density; dense attention with and without the needle among them."""
    rows: list[Row] = []
    for i in range(most):
        for task in tasks:
            text = sl.attention.long_context(model.tokenizer, task, tokens=tokens, n=1, seed=i)[0]
            cases: list[tuple[str, float, LongText, Any, bool]] = [("dense", 1.0, text, None, False),
                                                                  ("guess", 1.0, text.without_needles(), None, False)]
            for wanted in DENSITIES:
                cases += [(name, wanted, text, make(wanted), True) for name, make in METHODS.items()]
                cases += [(name, wanted, text, make(wanted), False) for name, make in DECODING.items()]
            for name, wanted, asked, method, read in cases:
                if clock.over:
                    return rows
                rows.append({"part": "needle", "task": task, "method": name, "wanted": wanted, "length": tokens,
                             "text": i, **asdict(score(model, asked, method, read=read))})
        print(f"text {i}: {clock}", file=sys.stderr, flush=True)
    return rows


def kl_table(rows: list[Row]) -> list[Row]:
    """Mean KL by length, density and method over passages, and its spread."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        if row["part"] == "text":
            found.setdefault((row["length"], row["wanted"], row["method"]), []).append(row)
    return [{"length": n, "wanted": wanted, "method": name, "passages": len(cell), "kl": mean(r["kl"] for r in cell),
             "least": min(r["kl"] for r in cell), "most": max(r["kl"] for r in cell),
             "density": mean(r["density"] for r in cell)} for (n, wanted, name), cell in sorted(found.items())]


def needle_table(rows: list[Row]) -> list[Row]:
    """Mean log-probability by task, density and method, and the share of what the needle brings that is left."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row["part"] == "needle":
            found.setdefault((row["task"], row["wanted"], row["method"]), []).append(row["logprob"])
    out = []
    for (task, wanted, name), cell in sorted(found.items()):
        dense, guess = (mean(found.get((task, 1.0, of), [float("nan")])) for of in ("dense", "guess"))
        out.append({"task": task, "wanted": wanted, "method": name, "texts": len(cell), "logprob": mean(cell),
                    "sd": stdev(cell) if len(cell) > 1 else 0.0, "gain left": (mean(cell) - guess) / (dense - guess)})
    return out


def claims(cells: list[Row]) -> list[Row]:
    """The five claims, from the table of KL: at each length, and between lengths. Only where all methods are there."""
    kl = {(c["length"], c["wanted"], c["method"]): c["kl"] for c in cells}
    lengths = sorted({n for n, _, _ in kl})
    grid = sorted({(n, d) for n, d, _ in kl if all((n, d, name) in kl for name in METHODS)})
    out: list[Row] = []
    for n, d in grid:
        best = min(PRACTICAL, key=lambda name: kl[n, d, name])
        share, lot = kl[n, d, "TopKOracle"] / kl[n, d, best], {p: kl[n, d, p] / kl[n, d, "RandomBlocks"]
                                                               for p in PRACTICAL}
        out += [{"claim": "(1) oracle a third of the best", "at": f"{n}, {d:g}", "figure": share,
                 "holds": share <= 1 / 3},
                {"claim": "(2) half of random", "at": f"{n}, {d:g}", "figure": max(lot.values()),
                 "holds": max(lot.values()) <= 0.5},
                {"claim": "(5) best method", "at": f"{n}, {d:g}", "figure": best, "holds": True}]
    for n in lengths:
        if {(n, 1 / 8), (n, 1 / 2)} <= set(grid):
            worse = max(kl[n, 1 / 2, name] / kl[n, 1 / 8, name] for name in METHODS)
            out.append({"claim": "(3) a half below an eighth", "at": n, "figure": worse, "holds": worse < 1})
    for short, long in zip(lengths, lengths[1:], strict=False):
        for d in (d for n, d in grid if n == long and (short, d) in grid):
            ratios = {name: kl[long, d, name] / kl[short, d, name] for name in METHODS}
            worst = max(ratios, key=lambda name: ratios[name])
            out.append({"claim": "(4) longer costs less", "at": f"{long} by {short}, {d:g}, worst {worst}",
                        "figure": ratios[worst], "holds": ratios[worst] < 1})
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measure until the time is over, write, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.claims.long_frontier", description="The frontier, longer.")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--needle-tokens", type=int, default=4096)
    parser.add_argument("--tasks", nargs="+", default=["niah", "story_retrieval"])
    parser.add_argument("--most", type=int, default=8, help="passages, and texts of each task")
    parser.add_argument("--seconds", type=float, default=120, help="two fifths for needles, the rest for texts")
    parser.add_argument("--out", required=True)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("long_frontier: skipped, there is no CUDA device", file=sys.stderr)
        return 1
    clock = Clock(options.seconds)
    model = sl.load_model(options.model, device=options.device, dtype=torch.float32)
    name, ids = token_ids(model)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    rows: list[Row] = [{"part": "where", "card": card, "text": name, "loaded": str(clock)}]
    rows += flex_agrees(model, ids[: max(options.lengths)])
    print(f"flex {rows[-1]}: {clock}", file=sys.stderr, flush=True)
    rows += needles(model, options.tasks, options.needle_tokens, options.most, Clock(0.4 * options.seconds))
    save(options.out, rows)
    rows += passages(model, ids, options.lengths, options.most, clock)
    cells, asked = kl_table(rows), needle_table(rows)
    found = claims(cells)
    save(options.out, [*rows, *({"part": "kl", **c} for c in cells), *({"part": "gain", **c} for c in asked),
                       *({"part": "claim", **c} for c in found)])
    for part in (cells, asked, found):
        print(table(part, list(part[0])) if part else "nothing was measured", end="\n\n")
    print(card, name, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The Sparse Frontier's claims on SmolLM2: what sparse attention costs, by method, density, length and task.

All layers are sparse in the prompt. The cost is `KL(dense || sparse)` over the last half of the positions; densities
are those of the last half of the queries. The texts are WikiText-2 where it is at hand (see `texts.py`).
"""

from statistics import mean
from typing import Any

import torch

import sparselens as sl
from sparselens.attention.applied import Watched
from tests.claims.texts import token_ids

PASSAGES = 2
LENGTHS = (512, 1024)
CASES = ((0.125, 512), (0.125, 1024), (0.5, 1024))  # density and length
PRACTICAL = ("Quest", "BlockSparse", "VerticalSlash", "SinkWindow")
METHODS: dict[str, Any] = {
    "TopKOracle": sl.TopKOracle,
    "Quest": lambda budget: sl.Quest(budget, phase="prefill"),
    "BlockSparse": sl.BlockSparse,
    "VerticalSlash": sl.VerticalSlash,
    "SinkWindow": sl.SinkWindow,
    "RandomBlocks": sl.RandomBlocks,
}
Found = dict[tuple[str, float, int], list[float]]
PAPER = "The Sparse Frontier, 2504.17768"


class Late(Watched):
    """A method with the density over the last half of its queries."""

    def __init__(self, method: sl.attention.SparseAttention):
        super().__init__(method)
        self.kept = self.pairs = 0.0

    def see(self, layer, segment, executor) -> None:
        allowed, half = layer.allowed, layer.allowed.n_q // 2
        self.kept += float(segment.pattern.rows(allowed, half).sum())
        self.pairs += float(allowed.rows(half).sum()) * layer.query.shape[1]

    @property
    def density(self) -> float:
        return self.kept / self.pairs


def run() -> list[dict[str, object]]:
    """The rows: the oracle, random blocks, density, length, ranking."""
    model = sl.load_model()
    name, ids = token_ids(model)
    step = len(ids) // PASSAGES
    rows = [ids[i * step : i * step + max(LENGTHS)] for i in range(PASSAGES)]
    kl, density = measured(model, rows)
    data = f"SmolLM2-135M-Instruct, all layers, {PASSAGES} passages of {name}, last half of the positions"
    found = [oracle(kl, data), against_lot(kl, data), by_density(kl, data), by_length(kl, data)]
    return [*found, ranking(kl, density, data)]


def measured(model: sl.LiveModel, rows: list[torch.Tensor]) -> tuple[Found, dict[tuple[str, float, int], float]]:
    """KL of every passage, and measured density, by method, density asked for and length."""
    kl: Found = {}
    density = {}
    budgets: dict[tuple[str, float, int], float] = {}
    for n in LENGTHS:
        for row in rows:
            dense = late_logits(model, row[:n])
            for name, make in METHODS.items():
                for wanted in (share for share, length in CASES if length == n):
                    key = (name, wanted, n)
                    if key not in budgets:
                        adjusts = name in ("BlockSparse", "VerticalSlash")  # others keep their share of every row
                        budgets[key] = budget_for(model, make, row[:n], wanted) if adjusts else wanted
                    watched = Late(make(budgets[key]))
                    with model.attach(watched):
                        sparse = late_logits(model, row[:n])
                    kl.setdefault(key, []).append(float((dense.exp() * (dense - sparse)).sum(-1).mean()))
                    density[key] = watched.density
    return kl, density


def late_logits(model: sl.LiveModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities after each token of the last half but the last."""
    return model.run(ids[None]).logits[0, len(ids) // 2 : -1].log_softmax(-1)


def budget_for(model: sl.LiveModel, make: Any, ids: torch.Tensor, wanted: float) -> float:
    """The budget that gives a density over the last half of the queries, by two looks at the middle layer."""
    budget = wanted
    for _ in range(2):
        watched = Late(make(budget))
        with model.attach(watched, at="blocks.14.attn.hook_mask"):
            model.capture(ids[None], "blocks.14.attn.hook_z")
        budget = min(1.0, budget * wanted / watched.density)
    return budget


def cell(kl: Found, name: str, density: float, n: int) -> float:
    return mean(kl[name, density, n])


def row(claim: str, data: str, baseline: str, result: str, spread: str, holds: bool) -> dict[str, object]:
    return {"paper": PAPER, "claim": claim, "data": data, "seeds": PASSAGES, "baseline": baseline, "result": result,
            "spread": spread, "holds": holds}


def spread_of(kl: Found, density: float, n: int) -> str:
    return "over passages " + ", ".join(
        f"{name} {min(kl[name, density, n]):.3g} to {max(kl[name, density, n]):.3g}" for name in METHODS
    )


def oracle(kl: Found, data: str) -> dict[str, object]:
    best = {(d, n): min(cell(kl, name, d, n) for name in PRACTICAL) for d, n in CASES}
    share = {k: cell(kl, "TopKOracle", *k) / v for k, v in best.items()}
    return row(
        "(1) the best choice of single keys costs at most a third of the best practical method", data,
        "best practical KL " + ", ".join(f"{d:g} at {n}: {v:.3f}" for (d, n), v in best.items()),
        "oracle's share " + ", ".join(f"{d:g} at {n}: {v:.2f}" for (d, n), v in share.items()),
        spread_of(kl, 0.125, 1024), all(v <= 1 / 3 for v in share.values()),
    )


def against_lot(kl: Found, data: str) -> dict[str, object]:
    share = {(name, d, n): cell(kl, name, d, n) / cell(kl, "RandomBlocks", d, n)
             for name in PRACTICAL for d, n in CASES}
    worst = max(share, key=lambda k: share[k])
    return row(
        "(2) every method costs at most half of random blocks at the same density", data,
        f"random blocks, 1/8 at 1,024 tokens: {cell(kl, 'RandomBlocks', 0.125, 1024):.2f}",
        "share of it " + ", ".join(f"{name} {share[name, 0.125, 1024]:.2f}" for name in PRACTICAL)
        + f"; worst {share[worst]:.2f} ({worst[0]}, {worst[1]:g} at {worst[2]})",
        spread_of(kl, 0.125, 1024), max(share.values()) <= 0.5,
    )


def by_density(kl: Found, data: str) -> dict[str, object]:
    pairs = {name: (cell(kl, name, 0.125, 1024), cell(kl, name, 0.5, 1024)) for name in METHODS}
    holds = all(half < eighth for eighth, half in pairs.values())
    return row("(3) half of the pairs cost less than an eighth, for every method", data, "KL at 1/8, 1,024 tokens "
               + ", ".join(f"{k} {a:.3f}" for k, (a, _) in pairs.items()),
               "KL at 1/2 " + ", ".join(f"{k} {b:.3f}" for k, (_, b) in pairs.items()), spread_of(kl, 0.5, 1024), holds)


def by_length(kl: Found, data: str) -> dict[str, object]:
    ratio = {name: cell(kl, name, 0.125, 1024) / cell(kl, name, 0.125, 512) for name in METHODS}
    claim = "(4) at an eighth, longer texts cost less: KL at 1,024 tokens by KL at 512, below 1 for every method"
    return row(claim, data, "KL at 512 " + ", ".join(f"{k} {cell(kl, k, 0.125, 512):.3f}" for k in METHODS),
               "ratio " + ", ".join(f"{k} {v:.2f}" for k, v in ratio.items()), spread_of(kl, 0.125, 512),
               all(v < 1 for v in ratio.values()))


def ranking(kl: Found, density: dict, data: str) -> dict[str, object]:
    order = {d: sorted(PRACTICAL, key=lambda name: cell(kl, name, d, 1024)) for d in (0.125, 0.5)}
    return row("(5) which method is best changes with the density", data,
               "best first at 1/8: " + ", ".join(order[0.125]), "best first at 1/2: " + ", ".join(order[0.5]),
               "measured density at 1/8 " + ", ".join(f"{k} {density[k, 0.125, 1024]:.3f}" for k in METHODS)
               + "; at 1/2 " + ", ".join(f"{k} {density[k, 0.5, 1024]:.3f}" for k in METHODS),
               order[0.125][0] != order[0.5][0])

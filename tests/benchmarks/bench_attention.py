"""Sparse attention on a CPU: the `gather` executor against dense causal attention, and what planning costs apart.

Figures are CPU seconds of one thread, the least of several rounds that take turns.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sparselens.attention.executors import gather
from sparselens.attention.pattern import Allowed, Pattern, top_blocks
from sparselens.models.attention_function import Heads

HEADS, KV, D, BLOCK, ROUNDS = 9, 3, 64, 64, 5
LENGTHS, DENSITIES = (1024, 2048, 4096), (0.11, 0.25, 0.5)
AIMS = {0.11: 2.5, 0.25: 1.3}


def run() -> list[dict[str, object]]:
    """Rows by length and density: speed over dense causal attention."""
    rows: list[dict[str, object]] = []
    for n in LENGTHS:
        heads, allowed = random_heads(n), Allowed(n, n)
        found = {}
        work: dict[str, Callable] = {"dense": lambda heads=heads: dense(heads)}
        for density in DENSITIES:
            pattern = random_pattern(allowed, density)
            found[density] = pattern.density(allowed)
            work[f"{density}"] = lambda heads=heads, pattern=pattern, allowed=allowed: gather(heads, pattern, allowed)
        seconds = least(work)
        for density in DENSITIES:
            aimed = n > 1024 and density in AIMS
            rows.append({
                "name": f"gather, {n} tokens, density {found[density]:.2f}",
                "ours": 1 / seconds[f"{density}"],
                "baseline": 1 / seconds["dense"],
                "target": f">= {AIMS[density]}" if aimed else "> 0",
                "unit": "layers/s",
                "note": f"{HEADS} heads of {D} ({KV} for keys), blocks of {BLOCK}, float32, one thread, planning apart",
            })
    return rows + planning()


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

"""Video-BLADE's sparse attention without training: ASA, its pooled keys, and the order of tokens, on a made-up video.

The video is a grid of 8 x 8 x 8 tokens. Queries and keys are smooth random waves over the grid, so that near tokens
attend to each other, plus a vector for each of three things that move through it, so that far parts of one thing do.
How sharp the attention is decides the outcome, so it is varied. The error is `||o - o_dense|| / ||o_dense||` of the
output. There is no trained video model here: the paper's quality and speed are not checked.
"""

from statistics import mean, stdev

import torch

import sparselens as sl
from sparselens.attention.blade import attend_with_pools, gilbert_order
from sparselens.attention.executors import masked
from sparselens.attention.method import Layer
from sparselens.attention.pattern import Allowed, Pattern, full, top_blocks
from sparselens.models.attention_function import Heads

SEEDS, SIDE, HEADS, D = 4, 8, 4, 32
SHARPNESS = {"flat": 0.6, "middle": 0.9, "sharp": 1.6}
BLOCK, SAMPLE, POOL, DENSITY = 16, 4, 8, 0.2
N = SIDE**3


def run() -> list[dict[str, object]]:
    """The rows: blocks against windows and lots, pooled keys, their weight, the order."""
    found: dict[tuple[str, str], list[float]] = {}
    for sharp, strength in SHARPNESS.items():
        for seed in range(SEEDS):
            for name, error in _errors(seed, strength).items():
                found.setdefault((name, sharp), []).append(error)
    e = {key: mean(values) for key, values in found.items()}
    spread = ("flat", "middle")
    return [
        _row("chosen blocks leave less error than a window in space and than blocks by lot", found, ("window", "lot"),
             ("ASA",), all(e["ASA", s] < min(e["window", s], e["lot", s]) for s in SHARPNESS)),
        _row("pooled keys take at least a quarter of the error away where attention is spread out", found, ("ASA",),
             ("ASA_G",), all(e["ASA_G", s] <= 0.75 * e["ASA", s] for s in spread)),
        _row("without ln(pool) the error is larger where attention is spread out", found,
             ("ASA_G without ln(pool)",), ("ASA_G",),
             all(e["ASA_G", s] < e["ASA_G without ln(pool)", s] for s in spread)),
        _row("along the Gilbert curve the error is smaller than in raster order", found, ("ASA, raster",), ("ASA",),
             all(e["ASA", s] < e["ASA, raster", s] for s in SHARPNESS)),
    ]


def _row(claim: str, found: dict, base: tuple[str, ...], ours: tuple[str, ...], holds: bool) -> dict[str, object]:
    def said(names: tuple[str, ...], number) -> str:
        return "; ".join(f"{n} " + ", ".join(f"{number(found[n, s]):.3f} {s}" for s in SHARPNESS) for n in names)

    data = f"{N} tokens on an {SIDE} x {SIDE} x {SIDE} grid, blocks of {BLOCK}, density {DENSITY}, made up"
    return {"paper": "Video-BLADE, 2508.10774", "claim": claim, "data": data, "seeds": SEEDS,
            "baseline": said(base, mean), "result": said(ours, mean), "spread": said((*base, *ours), stdev),
            "holds": holds}


def _errors(seed: int, strength: float) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value, place = _video(generator, strength)
    allowed = Allowed(N, N, causal=False)
    curve, raster = torch.tensor(gilbert_order(SIDE, SIDE, SIDE)), torch.arange(N)
    errors = {}
    for name, order in (("", curve), (", raster", raster)):
        q, k, v = (x[:, :, order] for x in (query, key, value))
        heads = Heads(q, k, v, None, False, D**-0.5)
        dense = masked(heads, full(allowed, 1, HEADS), allowed)
        chosen = sl.ASA(DENSITY, block=BLOCK, sample=SAMPLE, seed=seed).prefill(Layer(q, k, allowed, 0, D**-0.5))
        patterns = {"ASA" + name: chosen}
        if not name:
            patterns |= {"window": _window(place[order]), "lot": _lot(generator)}
        for label, pattern in patterns.items():
            errors[label] = _error(masked(heads, pattern, allowed), dense)
        if not name:
            errors["ASA_G"] = _error(attend_with_pools(heads, chosen, allowed, POOL), dense)
            plain = attend_with_pools(heads, chosen, allowed, POOL, log_bias=False)
            errors["ASA_G without ln(pool)"] = _error(plain, dense)
    return errors


def _error(out: torch.Tensor, dense: torch.Tensor) -> float:
    return float((out - dense).norm() / dense.norm())


def _video(generator: torch.Generator, strength: float) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values `[1, heads, tokens, d]`, and the place of each token `[tokens, 3]`, in raster order."""
    at = torch.arange(N)
    place = torch.stack([at % SIDE, at // SIDE % SIDE, at // SIDE**2], -1).float()
    waves = torch.randn(HEADS, 3, D, generator=generator) * 0.5
    phase = torch.rand(HEADS, 1, D, generator=generator) * 6.28
    field = torch.cos(place @ waves + phase) * 2**0.5
    mark = torch.zeros(HEADS, N, D)
    for _ in range(3):
        start, drift = torch.rand(2, 2, generator=generator)
        middle = start * SIDE + (drift - 0.5) * place[:, 2:]
        inside = (place[:, :2] - middle).norm(dim=-1) < 1.8
        mark[:, inside] += torch.randn(HEADS, 1, D, generator=generator)
    noise = [0.3 * torch.randn(HEADS, N, D, generator=generator) for _ in range(2)]
    query, key = (strength * (field + 0.75 * mark) + more for more in noise)
    smooth = torch.cos(place @ (0.4 * torch.randn(HEADS, 3, D, generator=generator)))
    value = smooth + mark + 0.3 * torch.randn(HEADS, N, D, generator=generator)
    return query[None], key[None], value[None], place


def _blocks(scores: torch.Tensor) -> Pattern:
    """The best blocks of each row, as many as the density allows."""
    n = N // BLOCK
    return Pattern(top_blocks(scores, round(DENSITY * n), torch.ones(n, n, dtype=torch.bool)), (BLOCK, BLOCK))


def _window(place: torch.Tensor) -> Pattern:
    """For each block the nearest blocks in space."""
    middle = place.unflatten(0, (-1, BLOCK)).mean(1)
    return _blocks(-torch.cdist(middle, middle).expand(1, HEADS, -1, -1))


def _lot(generator: torch.Generator) -> Pattern:
    return _blocks(torch.rand(1, HEADS, N // BLOCK, N // BLOCK, generator=generator))

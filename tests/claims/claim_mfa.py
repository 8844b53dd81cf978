"""MFA: as good as multi-head attention at a fraction of the cache, with equal numbers of parameters."""

from statistics import mean

import torch

from sparselens.attention import MFA, SelfAttention
from sparselens.models.tiny import n_parameters, tiny_lm
from tests.claims.tiny_lms import HEADS, LAYERS, LENGTH, D, characters, equal_width, held_out_loss, told, widest

PAPER = "MFA, 2412.19255 (Step-3, 2507.19427)"
SEEDS, STEPS = (0, 1, 2), 200
KINDS = {
    "MHA": lambda i: SelfAttention(D, HEADS),
    "GQA": lambda i: SelfAttention(D, HEADS, 2),
    "MQA": lambda i: SelfAttention(D, HEADS, 1),
    "MFA": lambda i: MFA(D, HEADS, 16, 48),
    "MFA, large heads": lambda i: MFA(D, HEADS, 32, 48),
}


def run() -> list[dict]:
    """Rows: loss and cache against multi-head and multi-query attention."""
    torch.set_num_threads(1)
    text = characters()
    size = text[3]
    target = n_parameters(tiny_lm(size, d_model=D, n_layers=LAYERS, n_heads=HEADS, attention=KINDS["MHA"]))
    widths = {name: equal_width(kind, target, size) for name, kind in KINDS.items()}
    losses = {
        name: [held_out_loss(kind, seed, STEPS, text, widths[name]) for seed in SEEDS] for name, kind in KINDS.items()
    }
    caches = {name: kind(0).cache_numbers for name, kind in KINDS.items()}
    shared = {
        "paper": PAPER,
        "data": f"{text[0]}, {LAYERS} layers of {D}, {LENGTH} tokens, {STEPS} steps, {target:,} parameters each",
        "seeds": len(SEEDS),
        "spread": f"{widest(losses):.3f} nats at most between seeds",
    }
    large, gap = "MFA, large heads", mean(losses["MFA"]) - mean(losses["MHA"])
    return [
        shared | {
            "claim": "MFA is within 0.03 nats of multi-head attention with at most 25 % of its cache",
            "baseline": f"MHA {mean(losses['MHA']):.3f} nats, {caches['MHA']} numbers a token",
            "result": f"{told(losses)}; cache " + "; ".join(f"{n} {c}" for n, c in caches.items()),
            "holds": gap <= 0.03 and caches["MFA"] <= 0.25 * caches["MHA"],
        },
        shared | {
            "claim": "MFA with heads twice as large is not worse than multi-query attention of the same parameters",
            "baseline": f"MQA {mean(losses['MQA']):.3f}, cache {caches['MQA']}",
            "result": f"{mean(losses[large]):.3f}, cache {caches[large]}",
            "holds": mean(losses[large]) <= mean(losses["MQA"]),
        },
    ]

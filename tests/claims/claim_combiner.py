"""Combiner: summaries of regions against the sparse attention they are added to, in training and as an approximation.

Characters and texts: see `tests/claims/tiny_lms.py` and `tests/claims/texts.py`.
"""

from statistics import mean

import torch
import torch.nn.functional as F

import sparselens as sl
from sparselens import datasets
from sparselens.attention import Combiner, SelfAttention, combine
from sparselens.attention.regions import divide, without_summaries
from sparselens.models.tiny import lm_scores, next_token, tiny_lm, train_lm
from tests.claims.texts import token_ids
from tests.claims.tiny_lms import HEADS, LENGTH, D, characters, held_out_loss, told, widest

PAPER = "Combiner, 2107.05768"
SEEDS, STEPS, SPAN = (0, 1, 2), 150, 11
PLANS = {"fixed": 0.01, "logsparse": 0.05, "axial_rowmajor": 0.05}  # margins that the specification aims at
TOKENS, BIG_SPAN = 512, 23
RECALL_STEPS, RECALL_SPAN = 300, 7


def run() -> list[dict]:
    """Rows: each plan against its sparse attention, all against dense; then layers of a real model."""
    torch.set_num_threads(1)
    return [*_trained(), _recall(), _approximated()]


def _trained() -> list[dict]:
    text = characters()
    kinds = {"dense": lambda i: SelfAttention(D, HEADS)}
    for plan in PLANS:
        kinds[plan] = lambda i, plan=plan: Combiner(D, HEADS, plan, SPAN, regions=False)
        kinds[f"Combiner {plan}"] = lambda i, plan=plan: Combiner(D, HEADS, plan, SPAN)
    losses = {name: [held_out_loss(kind, seed, STEPS, text) for seed in SEEDS] for name, kind in kinds.items()}
    gains = {plan: mean(losses[plan]) - mean(losses[f"Combiner {plan}"]) for plan in PLANS}
    behind = {plan: mean(losses[f"Combiner {plan}"]) - mean(losses["dense"]) for plan in PLANS}
    shared = {
        "paper": PAPER,
        "data": f"{text[0]}, {LENGTH} tokens, spans of {SPAN}, {STEPS} steps",
        "seeds": len(SEEDS),
        "spread": f"{widest(losses):.3f} nats at most between seeds",
    }
    return [
        shared | {
            "claim": f"summaries improve on the sparse attention of {plan} by {margin} nats",
            "baseline": f"{mean(losses[plan]):.3f}",
            "result": f"{mean(losses[f'Combiner {plan}']):.3f} ({gains[plan]:+.3f} better)",
            "holds": gains[plan] >= margin,
        }
        for plan, margin in PLANS.items()
    ] + [
        shared | {
            "claim": "with summaries every plan is within 0.1 nats of dense attention",
            "baseline": f"dense {mean(losses['dense']):.3f}",
            "result": told(losses),
            "holds": max(behind.values()) <= 0.1,
        }
    ]


def _recall() -> dict:
    """Right answers to questions about facts that stand anywhere before."""
    kinds = {
        "dense": lambda i: SelfAttention(D, HEADS),
        "sparse": lambda i: Combiner(D, HEADS, "fixed", RECALL_SPAN, regions=False),
        "Combiner": lambda i: Combiner(D, HEADS, "fixed", RECALL_SPAN),
    }
    right = {name: [_right(kind, seed) for seed in SEEDS] for name, kind in kinds.items()}
    return {
        "paper": PAPER,
        "claim": "summaries of fixed spans find what one key a span cannot: 0.2 more right answers",
        "data": f"eight facts in 32 tokens, eight questions, spans of {RECALL_SPAN}, {RECALL_STEPS} steps",
        "seeds": len(SEEDS),
        "baseline": f"one key a span {mean(right['sparse']):.2f}, dense {mean(right['dense']):.2f}, chance 0.20",
        "result": f"{mean(right['Combiner']):.2f}",
        "spread": "over seeds " + "; ".join(f"{k} {min(v):.2f} to {max(v):.2f}" for k, v in right.items()),
        "holds": mean(right["Combiner"]) - mean(right["sparse"]) >= 0.2,
    }


def _right(kind, seed: int) -> float:
    """Share of right answers after training."""
    model = tiny_lm(datasets.RECALL_VOCAB, d_model=D, n_layers=2, n_heads=HEADS, length=LENGTH, attention=kind,
                    seed=seed)
    first = 1000 * (1 + seed)
    train_lm(model, (_asked(16, first + i) for i in range(RECALL_STEPS)), RECALL_STEPS, lr=5e-3)
    return lm_scores(model, [_asked(128, 1)])[1]


def _asked(n: int, seed: int):
    ids, start = datasets.recall_rows(n, facts=32, interleaved=True, seed=seed)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, start + 1 :: 2] = True
    return next_token(ids, asked)


def _approximated() -> dict:
    """Relative error of the output of every attention layer of SmolLM2, from its own queries, keys and values."""
    model = sl.load_model()
    name, tokens = token_ids(model)
    sites = [f"blocks.{i}.attn.hook_{kind}" for i in range(model.n_layers) for kind in ("rot_q", "rot_k", "v")]
    seen = model.capture(tokens[None, :TOKENS], sites)
    division = divide("fixed", TOKENS, BIG_SPAN, True)
    ways = {"Combiner": division, "sparse": without_summaries(division)}
    errors = {way: [] for way in ways}
    groups = model.n_heads // model.n_kv_heads
    for i in range(model.n_layers):
        query, key = (seen[f"blocks.{i}.attn.hook_rot_{kind}"] for kind in "qk")
        value = seen[f"blocks.{i}.attn.hook_v"].unflatten(-1, (model.n_kv_heads, -1)).transpose(1, 2)
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        dense = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        for way, plan in ways.items():
            out, _ = combine(query, key, value, plan, pool="mean", log_size_bias=True)
            errors[way].append(float((out - dense).norm() / dense.norm()))
    better = sum(a < b for a, b in zip(errors["Combiner"], errors["sparse"], strict=True))
    return {
        "paper": PAPER,
        "claim": "untrained, in a pretrained model, summaries by means err less than one key a span in most layers",
        "data": f"SmolLM2-135M, {TOKENS} tokens of {name}, spans of {BIG_SPAN}, layer by layer",
        "seeds": 1,
        "baseline": f"one key a span: mean error {mean(errors['sparse']):.3f}",
        "result": f"{mean(errors['Combiner']):.3f}; better in {better} of {model.n_layers} layers",
        "spread": f"errors from {min(errors['Combiner']):.2f} to {max(errors['Combiner']):.2f} over layers",
        "holds": better > model.n_layers / 2,
    }

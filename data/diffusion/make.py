"""How the shipped diffusion model was made: train it to look values up, measure it, write it with its card.

The objective is LLaDA's: hidden answers, weighed by one over the share that is hidden. Besides, each question learns to
say its own answer. The answers then only have to copy from there, which is found in minutes; without, it takes hours.

    python data/diffusion/make.py [--out data/diffusion/recall-128]

A few minutes on one core.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import sparselens as sl
from sparselens import datasets
from sparselens.models.diffusion import masked
from sparselens.models.tiny import Example, n_parameters

ROWS = {"facts": 80, "pairs": 8, "queries": 8}
SIZES = {"d_model": 64, "n_layers": 3, "n_heads": 4, "length": 128}
STEPS, BATCH, LR, SEED = 500, 48, 4e-3, 0


def batches() -> Iterator[Example]:
    """Fresh rows, without end."""
    generator, seed = torch.Generator().manual_seed(SEED), 10**6
    while True:
        ids, prompt = datasets.recall_rows(BATCH, seed=seed, **ROWS)
        example = masked(ids, prompt, datasets.RECALL_MASK, generator)
        questions = slice(prompt - ROWS["queries"], prompt)
        targets, weights = example.targets.clone(), example.weights.clone()
        targets[:, questions], weights[:, questions] = ids[:, prompt:], 1 / ROWS["queries"]
        yield Example(example.ids, targets, weights)
        seed += 1


def share_right(lm: sl.DiffusionLM, steps: int) -> float:
    """Share of right tokens in written answers to rows that were not trained on."""
    ids, prompt = datasets.recall_rows(256, seed=1, **ROWS)
    out = lm.generate(ids[:, :prompt], ids.shape[1] - prompt, steps=steps)
    return float((out.ids == ids)[:, prompt:].float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recall-128")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    model = sl.tiny_lm(datasets.RECALL_VOCAB, **SIZES, causal=False, seed=SEED)
    say = lambda step, loss: step % 100 == 0 and print(step, f"{loss:.3f}", flush=True)  # noqa: E731
    run = sl.train_lm(model, batches(), STEPS, lr=LR, on_step=say)
    lm = sl.DiffusionLM(sl.wrap(model.half().float(), name="recall-128"), datasets.RECALL_MASK)
    right = {steps: share_right(lm, steps) for steps in (1, 4, 8)}
    model.half()
    lm.save(options.out)
    card = {
        "rows": ROWS, "sizes": SIZES, "parameters": n_parameters(model), "steps": STEPS, "batch": BATCH, "lr": LR,
        "seed": SEED, "cpu_seconds": round(time.process_time() - began), "last_loss": round(run.losses[-1], 4),
        "right_tokens_by_steps": {str(k): round(v, 4) for k, v in right.items()}, "held_out_rows": 256,
    }
    (options.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()

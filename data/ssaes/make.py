"""How a step-level SAE for SmolLM2 is made: steps of GSM8K's training set, both language models frozen.

    python data/ssaes/make.py --texts FOLDER --work FOLDER [--steps 20000] [--epochs 2]

`--texts` holds `gsm8k/train.jsonl.gz` and `gsm8k/test.jsonl.gz` (question, answer). It can be stopped at any time and
goes on where it was. The products run in bfloat16, on processors that multiply it faster.
"""

import argparse
import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import torch

import sparselens as sl
from sparselens.files import write_json
from sparselens.reasoning import SparsityController, StepSAE, Traces, read_traces

MODEL, RECIPE = "smollm2-135m-instruct", "gsm8k-576-l1-5"
TARGET, LAYER, MAX_CONTEXT, MAX_STEP = 5, 9, 128, 64
BIAS = -0.75  # one latent in ten starts active, near the target


def chains(path: Path, n: int | None = None) -> Traces:
    """Reference solutions without calculator notes, in random order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    return read_traces([row | {"answer": re.sub(r"<<.*?>>", "", row["answer"])} for row in rows[:n]])


def pairs(traces: Traces, m: sl.LiveModel, n: int) -> list[tuple[str, str]]:
    """The first `n` steps that are short enough."""
    found = [(trace.context(i), text) for trace in traces for i, text in enumerate(trace.steps.texts)]
    lengths = map(len, m.tokenizer([text for _, text in found])["input_ids"])
    return [pair for pair, length in zip(found, lengths, strict=True) if length <= MAX_STEP][:n]


def measured(ssae: StepSAE, held_out: list[tuple[str, str]]) -> dict:
    """NLL a token of held-out steps with their own codes, with those of other steps, and without."""
    latents = ssae.transform(held_out)
    shuffled = latents.z[torch.as_tensor(np.roll(np.random.default_rng(0).permutation(len(latents)), 1))]
    own, other, none = (ssae.nll(held_out, codes) for codes in (latents.z, shuffled, "none"))
    half = 1.96 * float((other - own).std()) / len(own) ** 0.5
    gap = float((other - own).mean())
    return {"steps": len(held_out), "nll_own": float(own.mean()), "nll_shuffled": float(other.mean()),
            "nll_none": float(none.mean()), "gap": gap, "gap_ci": [gap - half, gap + half],
            "l0": float(latents.l0.float().mean()), "l1": float(latents.l1.mean()), "off_share": latents.off_share,
            "dead_share": float((latents.z.sum(0) == 0).float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=500)
    args = parser.parse_args()
    m = sl.load_model(MODEL, dtype=torch.bfloat16)
    ssae = StepSAE(m, max_context=MAX_CONTEXT, max_step=MAX_STEP, pooling="mean", layer=LAYER)
    torch.nn.init.constant_(ssae.b_enc, BIAS)
    controller = SparsityController(TARGET, every=10, rate=0.05, weight=2e-3)
    given = pairs(chains(args.texts / "gsm8k/train.jsonl.gz", args.steps), m, args.steps)
    run = ssae.fit(given, controller=controller, epochs=args.epochs, batch_size=args.batch_size, lr_new=args.lr,
                   out=args.work / "run", checkpoint_every=100, live=False)
    held_out = pairs(chains(args.texts / "gsm8k/test.jsonl.gz"), m, args.held_out)
    ssae.metadata |= {"data": "GSM8K train, calculator notes taken out", "epochs": args.epochs, "lr": args.lr,
                      "seconds": round(run.seconds), "tokens": run.tokens}
    target = Path(__file__).parent / MODEL / RECIPE
    ssae.save(target)
    card = {**ssae.metadata, "weight": controller.weight, "gsm8k_test": measured(StepSAE.load(target, m), held_out)}
    write_json(target / "card.json", card)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()

"""How the step-level SAE for SmolLM2 is made: low-rank adapters in encoder and decoder, trained on steps of arithmetic.

    python data/ssaes/make.py train --texts FOLDER --out RUN [--epochs 4] [--device cuda]
    python data/ssaes/make.py ship --texts FOLDER --run RUN

`--texts` holds `gsm8k/train.jsonl.gz` and `gsm8k/test.jsonl.gz` (question, answer). Training is for a GPU, in bfloat16;
it can be stopped at any time and goes on where it was. `ship` writes the result in float16 with its card, measured in
float32.
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

MODEL, RECIPE = "smollm2-135m-instruct", "arithmetic-576-l1-5"
MAX_CONTEXT, MAX_STEP, PLANTED, HELD_OUT = 256, 96, 3000, 1000


def chains(path: Path, notes: bool) -> Traces:
    """Reference solutions in random order, with or without calculator notes."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    return read_traces(rows if notes else [row | {"answer": re.sub(r"<<.*?>>", "", row["answer"])} for row in rows])


def pairs(traces: Traces, m: sl.LiveModel) -> list[tuple[str, str]]:
    """(context, step) of all steps that are short enough."""
    found = [(trace.context(i), text) for trace in traces for i, text in enumerate(trace.steps.texts)]
    lengths = map(len, m.tokenizer([text for _, text in found])["input_ids"])
    return [pair for pair, length in zip(found, lengths, strict=True) if length <= MAX_STEP]


def mixture(texts: Path, m: sl.LiveModel) -> list[tuple[str, str]]:
    """What it is trained on: GSM8K's steps with and without notes, and made-up problems, half with a wrong step."""
    train = texts / "gsm8k/train.jsonl.gz"
    return [pair for traces in (chains(train, False), chains(train, True), sl.planted_chains(PLANTED, seed=7))
            for pair in pairs(traces, m)]


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


def train(args: argparse.Namespace) -> None:
    """Train, and keep the weights in float32."""
    m = sl.load_model(MODEL, device=args.device, dtype=torch.bfloat16)
    ssae = StepSAE(m, tuning="lora", rank=6, pooling=args.pooling, max_context=MAX_CONTEXT, max_step=MAX_STEP)
    controller = SparsityController(args.target, every=10, rate=0.1, weight=1e-3)
    run = ssae.fit(mixture(args.texts, m), controller=controller, epochs=args.epochs, batch_size=args.batch_size,
                   lr_new=args.lr, lr_lm=args.lr_lm, out=args.out, checkpoint_every=500, live=False)
    ssae.metadata |= {"data": "GSM8K train with and without calculator notes, planted chains", "epochs": args.epochs,
                      "lr": args.lr, "lr_lm": args.lr_lm, "seconds": round(run.seconds), "tokens": run.tokens,
                      "weight": controller.weight, "history": run.history[-1]}
    ssae.save(args.out / "trained")
    print(json.dumps(ssae.metadata), flush=True)


def ship(args: argparse.Namespace) -> None:
    """Write it in half precision, and measure what was written."""
    m, target = sl.load_model(MODEL, device=args.device, dtype=torch.float32), Path(__file__).parent / MODEL / RECIPE
    StepSAE.load(args.run / "trained", m).half().save(target)
    ssae = StepSAE.load(target, m)
    held_out = pairs(chains(args.texts / "gsm8k/test.jsonl.gz", False), m)[:HELD_OUT]
    card = {**ssae.metadata, "gsm8k_test": measured(ssae, held_out)}
    write_json(target / "card.json", card)
    print(json.dumps(card, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "ship"))
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder of the training")
    parser.add_argument("--run", type=Path, help="folder that training wrote")
    parser.add_argument("--device", default=None)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--target", type=float, default=5.0)
    parser.add_argument("--pooling", default="last")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lr-lm", type=float, default=5e-4)
    args = parser.parse_args()
    train(args) if args.what == "train" else ship(args)


if __name__ == "__main__":
    main()

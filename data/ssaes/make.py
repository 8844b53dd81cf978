"""How the step-level SAE for SmolLM2 is made, in three parts: adapt, start, train.

    python data/ssaes/make.py train --texts FOLDER --out RUN [--device cuda]
    python data/ssaes/make.py ship --texts FOLDER --out RUN

`--texts` holds `gsm8k/train.jsonl.gz` and `gsm8k/test.jsonl.gz` (question, answer). The decoder's adapters first learn
what such steps look like, with a code that says nothing; projector and MLP learn codes that tell the words of a step;
then all of it is trained as in the paper. `ship` writes the result in float16 with its card, measured in float32. What
was run for the weights that are shipped, and where, stands in the README beside this file.
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
from sparselens.reasoning import SparsityController, StepDataset, StepSAE, Traces, read_traces

MODEL, RECIPE = "smollm2-135m-instruct", "arithmetic-576-l1-5"
TARGET, LAYER, MAX_CONTEXT, MAX_STEP, LONGEST = 5, 9, 256, 96, 150
PLANTED, HELD_OUT = 3000, 400


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
    found = [pair for traces in (chains(train, False), chains(train, True), sl.planted_chains(PLANTED, seed=7))
             for pair in pairs(traces, m)]
    random.Random(1).shuffle(found)
    return found


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
    ssae = StepSAE(m, tuning=("frozen", "lora"), rank=6, pooling="mean", layer=LAYER, place="step",
                   max_context=MAX_CONTEXT, max_step=MAX_STEP)
    steps = ssae.dataset(mixture(args.texts, m))
    adapt(ssae, steps, args.out / "adapt")
    short = [row for row in range(len(steps)) if steps.lengths[row] <= LONGEST][: args.steps]
    chosen = StepDataset([steps.contexts[r] for r in short], [steps.steps[r] for r in short], steps.end)
    h = ssae.summaries(chosen)
    ssae.start(chosen, h, controller=SparsityController(TARGET, every=5, rate=0.05, weight=1e-3))
    controller = SparsityController(TARGET, every=10, rate=0.05, weight=1e-3)
    run = ssae.fit(chosen, controller=controller, summaries=h, epochs=args.epochs, batch_size=8, lr_new=args.lr,
                   lr_lm=args.lr, out=args.out / "run", checkpoint_every=100, live=False)
    ssae.metadata |= {"data": "GSM8K train with and without calculator notes, planted chains", "epochs": args.epochs,
                      "lr": args.lr, "seconds": round(run.seconds), "tokens": run.tokens, "weight": controller.weight}
    ssae.save(args.out / "trained")
    print(json.dumps(ssae.metadata), flush=True)


def adapt(ssae: StepSAE, steps: StepDataset, out: Path) -> None:
    """Let the decoder's adapters learn the texts under a code that is always the same."""
    begun = {name: value.clone() for name, value in ssae.state_dict().items()}
    with torch.no_grad():
        ssae.W_enc.zero_()
        ssae.b_enc.fill_(1)
    ssae.fit(steps, summaries=torch.zeros(len(steps), ssae.model.d_model), epochs=0.2, batch_size=64, lr_lm=1e-3,
             out=out, live=False)
    with torch.no_grad():
        for name, value in ssae.state_dict().items():
            if not name.startswith("decoder."):
                value.copy_(begun[name])


def ship(args: argparse.Namespace) -> None:
    """Write it in half precision, and measure what was written."""
    m, target = sl.load_model(MODEL, device=args.device, dtype=torch.float32), Path(__file__).parent / MODEL / RECIPE
    StepSAE.load(args.out / "trained", m).half().save(target)
    ssae = StepSAE.load(target, m)
    held_out = pairs(chains(args.texts / "gsm8k/test.jsonl.gz", False), m)[:HELD_OUT]
    card = {**ssae.metadata, "gsm8k_test": measured(ssae, held_out)}
    write_json(target / "card.json", card)
    print(json.dumps(card, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "ship"))
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--device", default=None)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--epochs", type=float, default=0.6)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    train(args) if args.what == "train" else ship(args)


if __name__ == "__main__":
    main()

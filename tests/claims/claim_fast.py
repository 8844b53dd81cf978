"""FAST against block training on SmolLM2: how well the special tokens of dialogues are reconstructed."""

import gzip
import json
import os
import re
import tempfile
from pathlib import Path
from statistics import mean

import torch

import sparselens as sl
from sparselens.sae import dialogue_activations, drop_repeats, special_token_report
from tests.claims.planted import trained

PAPER = "FAST, 2506.07691"
SITE, BLOCK = "blocks.14.hook_resid_post", 512
TOKENS, HELD, STEPS, BATCH = 16_000, 24, 600, 256
SEEDS = range(2)
VOICES = ("You are terse.", "Answer like a pirate.", "You teach small children.", "You are a lawyer.", "Be merry.",
          "You doubt everything.", "Use plain words.", "You are a poet.", "Think of the sea.",
          "You like numbers.")  # fmt: skip


def dialogues() -> tuple[str, list]:
    """Chats: of HH-RLHF and the T0 mixture if SPARSELENS_TEXTS names their folder, else the project's answers."""
    folder = os.environ.get("SPARSELENS_TEXTS")
    if not folder:
        rows = sl.datasets.load_answers("formal").to_dict("records")
        return "the project's formal answers", [chat(("user", r["prompt"]), ("assistant", r["answer"])) for r in rows]
    with gzip.open(Path(folder) / "hh-harmless" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line)["chosen"] for line in file][:400]
    talks = []
    for text in lines:
        turns = re.findall(r"\n\n(Human|Assistant): (.*?)(?=\n\nHuman:|\n\nAssistant:|$)", text, re.DOTALL)
        if all(said.strip() for _, said in turns):
            talks.append(chat(*(("user" if who == "Human" else "assistant", said.strip()) for who, said in turns)))
    with gzip.open(Path(folder) / "t0-mixture.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(8000), file, strict=False)][::20]
    tasks = [chat(("user", r["prompt"].strip()), ("assistant", r["completion"].strip())) for r in rows]
    tasks = [one for one in tasks if all(part["content"] for part in one)]
    return "HH-RLHF and T0 dialogues", [one for pair in zip(talks, tasks, strict=False) for one in pair]


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": said} for role, said in turns]


def compared(m: sl.LiveModel, train: list, held: list, seeds: range = SEEDS) -> list:
    """Reports of both ways, a report a seed."""
    sources = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, block in (("FAST", None), ("blocks", BLOCK)):
            place = Path(folder) / name
            sources[name] = dialogue_activations(m, train, SITE, place, TOKENS, block=block, progress=False)
        reports = []
        for seed in seeds:
            saes = {
                name: trained(source, STEPS, BATCH, d_sae=2304, k=32, lr=1e-3, seed=seed)
                for name, source in sources.items()
            }
            reports.append(special_token_report(m, saes, held))
    return reports


def gaps(reports: list, group: str) -> list[float]:
    """By how many log2 units blocks reconstruct a group worse, a number a seed."""
    frames = [report.to_frame() for report in reports]
    return [float(f.loc[group, "blocks"] - f.loc[group, "FAST"]) for f in frames]


def run() -> list[dict]:
    """Rows: special tokens, ordinary tokens, and the control without a constant beginning."""
    torch.set_num_threads(1)
    m = sl.load_model()
    name, found = dialogues()
    found = [one for one in drop_repeats(found) if 60 < len(" ".join(p["content"] for p in one)) < 2500]
    held, train = found[:HELD], found[HELD:]
    reports = compared(m, train, held)
    many = [[chat(("system", f"{VOICES[i % 10]} {VOICES[i // 10 % 10]}"))[0], *one] for i, one in enumerate(found)]
    control = compared(m, many[HELD:], many[:HELD], range(1))
    special, ordinary, varied = (gaps(r, g) for r, g in (
        (reports, "special, not first"), (reports, "ordinary"), (control, "special, not first")))  # fmt: skip
    frame = reports[0].to_frame()
    data = f"SmolLM2, {SITE}, {name}: {TOKENS:,} tokens, {HELD} dialogues held out; TopK 2,304, k 32, blocks of {BLOCK}"
    shared = {"paper": PAPER, "data": data, "seeds": len(SEEDS)}

    def said(group: str, name: str) -> str:
        return f"{frame.loc[group, name]:.2f}"

    return [
        {**shared,
         "claim": "dialogues run alone give a far better fit of special tokens (first token left out): 1 log2 unit",
         "baseline": f"blocks, first seed {said('special, not first', 'blocks')}",
         "result": f"{said('special, not first', 'FAST')}; gap {mean(special):.2f}; without the shared beginning "
         f"{mean(gaps(reports, 'special, not shared')):.2f}",
         "spread": f"{min(special):.2f} to {max(special):.2f}", "holds": mean(special) >= 1.0},
        {**shared, "claim": "ordinary tokens are fitted alike (0.15 log2 units)",
         "baseline": f"blocks, first seed {said('ordinary', 'blocks')}",
         "result": f"{said('ordinary', 'FAST')}; gap {mean(ordinary):.2f}",
         "spread": f"{min(ordinary):.2f} to {max(ordinary):.2f}", "holds": abs(mean(ordinary)) <= 0.15},
        {**shared, "claim": "part of it is the constant system prompt: with a varied one the gap is smaller",
         "baseline": f"constant: {mean(special):.2f}", "result": f"varied: {mean(varied):.2f}",
         "spread": "one seed of the control", "holds": max(varied) < min(special)},
    ]  # fmt: skip

"""How the shipped SAEs were made: harvest activations of a text mixture, train, measure, write the card.

    python data/saes/make.py --texts FOLDER --work FOLDER [--tokens 4000000]

`--texts` holds `t0-mixture.jsonl.gz` (prompt, completion), `gsm8k/train.jsonl.gz` (question, answer),
`hh-harmless/test.jsonl.gz` (chosen) and `wikitext-2/test.txt.gz`. Harvesting takes hours on a CPU; it can be stopped
at any time and goes on where it was. `--store` takes activations that are harvested already.
"""

import argparse
import gzip
import json
import random
import re
from pathlib import Path

import torch

import sparselens as sl
from sparselens.files import write_json
from sparselens.sae.run import TrainingRun
from sparselens.sae.store import ActivationStore, harvest

MODEL = "smollm2-135m-instruct"
D_SAE, K, CONTEXT = 4608, 32, 256


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def mixture(folder: Path) -> list:
    """T0 prompts with completions, near-duplicates dropped, every second one as a chat; GSM8K and HH as chats."""
    documents: list = []
    seen: set[str] = set()
    for row in rows(folder / "t0-mixture.jsonl.gz"):
        sentences = [s for s in row["prompt"].replace("\n", " ").split(". ") if len(s) > 60]
        key = max(sentences, key=len)[:100] if sentences else row["prompt"][:100]
        if key in seen:
            continue
        seen.add(key)
        if len(documents) % 2:
            documents.append(chat(row["prompt"], row["completion"]))
        else:
            documents.append(row["prompt"] + "\n" + row["completion"])
    for row in rows(folder / "gsm8k/train.jsonl.gz"):
        documents.append(chat(row["question"], re.sub(r"<<.*?>>", "", row["answer"])))
    for row in rows(folder / "hh-harmless/test.jsonl.gz"):
        parts = [p.strip() for p in re.split(r"\n\n(?:Human|Assistant): ?", row["chosen"])[1:]]
        if parts and all(parts):
            documents.append(chat(*parts))
    random.Random(0).shuffle(documents)
    return documents


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn.strip()} for n, turn in enumerate(turns)]


def wikitext(folder: Path, n_articles: int) -> list[str]:
    """The first articles of the WikiText-2 test set."""
    with gzip.open(folder / "wikitext-2/test.txt.gz", "rt", encoding="utf-8") as handle:
        articles = re.split(r"(?m)^ = (?!=).* = $", handle.read())
    return [a.strip() for a in articles if len(a) > 200][:n_articles]


def train(store: ActivationStore, site: str, n_tokens: int, work: Path, lr: float) -> tuple[sl.SAE, TrainingRun]:
    return sl.train_sae(
        store, n_tokens=n_tokens, site=site, architecture="topk", d_sae=D_SAE, k=K, lr=lr, out=work / f"run-{site}"
    )


def measured(m: sl.LiveModel, sae: sl.SAE, texts: list[str]) -> dict:
    report = sl.fidelity(m, sae, texts, max_length=CONTEXT, long="chunk")
    names = ("tokens", "l0", "fvu", "ce_clean", "ce", "ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean")
    names += ("kl", "top1", "dead_share", "dense_share")
    return {name: getattr(report, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--site", default="blocks.14.hook_resid_post")
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--articles", type=int, default=6)
    parser.add_argument("--bf16", action="store_true", help="harvest with bfloat16 products, where there are any")
    parser.add_argument("--default", action="store_true", help="make it the model's default SAE")
    args = parser.parse_args()
    m = sl.load_model(MODEL)
    if args.store:
        store = ActivationStore(args.store)
    else:
        with torch.autocast(m.device.type, torch.bfloat16, enabled=args.bf16):
            store = harvest(m, mixture(args.texts), args.site, args.work / "activations", args.tokens, context=CONTEXT)
    n_tokens = int(args.epochs * store.n_tokens)
    sae, run = train(store, args.site, n_tokens, args.work, args.lr)
    sae.metadata |= {"prepend_bos": False, "dataset_path": "t0-mixture, gsm8k and hh-harmless, half of it as chats"}
    target = Path(__file__).parent / MODEL / args.site / f"topk-{D_SAE}-k{K}"
    sae.half().save(target)
    shipped = sl.SAE.load(target)  # measured as it is shipped, in float16
    card = json.loads((target / "card.json").read_text())
    card |= {
        "default": args.default,
        "distinct_tokens": store.n_tokens,
        "tokens_trained_on": run.n_tokens,
        "dead_share_training": sae.metadata.get("dead_share"),
        "seconds": round(run.seconds),
        "lr": args.lr,
        "batch_size": run.settings["batch_size"],
        "seed": run.settings["seed"],
        "wikitext2_test": measured(m, shipped, wikitext(args.texts, args.articles)),
        "kept_tokens": "content tokens without the first of each row of 256 and without norms above 10 medians",
    }
    write_json(target / "card.json", card)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()

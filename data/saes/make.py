"""How the shipped SAEs were made: harvest activations of a text mixture, train, measure, write the card.

    python data/saes/make.py --texts FOLDER --work FOLDER --recipe topk-4608-k32 [--tokens 4000000] [--epochs 2]

`--texts` holds `t0-mixture.jsonl.gz` (prompt, completion), `gsm8k/train.jsonl.gz` (question, answer),
`hh-harmless/test.jsonl.gz` (chosen) and `wikitext-2/test.txt.gz`. Harvesting takes hours on a CPU; it can be stopped
at any time and goes on where it was. Recipes that read the same texts share one harvest of all their sites.
"""

import argparse
import gzip
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import torch

import sparselens as sl
from sparselens.files import write_json
from sparselens.sae.store import harvest

MODEL, CONTEXT = "smollm2-135m-instruct", 256
RESID, HEADS = "blocks.14.hook_resid_post", "blocks.14.attn.hook_z"
# name of the recipe -> what is trained; "texts" says on what, "atoms" that nothing is trained
RECIPES: dict[str, dict[str, Any]] = {
    "topk-4608-k32": {"site": RESID, "architecture": "topk", "d_sae": 4608, "k": 32, "lr": 4e-3},
    "jumprelu-4608-l32": {"site": RESID, "architecture": "jumprelu", "d_sae": 4608, "k": 32, "lr": 3e-3},
    "abstopk-2304-k32": {"site": RESID, "architecture": "abstopk", "d_sae": 2304, "k": 32, "lr": 4e-3},
    "mp-4608-k32": {"site": RESID, "architecture": "mp", "d_sae": 4608, "k": 32, "lr": 3e-3},
    "topk-1536-k32": {"site": HEADS, "architecture": "topk", "d_sae": 1536, "k": 32, "lr": 4e-3},
    "fast-2304-k32": {"site": RESID, "architecture": "topk", "d_sae": 2304, "k": 32, "lr": 4e-3, "texts": "chats"},
    "itda-k32": {"site": RESID, "d_sae": 2304, "k": 32, "texts": "atoms"},
}
KEPT = "content tokens without the first of each row of 256 and without norms above 10 medians"
KEPT_CHATS = "every token of each dialogue, template tokens included, but the first and norms above 10 medians"


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


def chats(folder: Path) -> list:
    """The dialogues of the mixture."""
    return [document for document in mixture(folder) if isinstance(document, list)]


def made(m: sl.LiveModel, name: str, args: argparse.Namespace) -> tuple[sl.SAE, dict]:
    """The dictionary of a recipe, and what its card says about the making."""
    recipe = dict(RECIPES[name])
    kind, begin = recipe.pop("texts", "mixture"), time.perf_counter()
    if kind == "atoms":
        site, atoms, k = recipe["site"], recipe["d_sae"], recipe["k"]
        texts = mixture(args.texts)[: args.documents]
        sae = sl.build_itda(m, texts, site=site, k=k, min_cosine=args.min_cosine, max_atoms=atoms)
        sae.metadata["max_norm"] = sl.SAE.load(MODEL).max_norm  # the field of the others
        facts = {"documents": len(texts), "min_cosine": args.min_cosine, "kept_tokens": "all but the first of a text"}
        return sae, facts | {"seconds": round(time.perf_counter() - begin)}
    if kind == "chats":
        rows: Any = sl.dialogue_activations(m, chats(args.texts), recipe["site"], args.work / "chats", args.tokens)
    else:
        with torch.autocast(m.device.type, torch.bfloat16, enabled=args.bf16):
            sites = [RESID, HEADS]
            rows = harvest(m, mixture(args.texts), sites, args.work / "store", args.tokens, context=CONTEXT)
    sae, run = sl.train_sae(rows, n_tokens=int(args.epochs * rows.n_tokens), out=args.work / f"run-{name}", **recipe)
    settings = {key: run.settings[key] for key in ("batch_size", "seed")}
    facts = {"distinct_tokens": rows.n_tokens, "tokens_trained_on": run.n_tokens, "lr": recipe["lr"], **settings}
    kept = KEPT_CHATS if kind == "chats" else KEPT
    dead = sae.metadata.get("dead_share")
    return sae, facts | {"seconds": round(run.seconds), "dead_share_training": dead, "kept_tokens": kept}


def measured(m: sl.LiveModel, sae: sl.SAE, texts: list[str]) -> dict:
    report = sl.fidelity(m, sae, texts, max_length=CONTEXT, long="chunk")
    names = ("tokens", "l0", "fvu", "ce_clean", "ce", "ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean")
    names += ("kl", "top1", "dead_share", "dense_share")
    return {name: getattr(report, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", choices=list(RECIPES), required=True)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--articles", type=int, default=6)
    parser.add_argument("--documents", type=int, default=2000, help="texts that an ITDA reads")
    parser.add_argument("--min-cosine", type=float, default=0.85, help="of an ITDA")
    parser.add_argument("--bf16", action="store_true", help="harvest with bfloat16 products, where there are any")
    parser.add_argument("--default", action="store_true", help="make it the model's default SAE")
    args = parser.parse_args()
    m = sl.load_model(MODEL)
    sae, facts = made(m, args.recipe, args)
    sae.metadata |= {"prepend_bos": False, "dataset_path": "t0-mixture, gsm8k and hh-harmless, half of it as chats"}
    target = Path(__file__).parent / MODEL / RECIPES[args.recipe]["site"] / args.recipe
    sae.half().save(target)
    shipped = sl.SAE.load(target)  # measured as it is shipped, in float16
    card = json.loads((target / "card.json").read_text()) | {"default": args.default} | facts
    card["wikitext2_test"] = measured(m, shipped, wikitext(args.texts, args.articles))
    for key in ("l0", "fvu"):  # what was built and not trained has no figures of its own
        card.setdefault(key, card["wikitext2_test"][key])
    write_json(target / "card.json", card)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()

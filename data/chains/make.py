"""Let SmolLM2-135M-Instruct solve made-up word problems, each several times: writes `smollm2-135m-instruct.jsonl.gz`.

    python data/chains/make.py [--device cuda]

Three solved problems stand before each, so that chains come in the same form: a step a line, with calculator notes. The
verdict is whether the last number of the chain is the answer. So small a model is mostly wrong: of the problems asked,
those are kept that it got right at least once, and as many of the first others as make up the number wanted. Other
machines and versions sample other chains.
"""

import argparse
import gzip
import json
from pathlib import Path

import torch

import sparselens as sl
from sparselens.files import write_whole
from sparselens.reasoning import final_number

MODEL, ASKED, KEPT, SAMPLES, SEED = "smollm2-135m-instruct", 400, 100, 4, 40
MOVES, NEW_TOKENS, SHOTS = (1, 3), 120, 3


def problems(n: int) -> list:
    """Made-up arithmetic problems with their right chains."""
    return [t for t in sl.planted_chains(2 * n, share_wrong=0.0, moves=MOVES, seed=SEED) if "<<" in t.text]


def chosen(rows: list[dict]) -> list[dict]:
    """The chains of KEPT problems, in order: all that were solved at least once, and the first others."""
    names = dict.fromkeys(row["problem"] for row in rows)
    solved = {row["problem"] for row in rows if row["verdict"]}
    others = [name for name in names if name not in solved][: max(0, KEPT - len(solved))]
    return [row for row in rows if row["problem"] in solved or row["problem"] in others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / f"{MODEL}.jsonl.gz")
    parser.add_argument("--asked", type=int, default=ASKED)
    args = parser.parse_args()
    m = sl.load_model(MODEL, device=args.device, dtype=torch.float32)
    given = problems(SHOTS + args.asked)
    shown = [{"role": role, "content": text} for t in given[:SHOTS]
             for role, text in (("user", t.question), ("assistant", t.text))]
    asked = [t for t in given[SHOTS:] for _ in range(SAMPLES)]
    chats = [[*shown, {"role": "user", "content": t.question}] for t in asked]
    written = m.generate(chats, NEW_TOKENS, do_sample=True, temperature=0.7, top_p=0.9, seed=SEED, batch_tokens=300_000)
    rows = [{"problem": f"made {number // SAMPLES}", "question": t.question, "text": text.strip(), "model": MODEL,
             "verdict": final_number(text) == final_number(t.text)}
            for number, (t, text) in enumerate(zip(asked, written, strict=True)) if text.strip()]
    rows = chosen(rows)
    with write_whole(args.out) as target, gzip.GzipFile(target, "wb", mtime=0) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"{len(rows)} chains, {sum(row['verdict'] for row in rows)} with the right answer")


if __name__ == "__main__":
    main()

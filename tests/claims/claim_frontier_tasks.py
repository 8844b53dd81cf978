"""The Sparse Frontier on a task: which sparse attention still finds a number told once in a long text, on SmolLM2.

The score is the mean log-probability of the number's tokens. The gain is what the needle brings: dense attention with
it against dense attention without; a method's share of the gain is what is left of it.
"""

from statistics import mean, stdev
from typing import Any

import sparselens as sl
from sparselens.attention.frontier import score

DENSITY = 0.125
#: name -> maker, and whether the answer is read together with the prompt (else it is decoded)
METHODS: dict[str, tuple[Any, bool]] = {
    "VerticalSlash": (sl.VerticalSlash, True),
    "BlockSparse": (sl.BlockSparse, True),
    "SinkWindow": (lambda b: sl.SinkWindow(b, phase="prefill"), True),
    "Quest as mask": (lambda b: sl.Quest(b, phase="prefill"), True),
    "SinkWindow, answer dense": (lambda b: sl.SinkWindow(b, phase="prefill"), False),
    "SnapKV": (sl.SnapKV, False),
}


#: tokens, texts and methods of each row; long texts under masks are slow on a CPU
CASES = ((512, 3, tuple(METHODS)), (2048, 2, ("VerticalSlash", "BlockSparse", "SinkWindow")))


def run() -> list[dict[str, object]]:
    """A row for each length."""
    model = sl.load_model()
    return [_row(model, "niah", *case) for case in CASES]


def _row(model: sl.LiveModel, task: str, tokens: int, n: int, names: tuple[str, ...]) -> dict[str, object]:
    texts = sl.attention.long_context(model.tokenizer, task, tokens=tokens, n=n)
    dense = [score(model, text).logprob for text in texts]
    guess = [score(model, text.without_needles()).logprob for text in texts]
    gain = mean(dense) - mean(guess)
    scores = {name: [score(model, text, METHODS[name][0](DENSITY), read=METHODS[name][1]).logprob for text in texts]
              for name in names}
    share = {name: (mean(found) - mean(guess)) / gain for name, found in scores.items()}
    prompts = [name for name in ("VerticalSlash", "Quest as mask") if share.get(name, 0) >= 0.5]
    return {
        "paper": "The Sparse Frontier, 2504.17768",
        "claim": f"{task}: at an eighth in the prompt, Vertical-Slash or Quest's pages keep half of the gain, and "
                 "sink+window does not",
        "data": f"SmolLM2-135M-Instruct, {n} texts of {tokens:,} tokens, teacher-forced answers",
        "seeds": n,
        "baseline": f"log-probability dense {mean(dense):.2f}, without needles {mean(guess):.2f}",
        "result": "share of the gain left: " + ", ".join(f"{name} {value:.2f}" for name, value in share.items()),
        "spread": "standard deviation of log-probabilities: "
                  + ", ".join(f"{name} {stdev(found):.2f}" for name, found in scores.items()),
        "holds": bool(prompts) and share["SinkWindow"] < 0.5,
    }

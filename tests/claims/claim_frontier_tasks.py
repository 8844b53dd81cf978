"""The Sparse Frontier on a task: which sparse attention still finds a number told once in a long text, on SmolLM2.

The score is the mean log-probability of the number's tokens. The gain is what the needle brings: dense attention with
it against dense attention without; a method's share of the gain is what is left of it.
"""

from statistics import mean, stdev
from typing import Any

import sparselens as sl
from sparselens.attention.frontier import score

TEXTS, TOKENS, DENSITY = 3, 512, 0.125
TASKS = ("niah",)
#: name -> maker, and whether the answer is read together with the prompt (else it is decoded)
METHODS: dict[str, tuple[Any, bool]] = {
    "VerticalSlash": (sl.VerticalSlash, True),
    "BlockSparse": (sl.BlockSparse, True),
    "SinkWindow": (lambda b: sl.SinkWindow(b, phase="prefill"), True),
    "Quest as mask": (lambda b: sl.Quest(b, phase="prefill"), True),
    "SinkWindow, answer dense": (lambda b: sl.SinkWindow(b, phase="prefill"), False),
    "SnapKV": (sl.SnapKV, False),
}


def run() -> list[dict[str, object]]:
    """A row for each task."""
    model = sl.load_model()
    return [_row(model, task) for task in TASKS]


def _row(model: sl.LiveModel, task: str) -> dict[str, object]:
    texts = sl.attention.long_context(model.tokenizer, task, tokens=TOKENS, n=TEXTS)
    dense = [score(model, text).logprob for text in texts]
    guess = [score(model, text.without_needles()).logprob for text in texts]
    gain = mean(dense) - mean(guess)
    scores = {name: [score(model, text, make(DENSITY), read=read).logprob for text in texts]
              for name, (make, read) in METHODS.items()}
    share = {name: (mean(found) - mean(guess)) / gain for name, found in scores.items()}
    prompts = [n for n in ("VerticalSlash", "Quest as mask") if share[n] >= 0.5]
    return {
        "paper": "The Sparse Frontier, 2504.17768",
        "claim": f"{task}: at an eighth in the prompt, Vertical-Slash or Quest's pages keep half of the gain, and "
                 "sink+window does not",
        "data": f"SmolLM2-135M-Instruct, {TEXTS} texts of {TOKENS} tokens, teacher-forced answers",
        "seeds": TEXTS,
        "baseline": f"log-probability dense {mean(dense):.2f}, without needles {mean(guess):.2f}",
        "result": "share of the gain left: " + ", ".join(f"{name} {value:.2f}" for name, value in share.items()),
        "spread": "standard deviation of log-probabilities: "
                  + ", ".join(f"{name} {stdev(found):.2f}" for name, found in scores.items()),
        "holds": bool(prompts) and share["SinkWindow"] < 0.5,
    }

"""The step-level SAE that comes with sparselens, on GSM8K's test set: what its codes are worth, and what they tell.

Needs `gsm8k/test.jsonl.gz` below the folder that SPARSELENS_TEXTS names.
"""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np

import sparselens as sl
from sparselens.reasoning import StepProbes, StepSAE, Traces

PAPER = "SSAE, 2603.03031"
WRITTEN, CHAINS, SPLITS = 240, 300, 5
Row = dict[str, object]


def run() -> list[Row]:
    """The rows: codes against shuffled ones and none; step length and first token against what sees the context."""
    m = sl.load_model()
    ssae = StepSAE.load("smollm2-135m-instruct", m)
    traces = _traces()
    z = ssae.transform(traces, long="cut")
    states = sl.step_states(traces, m).plus(ssae=z)
    read = f"l0 {float(z.l0.float().mean()):.0f}"
    return [_worth(ssae, traces),
            _favoured(traces, states, "length", "rmse", read),
            _favoured(traces, states, "first_token", "perplexity", read)]


def _traces() -> Traces:
    """Reference solutions without calculator notes."""
    folder = os.environ.get("SPARSELENS_TEXTS")
    if not folder:
        raise FileNotFoundError("set SPARSELENS_TEXTS to the folder with gsm8k/test.jsonl.gz.")
    with gzip.open(Path(folder) / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(CHAINS), lines, strict=False)]
    return sl.read_traces([row | {"answer": re.sub(r"<<.*?>>", "", row["answer"])} for row in rows])


def _worth(ssae: StepSAE, traces: Traces) -> Row:
    pairs = [(trace.context(i), text) for trace in traces for i, text in enumerate(trace.steps.texts)]
    chosen = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:WRITTEN]]
    z = ssae.transform(chosen, long="cut").z
    own, other, none = (ssae.nll(chosen, codes, long="cut").numpy() for codes in (z, z.roll(1, 0), "none"))
    gaps = {name: _interval(x - own) for name, x in (("shuffled", other), ("none", none))}
    alone = _interval(other - none)
    return {
        "paper": PAPER,
        "claim": "a step is written with less surprise from its own code than from another's, and another's is no "
        "better than none",
        "data": f"{WRITTEN} steps of GSM8K's test set with their contexts; SmolLM2-135M-Instruct, the shipped StepSAE",
        "seeds": 1,
        "baseline": f"nats a token with the code of another step {other.mean():.3f}, without any {none.mean():.3f}",
        "result": f"with its own {own.mean():.3f}: gap to another's {gaps['shuffled'][0]:.3f}, to none "
        f"{gaps['none'][0]:.3f}; another's against none {alone[0]:+.3f}",
        "spread": "95% intervals over steps " + ", ".join(f"{name} {low:.3f} to {high:.3f}"
                                                          for name, (_, low, high) in gaps.items()),
        "holds": bool(gaps["shuffled"][1] > 0 and gaps["none"][1] > 0 and alone[2] > -0.02),
    }


def _interval(x: np.ndarray) -> tuple[float, float, float]:
    half = 1.96 * float(x.std(ddof=1)) / len(x) ** 0.5
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half


def _favoured(traces: Traces, states: sl.reasoning.StepStates, task: str, figure: str, read: str) -> Row:
    """Figures are errors: the smaller the better."""
    tables = [sl.probe_steps(traces, states, task=task, seed=seed) for seed in range(SPLITS)]
    mean = {name: float(np.mean([t.scores[name][figure].value for t in tables])) for name in tables[0].scores}
    seen = ("ssae", "last", "mean")
    before = [name for name in mean if name not in seen]
    best = min(before, key=lambda name: mean[name])
    return {
        "paper": PAPER,
        "claim": f"the {task.replace('_', ' ')} of a step is read from its code far better than from what stands "
        "before it (favoured by construction: the code has seen the step)",
        "data": f"{traces.n_steps} steps of {CHAINS} GSM8K test problems; SmolLM2-135M-Instruct, {states.site}",
        "seeds": SPLITS,
        "baseline": ", ".join(f"{name} {mean[name]:.2f}" for name in before) + f" ({figure})",
        "result": ", ".join(f"{name} {mean[name]:.2f}" for name in seen) + f"; the code's {read}",
        "spread": f"ssae {_range(tables, 'ssae', figure)}, {best} {_range(tables, best, figure)} over splits",
        "holds": mean["ssae"] < 0.75 * mean[best],
    }


def _range(tables: list[StepProbes], name: str, figure: str) -> str:
    values = [t.scores[name][figure].value for t in tables]
    return f"{min(values):.2f} to {max(values):.2f}"

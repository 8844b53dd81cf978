"""Correctness of real chains of thought (GSM8K's example solutions, four models) from states of SmolLM2: probes, votes.

Needs `gsm8k/example_model_solutions.jsonl.gz` below the folder that SPARSELENS_TEXTS names.
"""

import os
import random
from pathlib import Path

import numpy as np

import sparselens as sl
from sparselens.reasoning import StepProbes, StepSAE, StepStates, Traces, compare_votes

PAPER = "Step-Level SAE, 2603.03031"
PROBLEMS, SPLITS = 140, 8
TRAIN, TEST = ("6b_finetuning", "175b_verification"), ("6b_verification", "175b_finetuning")
DENSE, TEXT = ("last", "mean"), ("statistics", "words")
SPARSE, BOTH = ("sae", "ssae"), "last + statistics"


def run() -> list[dict[str, object]]:
    """The rows: the dense and the sparse probe on held-out problems, on other models' chains, and as votes."""
    traces = _traces()
    m = sl.load_model()
    ssae = StepSAE.load("smollm2-135m-instruct", m)
    states = sl.step_states(traces, m, sl.SAE.load("smollm2-135m-instruct"))
    states = states.plus(ssae=ssae.transform(traces, long="cut"))
    data = (f"{len(traces)} chains of {PROBLEMS} GSM8K problems by four models, verdicts known; SmolLM2-135M-Instruct, "
            f"{states.site}")
    tables = [_table(traces, states, seed) for seed in range(SPLITS)]
    moved = [_table(traces, states, seed, train=TRAIN, test=TEST) for seed in range(SPLITS)]
    home = max(_mean(tables)[name] for name in DENSE)
    return [
        _row("whether a chain is right can be read from a model's states, better than from the text alone", data,
             tables, lambda by: max(by[n] for n in DENSE) > max(by[n] for n in TEXT)),
        _row("probes trained on two models' chains work on those of two others, to 0.05 of AUROC", data, moved,
             lambda by: max(by[n] for n in DENSE) > home - 0.05),
        _row("codes of a token SAE, pooled over the chain, tell as much as dense states, to 0.02", data, tables,
             lambda by: by["sae"] > max(by[n] for n in DENSE) - 0.02),
        _row("codes of the step-level SAE, averaged over the chain, tell as much as dense states, to 0.02, at most "
             "100 active features a step", data, tables,
             lambda by: by["ssae"] > max(by[n] for n in DENSE) - 0.02 and _active(states) <= 100),
        _votes(traces, tables, data),
    ]


def _traces() -> Traces:
    folder = os.environ.get("SPARSELENS_TEXTS")
    if not folder:
        raise FileNotFoundError("set SPARSELENS_TEXTS to the folder with gsm8k/example_model_solutions.jsonl.gz.")
    traces = sl.read_traces(Path(folder) / "gsm8k" / "example_model_solutions.jsonl.gz")
    chosen = set(random.Random(0).sample(sorted(set(traces.problems)), 400)[:PROBLEMS])
    return traces.where(lambda trace: trace.problem in chosen)


def _table(traces: Traces, states: StepStates, seed: int, **models: tuple[str, ...]) -> StepProbes:
    return sl.probe_steps(traces, states, task="verdict", seed=seed, **models)


def _mean(tables: list[StepProbes]) -> dict[str, float]:
    return {name: float(np.mean([t.scores[name]["auroc"].value for t in tables])) for name in tables[0].scores}


def _row(claim: str, data: str, tables: list[StepProbes], holds) -> dict[str, object]:
    by = _mean(tables)
    values = {name: [t.scores[name]["auroc"].value for t in tables] for name in by}
    accuracy = {name: float(np.mean([t.scores[name]["accuracy"].value for t in tables])) for name in ("prior", "last")}
    return {
        "paper": PAPER,
        "claim": claim,
        "data": data,
        "seeds": SPLITS,
        "baseline": ", ".join(f"{n} {by[n]:.3f}" for n in ("prior", *TEXT, "context")) + " (AUROC)",
        "result": ", ".join(f"{n} {by[n]:.3f}" for n in (*DENSE, *SPARSE, BOTH))
        + f"; accuracy {accuracy['last']:.3f}, prior {accuracy['prior']:.3f}",
        "spread": "over splits " + ", ".join(f"{n} {min(v):.3f} to {max(v):.3f}" for n, v in values.items()
                                             if n in (*DENSE, *SPARSE, *TEXT)),
        "holds": bool(holds(by)),
    }


def _active(states: StepStates) -> float:
    """Mean active features of a step's code."""
    return states["ssae"].nnz / states["ssae"].shape[0]


def _votes(traces: Traces, tables: list[StepProbes], data: str) -> dict[str, object]:
    """Votes on held-out problems; the best single model is chosen on the others."""
    gains, ways, single = [], {}, []
    for table in tables:
        held, p = table.by_chain("last")
        known = set(held.problems)
        others = traces.where(lambda trace, known=known: trace.problem not in known)
        best = max(others.models, key=lambda m: np.mean(others.by(m).verdicts))
        votes = compare_votes(held, p, tau=0.8, best=best)
        gains.append(votes.against["majority"])
        single.append(votes.against[f"best single model ({best})"])
        for way, right in votes.right.items():
            ways.setdefault(way.partition(" (")[0], []).append(float(right.mean()))
    mean = {way: float(np.mean(values)) for way, values in ways.items()}
    return {
        "paper": PAPER,
        "claim": "votes weighted by a probe are right more often than the majority of the same chains",
        "data": data,
        "seeds": SPLITS,
        "baseline": f"majority {mean['majority']:.3f}, best single model {mean['best single model']:.3f}",
        "result": f"probe {mean['probe']:.3f}, perfect choice {mean['perfect choice']:.3f}; over the best single model "
        f"{np.mean([s.value for s in single]):+.3f} ({np.mean([s.low for s in single]):+.3f} to "
        f"{np.mean([s.high for s in single]):+.3f})",
        "spread": f"over the majority {np.mean([g.value for g in gains]):+.3f}, mean paired interval "
        f"{np.mean([g.low for g in gains]):+.3f} to {np.mean([g.high for g in gains]):+.3f}",
        "holds": bool(np.mean([g.low for g in gains]) > 0),
    }

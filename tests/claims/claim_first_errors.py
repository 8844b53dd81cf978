"""Where is the first error? Probes of steps on planted chains, with SmolLM2 reading them."""

import numpy as np

import sparselens as sl
from sparselens.reasoning import StepProbes

CHAINS, SPLITS = 2000, 5


def run() -> dict[str, object]:
    """The row: the first error found from the scores of its steps, in times of chance, with every baseline."""
    m = sl.load_model()
    traces = sl.planted_chains(CHAINS, seed=0)
    states = sl.step_states(traces, m, sl.SAE.load("smollm2-135m-instruct"))
    tables = [sl.probe_steps(traces, states, seed=seed, held_out=0.4) for seed in range(SPLITS)]
    told = {name: [t.first_errors(name) for t in tables] for name in tables[0].probes}
    times = {name: [found.told.value / found.chance for found in all_] for name, all_ in told.items()}
    mean = {name: float(np.mean(values)) for name, values in times.items()}
    read = [n for n in mean if n not in ("statistics", "words", "context")]
    best = max(read, key=lambda name: mean[name])
    return {
        "paper": "Step-Level SAE, 2603.03031",
        "claim": "the first error of a chain that has one is found three times as often as by chance",
        "data": f"{CHAINS} planted chains, half wrong from one step on, of five kinds; SmolLM2-135M-Instruct",
        "seeds": SPLITS,
        "baseline": ", ".join(f"{n} {mean[n]:.1f}" for n in ("statistics", "words", "context")) + " times chance "
        f"({np.mean([f.chance for f in told[best]]):.2f})",
        "result": ", ".join(f"{n} {mean[n]:.1f}" for n in read) + f" times chance; AUROC of steps {_aurocs(tables)}",
        "spread": f"{best}: {min(times[best]):.1f} to {max(times[best]):.1f}",
        "holds": mean[best] >= 3,
    }


def _aurocs(tables: list[StepProbes]) -> str:
    return ", ".join(f"{n} {np.mean([t.scores[n]['auroc'].value for t in tables]):.2f}" for n in tables[0].scores)

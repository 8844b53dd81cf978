"""The step-level SAE: what encoding a step costs beside one forward pass over it, and whether `estimate` is right.

SmolLM2, made-up steps with their contexts, one thread, CPU seconds; rounds alternate, the fastest counts.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

import sparselens as sl
from sparselens.reasoning import StepSAE

ROUNDS, ENCODED, TRAINED = 2, 32, 48
KINDS: dict[str, dict[str, Any]] = {
    "frozen, mean after block 9": {"tuning": "frozen", "pooling": "mean", "layer": 9},
    "frozen, last state": {"tuning": "frozen"},
    "frozen encoder, lora decoder": {"tuning": ("frozen", "lora"), "pooling": "mean", "layer": 9},
    "lora": {"tuning": "lora"},
}
Row = dict[str, object]


def run() -> list[Row]:
    """The rows."""
    torch.set_num_threads(1)
    m = sl.load_model()
    traces = sl.planted_chains(40, seed=1)
    pairs = [(trace.context(i), text) for trace in traces for i, text in enumerate(trace.steps.texts)]
    made = {name: StepSAE(m, **settings) for name, settings in KINDS.items()}
    steps = made["lora"].dataset(pairs[:ENCODED])
    rows = [encoding(name, ssae, steps) for name, ssae in made.items()]
    for name in ("frozen encoder, lora decoder", "lora"):  # training changes them: last
        rows.append(estimated(name, made[name], pairs[:TRAINED]))
    return rows


def encoding(name: str, ssae: StepSAE, steps: Any) -> Row:
    """Codes of steps against the bare model's forward pass over context and step."""
    batches = list(steps.batches(16))

    def forward() -> None:
        with torch.no_grad(), ssae.model.untouched():
            for batch in batches:
                ssae.model.module.base_model(input_ids=batch.ids, use_cache=False)

    ours, baseline = fastest(lambda: ssae.transform(steps), forward)
    return {"name": f"encoding a step: {name}", "ours": ours, "baseline": baseline, "target": "<= 1.2", "unit": "s",
            "note": f"{ENCODED} steps with context, {int(steps.lengths.sum())} tokens; one forward pass of the model"}


def estimated(name: str, ssae: StepSAE, pairs: list[tuple[str, str]]) -> Row:
    """The time that `estimate` says over what `fit` then takes."""
    said = ssae.estimate(pairs, epochs=1, batch_size=8)
    start = time.perf_counter()
    ssae.fit(pairs, epochs=1, batch_size=8, progress=False, live=False)
    return {"name": f"estimated seconds: {name}", "ours": said.seconds, "baseline": time.perf_counter() - start,
            "target": ">= 0.75", "unit": "s", "note": f"{TRAINED} steps, batches of 8; wall time"}


def fastest(*calls: Callable[[], Any]) -> list[float]:
    """CPU seconds of each, the fastest of some alternating rounds."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            best[i] = min(best[i], time.process_time() - start)
    return best

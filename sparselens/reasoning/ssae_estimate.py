"""What training a step-level SAE would take, measured on a few of its own batches."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.reasoning.controller import SparsityController
from sparselens.reasoning.ssae import StepSAE
from sparselens.reasoning.ssae_train import StepTrainer

if TYPE_CHECKING:
    import pandas

_TRIED = 4  # updates, after the largest one


@dataclass(frozen=True)
class StepEstimate:
    """What `estimate` found.

    Attributes:
        seconds: the whole run.
        updates: of the weights.
        tokens: positions that go through the encoder or the decoder, padding included.
        tokens_per_second: measured.
        memory: bytes that training adds to the open model at its peak: copies or adapters, gradients, optimiser state,
            and what the largest batch needs.
    """

    seconds: float
    updates: int
    tokens: int
    tokens_per_second: float
    memory: int

    def to_frame(self) -> "pandas.DataFrame":
        """One row."""
        import pandas as pd

        return pd.DataFrame([asdict(self)])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows = [("time", f"{self.seconds / 60:.1f} min"), ("updates", self.updates), ("tokens", self.tokens),
                ("speed", f"{self.tokens_per_second:,.0f} tokens/s"), ("memory", f"{self.memory / 2**20:,.0f} MB")]
        return report_html("Estimate", rows)


def estimate(ssae: StepSAE, data: Any, *, epochs: int | float = 1, batch_size: int = 16, accumulate: int = 1,
             seed: int = 0) -> StepEstimate:
    """Run a few updates at learning rate 0, which change nothing, and scale them to the whole run by its tokens.

    Args:
        ssae: what would be trained. data: on what, as for `StepSAE.fit`.
        epochs, batch_size, accumulate, seed: as for `fit`.
    """
    steps = ssae.dataset(data)
    per_epoch = len(steps) // min(batch_size, len(steps))
    batches = int(epochs * per_epoch) // accumulate * accumulate
    settings = {"lr_new": 0.0, "lr_lm": 0.0, "weight_decay": 0.0, "clip": 1.0, "seed": seed, "batch_size": batch_size,
                "accumulate": 1, "n_steps": 1 + _TRIED}
    trainer = StepTrainer(ssae, steps, SparsityController(), settings)
    sizes = [_size(trainer, number) for number in range(batches)]
    # a frozen encoder reads each step once, besides
    reading = sizes[:per_epoch] if trainer.summaries is not None else []
    trainer.step = int(np.argmax(sizes))
    peak = _peak(trainer.update)  # warms up, too
    tried, read_seconds, train_seconds = 0, 0.0, 0.0
    for number in range(_TRIED):
        trainer.step = number
        began = time.perf_counter()
        trainer.summary(trainer.data.batch(trainer.rows(number)))
        read = time.perf_counter()
        trainer.update()
        tried += _size(trainer, number)
        read_seconds, train_seconds = read_seconds + read - began, train_seconds + time.perf_counter() - read
    trainer.optimiser.zero_grad(set_to_none=True)
    seconds = (sum(sizes) * train_seconds + sum(reading) * read_seconds) / tried
    tokens = sum(sizes) + sum(reading)
    held = [*ssae.parameters(), *trainer.leaves, *trainer.leaves]  # AdamW keeps two numbers a trained weight
    memory = peak + sum(p.numel() * p.element_size() for p in held)
    memory += 0 if trainer.summaries is None else trainer.summaries.nbytes
    return StepEstimate(seconds, batches // accumulate, tokens, tokens / seconds, memory)


def _size(trainer: StepTrainer, number: int) -> int:
    """Padded positions of one batch."""
    lengths = trainer.data.lengths[trainer.rows(number)]
    return int(lengths.max()) * len(lengths)


def _peak(call: Callable[[], Any]) -> int:
    """Most bytes that tensors made during a call hold at one time."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most

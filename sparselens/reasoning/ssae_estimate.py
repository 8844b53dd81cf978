"""What training a step-level SAE would take, measured on a few of its own batches."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.reasoning.controller import SparsityController
from sparselens.reasoning.ssae import StepSAE
from sparselens.reasoning.ssae_train import StepTrainer

if TYPE_CHECKING:
    import pandas

_TRIED = 4  # updates, after one to warm up


@dataclass(frozen=True)
class StepEstimate:
    """What `estimate` found.

    Attributes:
        seconds: the whole run.
        updates: of the weights.
        tokens: positions that go through the encoder or the decoder, padding included.
        tokens_per_second: measured.
        memory: bytes that training adds to the open model at its peak: copies or adapters, gradients, optimiser state,
            what autograd keeps of the largest batch, and its logits.
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
    trainer.update()
    kept, tried, read_seconds, train_seconds = _Kept(ssae), 0, 0.0, 0.0
    for number in range(1, 1 + _TRIED):
        began = time.perf_counter()
        trainer.summary(trainer.data.batch(trainer.rows(number)))
        read = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
            trainer.update()
        kept.next_batch()
        tried += _size(trainer, number)
        read_seconds, train_seconds = read_seconds + read - began, train_seconds + time.perf_counter() - read
    trainer.optimiser.zero_grad(set_to_none=True)
    seconds = (sum(sizes) * train_seconds + sum(reading) * read_seconds) / tried
    tokens = sum(sizes) + sum(reading)
    weights = sum(p.numel() * p.element_size() for p in trainer.leaves)
    copies = sum(p.numel() * p.element_size() for p in ssae.parameters())
    activations = max(kept.bytes) * max(sizes) / max(_size(trainer, n) for n in range(1, 1 + _TRIED))
    summaries = 0 if trainer.summaries is None else trainer.summaries.nbytes
    return StepEstimate(seconds, batches // accumulate, tokens, tokens / seconds,
                        int(copies + 3 * weights + activations + summaries))


def _size(trainer: StepTrainer, number: int) -> int:
    """Padded positions of one batch."""
    lengths = trainer.data.lengths[trainer.rows(number)]
    return int(lengths.max()) * len(lengths)


class _Kept:
    """Bytes that autograd keeps of each batch, weights left out."""

    def __init__(self, ssae: StepSAE):
        owned = [*ssae.parameters(), *ssae.model.module.parameters()]
        self.known = {p.untyped_storage().data_ptr() for p in owned}
        self.seen: set[int] = set()
        self.now, self.bytes = 0, []

    def pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.known | self.seen:
            self.seen.add(storage.data_ptr())
            self.now += storage.nbytes()
        return value

    def next_batch(self) -> None:
        self.bytes.append(self.now)
        self.now, self.seen = 0, set()

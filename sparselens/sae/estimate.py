"""What a training run would take, measured on a few steps before it starts."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparselens.errors import InputError
from sparselens.sae.activations import Activation
from sparselens.sae.architectures import ACTIVATIONS, ALIASES
from sparselens.sae.rules import Rule
from sparselens.sae.sae import SAE
from sparselens.sae.trainer import SAETrainer

if TYPE_CHECKING:
    import pandas

_STEPS = 3  # after one to warm up
_TEXTS = 16


@dataclass(frozen=True)
class TrainingEstimate:
    """What `estimate_training` found.

    Attributes:
        seconds_per_step: of one training step, measured.
        n_steps: of the run.
        harvest_tokens_per_second: how fast the model gives activations; None if none was given.
        seconds: harvest and training together.
        memory: bytes of weights, gradients, optimiser state and what one batch needs (pre-activations, or all
            activations that autograd keeps).
        store: bytes on disk of the harvested activations (float16); 0 without a model.
        lean: whether the lean step runs.
    """

    seconds_per_step: float
    n_steps: int
    harvest_tokens_per_second: float | None
    seconds: float
    memory: int
    store: int
    lean: bool

    def to_frame(self) -> "pandas.DataFrame":
        """One row."""
        import pandas as pd

        return pd.DataFrame([asdict(self)])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows = [
            ("time", f"{self.seconds / 60:.1f} min"),
            ("a step", f"{self.seconds_per_step * 1000:.0f} ms ({'lean' if self.lean else 'dense'}), {self.n_steps:,}"),
            ("memory for training", f"{self.memory / 2**20:,.0f} MB"),
            ("activations on disk", f"{self.store / 2**20:,.0f} MB"),
        ]
        return report_html("Estimate", rows)


def estimate_training(
    d_in: int,
    d_sae: int,
    *,
    n_tokens: int,
    architecture: str | Activation = "topk",
    k: int | float = 32,
    d_out: int | None = None,
    rules: Sequence[Rule] = (),
    batch_size: int = 2048,
    precision: str = "float32",
    m: Any = None,
    texts: Any = None,
    site: str | None = None,
) -> TrainingEstimate:
    """Measure a few training steps on random activations, and the harvest on a few texts, and scale them up.

    Args:
        d_in, d_sae, n_tokens, architecture, k, d_out, rules, batch_size, precision: as for `train_sae`.
        m, texts, site: a live model, some of its texts (a list) and the site, to measure the harvest too.

    Raises:
        InputError: as `SAE` and `SAETrainer` do; or a model without texts and site.
    """
    if m is not None and (texts is None or site is None):
        raise InputError("to measure the harvest give the model's texts and the site too.")
    named = ACTIVATIONS.get(ALIASES.get(architecture, architecture)) if isinstance(architecture, str) else None
    own_k = k if named is not None and named.wants_k else None
    sae = SAE(architecture, d_in=d_in, d_sae=d_sae, d_out=d_out, k=own_k)
    device = torch.device("cpu") if m is None else m.device
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch_size, d_in, generator=generator, device=device)
    y = None if sae.d_out == d_in else torch.randn(batch_size, sae.d_out, generator=generator, device=device)
    settings: dict[str, Any] = {"lr": 0.0, "dead_after": 10**12, "rules": rules, "precision": precision}
    trainer = SAETrainer(sae, x, k=sae.k or k, target=y, **settings)
    step = min(_timed(lambda: trainer.step(x, 1.0, y), device) for _ in range(1 + _STEPS))
    n_steps = max(1, n_tokens // batch_size)
    weights = sum(p.numel() * p.element_size() for p in trainer.leaves.values())
    held = batch_size * d_sae * (1 if trainer.lean else 4)  # pre-activations, codes and their gradients
    speed, store = None, 0
    if m is not None:
        some = list(texts)[:_TEXTS]
        began = time.perf_counter()
        tokens = sum(len(batch) for batch in m.stream(some, site, long="chunk", max_length=256))
        speed, store = tokens / (time.perf_counter() - began), n_tokens * d_in * 2
    seconds = n_steps * step + (n_tokens / speed if speed else 0.0)
    return TrainingEstimate(step, n_steps, speed, seconds, 4 * weights + 4 * held, store, trainer.lean)


def _timed(call: Any, device: torch.device) -> float:
    """Wall seconds of one call, the device's work included."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

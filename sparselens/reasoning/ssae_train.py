"""Training a step-level SAE, phase 1: encoder, code and decoder."""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparselens.errors import InputError, NotFiniteError
from sparselens.reasoning.controller import SparsityController
from sparselens.reasoning.ssae import StepLoss, StepSAE
from sparselens.reasoning.ssae_run import StepRun, curves
from sparselens.reasoning.step_data import StepBatch, StepDataset
from sparselens.sae.checkpoint import load_checkpoint, save_checkpoint

_LOGGED = 200
_STANDARD = 256  # steps that a frozen encoder's mean and variance are taken from
_FLAT = 30  # updates in a row with constant codes that end a run
_WARM_UP, _LAST = 0.05, 0.1  # share of the run that the rise takes; learning rate at the end, of its peak


def fit(
    ssae: StepSAE,
    data: Any,
    *,
    controller: SparsityController | None = None,
    summaries: Tensor | None = None,
    epochs: int | float = 1,
    batch_size: int = 16,
    accumulate: int = 1,
    lr_new: float = 1e-3,
    lr_lm: float = 1e-5,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
    live: bool = True,
) -> StepRun:
    """Train by `CE + weight * mean ||z||_1`, with AdamW (betas 0.9, 0.95) and a cosine from the peak to a tenth.

    A run with `out` can be killed at any time: the same call goes on from the last checkpoint, to the same weights.
    With a frozen encoder each step is read once, and its summary kept (`d_model` numbers a step). The paper uses a rate
    of 1e-6 for everything, over 30 epochs on a GPU; new parts need far more. A code with only one active feature is
    constant and gets no gradient: a run in which all are so for long ends with an error instead of running on.

    Args:
        ssae: what to train, in place.
        data: as for `StepSAE.dataset`.
        controller: of the weight of the penalty; by default with target 10. Its state goes on, in place.
        summaries: `[steps, d]` what `ssae.summaries(data)` gave, so that a frozen encoder does not read again.
        epochs: passes over the data; may be a fraction.
        batch_size: steps in a batch.
        accumulate: batches per update; their mean is what is minimised.
        lr_new: peak learning rate of projector, MLP and separators.
        lr_lm: of adapters or copied language models.
        weight_decay, clip: of AdamW; largest norm of the gradient.
        seed: of order, noise and masks.
        out: folder for checkpoints.
        checkpoint_every: updates between checkpoints.
        progress: show a progress bar.
        live: in a notebook, draw the controller's curves while training.

    Raises:
        InputError: no data, summaries that do not fit, `out` holds a run with other settings, or the codes have become
            constant.
        NotFiniteError: the loss became NaN or infinite, or summaries are.
    """
    steps, controller = ssae.dataset(data), controller or SparsityController()
    n_steps = int(epochs * (len(steps) // min(batch_size, len(steps)))) // accumulate
    if n_steps < 1:
        raise InputError(f"epochs={epochs}, batch_size={batch_size} and accumulate={accumulate} leave no update on "
                         f"{len(steps)} steps.")
    settings: dict[str, Any] = {"n_steps": n_steps, "batch_size": batch_size, "accumulate": accumulate}
    settings |= {"lr_new": lr_new, "lr_lm": lr_lm, "weight_decay": weight_decay, "clip": clip, "seed": seed}
    settings["steps"] = len(steps)
    settings |= {"tokens": int(steps.lengths.sum()), "controller": controller.settings(), "ssae": repr(ssae)}
    trainer = StepTrainer(ssae, steps, controller, settings)
    if summaries is not None:
        trainer.summaries = checked(ssae, steps, summaries)
    run, folder = StepRun(settings), None if out is None else Path(out)
    trainer.standardise()
    trainer.resume(folder, run)
    _loop(trainer, run, folder, checkpoint_every, progress, live)
    ssae.metadata |= {"steps": len(steps), "updates": n_steps, "batch_size": batch_size * accumulate, "seed": seed,
                      "target": controller.target, "l1": run.history[-1]["l1"], "l0": run.history[-1]["l0"]}
    return run


def _loop(trainer: "StepTrainer", run: StepRun, out: Path | None, every: int, progress: bool, live: bool) -> None:
    n_steps, curve = run.settings["n_steps"], None
    if live:
        from sparselens.views import LiveCurve

        curve = LiveCurve("step-level SAE")
    log_every = max(1, n_steps // _LOGGED)
    before, began = run.seconds, time.perf_counter()
    with tqdm(total=n_steps, initial=trainer.step, desc="training", leave=False, disable=not progress) as bar:
        while trainer.step < n_steps:
            trainer.means.add(trainer.update())
            bar.update()
            run.seconds, run.tokens = before + time.perf_counter() - began, trainer.tokens
            if trainer.step % log_every == 0 or trainer.step == n_steps:
                run.history.append({"step": trainer.step, **trainer.means.take(), "weight": trainer.controller.weight})
                bar.set_postfix_str(", ".join(f"{k} {run.history[-1][k]:.3f}" for k in ("ce", "l1", "l0")))
                if curve is not None:
                    curve.update(trainer.step, {k: v[-1][1] for k, v in curves(run.history[-1:]).items()})
            if out is not None and (trainer.step % every == 0 or trainer.step == n_steps):
                trainer.save(out, run)
    if curve is not None:
        curve.close()


@dataclass
class _Means:
    """Running means of what the updates report."""

    sums: dict[str, float] = field(default_factory=dict)
    n: int = 0

    def add(self, seen: dict[str, float]) -> None:
        self.n += 1
        for name, value in seen.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        means = {name: value / self.n for name, value in self.sums.items()}
        self.sums, self.n = {}, 0
        return means


@dataclass
class StepTrainer:
    """State of one run: optimiser, summaries seen, place in the data."""

    ssae: StepSAE
    data: StepDataset
    controller: SparsityController
    settings: dict[str, Any]
    step: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        groups = self.ssae.groups()
        rates = {"new": self.settings["lr_new"], "lm": self.settings["lr_lm"]}
        entries = [{"params": own, "lr": rates[name], "peak": rates[name]} for name, own in groups.items() if own]
        self.leaves = [p for entry in entries for p in entry["params"]]
        self.optimiser = torch.optim.AdamW(entries, betas=(0.9, 0.95), weight_decay=self.settings["weight_decay"])
        self.summaries: Tensor | None = None
        if self.ssae.encoder.tuning == "frozen":  # read once, then kept
            self.summaries = torch.full((len(self.data), self.ssae.model.d_model), float("nan"))
        self.means, self.flat = _Means(), 0
        self._epoch = -1
        self._groups: list[Any] = []

    def rows(self, number: int) -> list[int]:
        """Rows of batch `number`, counted over all epochs."""
        per_epoch = len(self.data) // min(self.settings["batch_size"], len(self.data))
        epoch, at = divmod(number, per_epoch)
        if epoch != self._epoch:
            self._groups = self.data.shuffled(self.settings["batch_size"], self.settings["seed"], epoch)
            self._epoch = epoch
        return self._groups[at]

    def update(self) -> dict[str, float]:
        """One update of the weights; returns what it saw."""
        accumulate = self.settings["accumulate"]
        self._set_rates()
        self.optimiser.zero_grad(set_to_none=True)
        seen, moving = [], False
        for number in range(self.step * accumulate, (self.step + 1) * accumulate):
            batch = self.data.batch(self.rows(number))
            noise = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + number)
            found = self.ssae.loss(batch, noise, self.summary(batch))
            ((found.ce + self.controller.weight * found.l1) / accumulate).backward()
            l1 = float(found.l1.detach())
            self.controller.update(l1)
            self.tokens += batch.ids.numel()
            seen.append(_seen(found, l1))
            moving = moving or bool(((found.z != 0).sum(-1) > 1).any())
        if not all(math.isfinite(s["ce"]) for s in seen):
            raise NotFiniteError(f"the loss became {seen[-1]['ce']} at update {self.step}. Try lower learning "
                                 "rates.")
        nn.utils.clip_grad_norm_(self.leaves, self.settings["clip"])
        self.optimiser.step()
        self.step += 1
        mean = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]}
        self.flat = 0 if moving else self.flat + 1
        if self.flat == _FLAT:
            raise InputError(f"for {_FLAT} updates up to {self.step} no code had more than one active feature. Such "
                             "codes are constant and get no gradient, so the run cannot recover. Begin again with a "
                             f"lower weight= of the controller (it is {self.controller.weight:.1e} now), or rates.")
        return mean

    @torch.no_grad()
    def standardise(self) -> None:
        """Standardise the summaries of a frozen encoder by those of the first batches; once only."""
        if self.summaries is None or not bool((self.ssae.scale == 1).all()):
            return
        size = min(self.settings["batch_size"], len(self.data))
        numbers = range(min(-(-_STANDARD // size), len(self.data) // size))
        read = (self.summary(self.data.batch(self.rows(number))) for number in numbers)
        standardise(self.ssae, torch.cat([one for one in read if one is not None]))

    def summary(self, batch: StepBatch) -> Tensor | None:
        """What the encoder makes of a batch, if it is frozen."""
        if self.summaries is None:
            return None
        if bool(self.summaries[batch.rows, 0].isnan().any()):
            with torch.no_grad():
                self.summaries[batch.rows] = self.ssae.summary(batch.to(self.ssae.b_enc.device)).cpu()
            self.tokens += batch.ids.numel()
        return self.summaries[batch.rows].to(self.ssae.b_enc.device)

    def _set_rates(self) -> None:
        n = self.settings["n_steps"]
        rise = min(1.0, (self.step + 1) / max(1.0, _WARM_UP * n))
        fall = _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * self.step / n))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rise * fall

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, out: Path, run: StepRun) -> None:
        """Write a checkpoint."""
        tensors = {f"leaf.{i}": leaf for i, leaf in enumerate(self.leaves)}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{slot}": value for slot, value in slots.items()}
        if self.summaries is not None:
            tensors["summaries"] = self.summaries
        facts = {"settings": run.settings, "history": run.history, "seconds": run.seconds, "tokens": self.tokens,
                 "controller": self.controller.settings(), "means": vars(self.means)}
        save_checkpoint(out, self.step, {"ssae": tensors}, facts)

    def resume(self, out: Path | None, run: StepRun) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = load_checkpoint(out, run.settings) if out is not None else None
        if found is None:
            return
        tensors, facts = found[0]["ssae"], found[1]
        with torch.no_grad():
            for i, leaf in enumerate(self.leaves):
                leaf.copy_(tensors[f"leaf.{i}"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": slots, "param_groups": groups})
        self.summaries = tensors.get("summaries")
        self.step, self.tokens, self.means = facts["step"], facts["tokens"], _Means(**facts["means"])
        run.history, run.seconds, run.tokens = facts["history"], facts["seconds"], facts["tokens"]
        for name, value in facts["controller"].items():
            setattr(self.controller, name, tuple(value) if name == "bounds" else value)


def checked(ssae: StepSAE, steps: StepDataset, summaries: Tensor) -> Tensor:
    """A copy of summaries `[steps, d]` that were read before.

    Raises:
        InputError: of another shape, or for an encoder that is trained. NotFiniteError: NaN or infinite ones.
    """
    frozen, wanted = ssae.encoder.tuning == "frozen", [len(steps), ssae.model.d_model]
    if not frozen or list(summaries.shape) != wanted:
        raise InputError(f"summaries have the shape {list(summaries.shape)}; needed: "
                         f"{wanted if frozen else 'none, since the encoder is trained'}.")
    if not bool(torch.isfinite(summaries).all()):
        raise NotFiniteError("the summaries hold NaN or infinite numbers. Is the model damaged?")
    return summaries.float().clone()


@torch.no_grad()
def standardise(ssae: StepSAE, h: Tensor) -> None:
    """Bring summaries `[n, d]` of a frozen encoder to mean 0 and variance 1 in each dimension.

    Where they are not trained, a few large dimensions would drown all others.
    """
    if len(h) > 1:
        ssae.shift.copy_(h.mean(0))
        ssae.scale.copy_(h.std(0).clamp(min=1e-6))


def _seen(found: StepLoss, l1: float) -> dict[str, float]:
    z = found.z.detach()
    l0 = (z != 0).sum(-1).float()
    off = float((l0 == 0).float().mean())
    return {"ce": float(found.ce.detach()), "l1": l1, "l0": float(l0.mean()), "off_share": off}

"""Phases 2 and 3 of the step-level SAE: what code is to be expected after a context, as a Gaussian."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparselens.errors import InputError
from sparselens.reasoning.ssae import StepSAE
from sparselens.reasoning.ssae_run import StepRun
from sparselens.reasoning.step_data import StepBatch, StepDataset
from sparselens.reasoning.step_lm import StepLM

_ENCODE = 16
_LOG_VARIANCE = (-12.0, 4.0)  # codes have norm 1: outside of this the likelihood only overflows


class StepPrior(nn.Module):
    """Mean and log-variance of a step's code from its context alone.

    A third language model reads `[context, separator]`; two MLPs read its state at the separator.

    Args:
        ssae: whose codes are to be expected.
        tuning: of the language model: "frozen", "lora" or "full".

    Attributes:
        hints: the language model. mean: d, n/8, n/2, n with leaky ReLU. log_variance: d, d, n, n.
    """

    def __init__(self, ssae: StepSAE, tuning: str = "frozen"):
        super().__init__()
        d, n = ssae.model.d_model, ssae.n_latents
        self.hints = StepLM(ssae.model, tuning, ssae.rank)
        self.mean, self.log_variance = _mlp(d, max(1, n // 8), max(1, n // 2), n), _mlp(d, d, n, n)
        self.to(ssae.b_enc.device)

    def state(self, batch: StepBatch) -> Float[Tensor, "b d"]:
        """The state at the separator. What comes after it changes nothing in a causal model."""
        whole = int(batch.sep.max()) + 1
        states = self.hints.states(self.hints.embed(batch)[:, :whole])
        return states[torch.arange(len(batch), device=states.device), batch.sep].float()

    def forward(self, h: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Mean and log-variance."""
        return self.mean(h), self.log_variance(h).clamp(*_LOG_VARIANCE)

    @torch.no_grad()
    def sample(self, ssae: StepSAE, contexts: Sequence[str], n: int, seed: int) -> Float[Tensor, "contexts n latents"]:
        """Draw `max(mean + sd * noise, 0)`, brought to L2 norm 1 as the decoder knows codes."""
        if not contexts or n < 1:
            raise InputError(f"got {len(contexts)} contexts and n={n}: at least one of each is needed.")
        data = ssae.dataset([(context, ".") for context in contexts])
        h = self.state(data.batch(range(len(data))).to(ssae.b_enc.device))
        mean, log_variance = self(h)
        noise = torch.randn(len(h), n, ssae.n_latents, generator=torch.Generator().manual_seed(seed)).to(h.device)
        z = (mean[:, None] + (0.5 * log_variance)[:, None].exp() * noise).clamp(min=0)
        return nn.functional.normalize(z, dim=-1).cpu()


def fit_prior(ssae: StepSAE, data: Any, *, epochs: int = 100, variance_epochs: int = 20, batch_size: int = 128,
              lr: float = 1e-3, lr_lm: float = 1e-5, tuning: str = "frozen", seed: int = 0,
              progress: bool = True) -> StepRun:
    """Fit the prior: mean and variance by Gaussian NLL (phase 2), then the variance alone (phase 3).

    All of phase 1 stays as it is. With a frozen language model each context is read once. Unlike the published code,
    both phases read the same state and the same codes of norm 1.

    Args:
        ssae: a trained step-level SAE; its `prior` is set.
        data: as for `StepSAE.dataset`.
        epochs, variance_epochs: passes over the data in phase 2 and 3.
        batch_size, lr: steps in a batch; learning rate of the MLPs.
        lr_lm, tuning: learning rate and tuning of the language model that reads the context.
        seed: of weights and order.
        progress: show a progress bar.
    """
    steps = ssae.dataset(data)
    z = ssae.transform(steps).z.to(ssae.b_enc)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = StepPrior(ssae, tuning)
    states = _states(prior, steps, ssae) if tuning == "frozen" else None
    run = StepRun({"epochs": epochs, "variance_epochs": variance_epochs, "batch_size": batch_size, "lr": lr,
                   "lr_lm": lr_lm, "tuning": tuning, "seed": seed, "steps": len(steps)})
    lm = prior.hints.trained + ([prior.hints.sep] if tuning != "frozen" else [])
    new = [{"params": [*prior.mean.parameters(), *prior.log_variance.parameters()], "lr": lr}]
    phases = [(epochs, [*new, *([{"params": lm, "lr": lr_lm}] if lm else [])]),
              (variance_epochs, [{"params": list(prior.log_variance.parameters()), "lr": lr / 10}])]
    order = np.random.default_rng(seed)
    for phase, (n, groups) in enumerate(phases, start=2):
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)
        for _ in tqdm(range(n), desc=f"phase {phase}", leave=False, disable=not progress):
            losses = [_update(prior, steps, states, z, rows, optimiser)
                      for rows in np.array_split(order.permutation(len(steps)), -(-len(steps) // batch_size))]
            run.history.append({"step": len(run.history) + 1, "nll": float(np.mean(losses))})
    ssae.prior = prior
    return run


def _update(prior: StepPrior, steps: StepDataset, states: Tensor | None, z: Tensor, rows: np.ndarray,
            optimiser: torch.optim.Optimizer) -> float:
    h = prior.state(steps.batch(rows.tolist()).to(z.device)) if states is None else states[torch.as_tensor(rows)]
    mean, log_variance = prior(h)
    wanted = z[torch.as_tensor(rows, device=z.device)]
    nll = 0.5 * ((wanted - mean).square() / log_variance.exp() + log_variance).mean()
    optimiser.zero_grad(set_to_none=True)
    nll.backward()
    optimiser.step()
    return float(nll.detach())


@torch.no_grad()
def _states(prior: StepPrior, steps: StepDataset, ssae: StepSAE) -> Tensor:
    out = torch.zeros(len(steps), ssae.model.d_model)
    for batch in steps.batches(_ENCODE):
        out[batch.rows] = prior.state(batch.to(ssae.b_enc.device)).cpu()
    return out.to(ssae.b_enc)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.LeakyReLU()]
    return nn.Sequential(*layers[:-1])

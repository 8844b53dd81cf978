"""A start for a step-level SAE whose encoder is not trained: codes from which the words of the step can be told."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparselens.errors import InputError
from sparselens.reasoning.controller import SparsityController
from sparselens.reasoning.ssae import StepSAE
from sparselens.reasoning.ssae_run import StepRun
from sparselens.reasoning.ssae_train import checked, standardise
from sparselens.reasoning.step_data import StepDataset

_BIAS = -0.5  # of the standardised summaries: three latents in ten begin active, not half
_LOGGED = 100


def start_from_words(
    ssae: StepSAE,
    data: Any,
    summaries: Tensor | None = None,
    *,
    controller: SparsityController | None = None,
    epochs: int = 12,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> StepRun:
    """Train projector and MLP alone, so that the prefix of a step points at its words; then train with `fit`.

    A decoder does not listen to a prefix that says nothing yet, and a code that nobody listens to shrinks under the
    penalty until it is constant. So the prefix v first learns, without any pass of the decoder, to score the tokens of
    its step above all others: `softmax(s * v E' + b)`, E being the model's embeddings. This takes a second for a
    thousand steps. What the context tells already is *in* these codes; that they lose it is the work of `fit`.

    Args:
        ssae: with a frozen encoder, one prefix vector and no training yet; changed in place.
        data: as for `StepSAE.dataset`.
        summaries: what `ssae.summaries(data)` gave; read here if None.
        controller: of the penalty; by default with target 10, a weight of 1e-3 and steps of 5 % every 5 batches.
        epochs, batch_size, lr, seed: of AdamW with a cosine to a tenth.
        progress: show a progress bar.

    Returns:
        `StepRun`; its `ce` is nats a token of the bag of words, its `tokens` 0: no language model runs.

    Raises:
        InputError: an encoder that is trained, several prefix vectors, no epochs, or summaries that do not fit.
        NotFiniteError: summaries that are NaN or infinite.
    """
    if ssae.encoder.tuning != "frozen" or ssae.expansion != 1:
        raise InputError(f"the encoder is tuned as {ssae.encoder.tuning!r} and expansion={ssae.expansion}: only a "
                         "frozen encoder with expansion=1 needs and takes this start.")
    if epochs < 1:
        raise InputError(f"epochs={epochs}: at least 1 is needed.")
    controller = controller or SparsityController(every=5, rate=0.05, weight=1e-3)
    steps = ssae.dataset(data)
    h = checked(ssae, steps, ssae.summaries(steps) if summaries is None else summaries)
    standardise(ssae, h)
    words = _Words(ssae, steps)
    own = [ssae.W_enc, ssae.b_enc, *ssae.mlp.parameters(), *words.parameters()]
    optimiser = torch.optim.AdamW(own, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    generator, size = torch.Generator().manual_seed(seed), min(batch_size, len(steps))
    n_steps = epochs * (len(steps) // size)
    run = StepRun({"n_steps": n_steps, "epochs": epochs, "batch_size": size, "lr": lr, "seed": seed})
    with torch.no_grad():
        ssae.b_enc.fill_(_BIAS)
    began = time.perf_counter()
    for number in tqdm(range(n_steps), desc="start", leave=False, disable=not progress):
        at = number % (n_steps // epochs)
        if at == 0:
            order = torch.randperm(len(steps), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = lr * (0.1 + 0.45 * (1 + math.cos(math.pi * number / n_steps)))
        seen = _update(ssae, words, h, order[at * size : (at + 1) * size], optimiser, controller, generator)
        if number % max(1, n_steps // _LOGGED) == 0 or number == n_steps - 1:
            run.history.append({"step": number + 1, **seen, "weight": controller.weight})
    with torch.no_grad():
        words.to_size(ssae, h)
    run.seconds = time.perf_counter() - began
    return run


def _update(ssae: StepSAE, words: "_Words", h: Tensor, rows: Tensor, optimiser: torch.optim.Optimizer,
            controller: SparsityController, generator: torch.Generator) -> dict[str, float]:
    z = ssae.code(h[rows].to(ssae.b_enc.device))[0]
    noisy = z + ssae.noise * torch.randn(z.shape, generator=generator).to(z.device)
    ce, l1 = words.loss(ssae.mlp(noisy), rows.tolist()), z.sum(-1).mean()
    optimiser.zero_grad(set_to_none=True)
    (ce + controller.weight * l1).backward()
    optimiser.step()
    controller.update(float(l1.detach()))
    return {"ce": float(ce.detach()), "l1": float(l1.detach()), "l0": float((z != 0).sum(-1).float().mean())}


class _Words(nn.Module):
    """Scores the tokens that occur in the steps under a prefix vector."""

    def __init__(self, ssae: StepSAE, steps: StepDataset):
        super().__init__()
        used = torch.tensor(sorted({token for step in steps.steps for token in step}))
        place = {int(token): i for i, token in enumerate(used)}
        device = ssae.b_enc.device
        self.rows = [torch.tensor([place[token] for token in step], device=device) for step in steps.steps]
        table = ssae.encoder.module.get_input_embeddings().weight
        self.embeddings = table.detach()[used.to(table.device)].to(device, torch.float32)
        self.bias = nn.Parameter(torch.zeros(len(used), device=device))
        self.log_scale = nn.Parameter(torch.zeros((), device=device))

    def loss(self, v: Tensor, rows: list[int]) -> Tensor:
        """Mean over steps of the mean NLL of their tokens, each drawn without order."""
        log_p = (self.log_scale.exp() * v @ self.embeddings.T + self.bias).log_softmax(-1)
        lengths = torch.tensor([len(self.rows[row]) for row in rows], device=v.device)
        step = torch.repeat_interleave(torch.arange(len(rows), device=v.device), lengths)
        each = -log_p[step, torch.cat([self.rows[row] for row in rows])]
        return (each / lengths[step]).sum() / len(rows)

    def to_size(self, ssae: StepSAE, h: Tensor) -> None:
        """Give the prefix the length of an embedding, which is what the decoder is used to."""
        v = ssae.mlp(ssae.code(h[:1024].to(ssae.b_enc.device))[0])
        factor = self.embeddings.norm(dim=-1).mean() / v.norm(dim=-1).mean()
        last: Any = ssae.mlp[-1]
        last.weight.mul_(factor)
        last.bias.mul_(factor)

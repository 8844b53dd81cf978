"""Activations together with the gradient of the model's loss at them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.errors import InputError
from sparselens.models.batches import Batch
from sparselens.models.captured import FlatBatch, flatten
from sparselens.models.engine import Context, Edit

GRADIENT = "#gradient"  # after the name of a site: the gradient there, beside the activations


def stream_gradients(m: Any, texts: Any, sites: str | Sequence[str], **reading: Any) -> Iterator[FlatBatch]:
    """Like `m.stream`, with `batch[site + "#gradient"]` `[tokens, d]` beside `batch[site]`.

    The loss is the next-token cross-entropy of each row, summed over its positions, so the gradient does not depend
    on the length. It is zero at the last token of a row, which predicts nothing. What comes before the first site is
    run without a graph, and no parameter gets a gradient.

    Args:
        m: a live model.
        texts: what `m.batches` takes.
        sites: names, aliases or globs.
        reading: passed on to `m.batches`.

    Raises:
        InputError: no gradient reaches the sites, as with a quantised model.
    """
    names = m.resolve_all(sites)
    for batch in m.batches(texts, **reading):
        yield flatten(batch, loss_gradients(m, batch, names))


def loss_gradients(m: Any, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    """Values and gradients at `sites` (in execution order) for one batch, both `[b, pos, d]`."""
    found: dict[str, Tensor] = {}

    def take(x: Tensor, context: Context) -> Tensor | None:
        if found:
            found[context.site] = x
            return None
        found[context.site] = x.detach().clone().requires_grad_()  # the graph begins here
        return found[context.site]

    edits = [Edit(site, take) for site in sites]
    with m._engine.attach(edits), _frozen(m.module), torch.enable_grad():
        logits = m.forward(batch)[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(logits.device)
        ids = batch.ids[:, 1:].to(logits.device)
        loss = nn.functional.cross_entropy(logits[target], ids[target], reduction="sum")
        if not loss.requires_grad:
            raise InputError(f"no gradient of the loss reaches {sites[0]}: is the model quantised or run in no_grad?")
        grads = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    out = {site: x.detach().clone() for site, x in found.items()}
    for (site, x), grad in zip(found.items(), grads, strict=True):
        out[site + GRADIENT] = torch.zeros_like(x) if grad is None else grad
    return out


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient within the block."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)

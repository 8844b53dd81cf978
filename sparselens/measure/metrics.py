"""The metrics, each defined once. Streams use the `*_per_token` functions and the running sums.

Active means not zero. Losses and divergences are in nats. Logits are turned into probabilities in float32.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sparselens.errors import InputError
from sparselens.sae.latents import Latents
from sparselens.sae.stats import ActiveSum, FvuSum

DENSE_ABOVE = 0.1
_ROWS = 512  # rows of logits in float32 at once: 100 MB for a vocabulary of 50,000

Codes = Latents | Tensor | ActiveSum


def fvu(x: Float[Tensor, "*batch d"], x_hat: Float[Tensor, "*batch d"]) -> float:
    """Fraction of variance unexplained: `sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`, the mean over the rows of x.

    Args:
        x: rows `[*batch, d]`.
        x_hat: what stands in for them, of the same shape.

    Returns:
        0 for a perfect copy, 1 for the mean; NaN when all rows are equal.
    """
    total = FvuSum()
    total.add(x, x_hat)
    return total.value


def explained_variance(x: Float[Tensor, "*batch d"], x_hat: Float[Tensor, "*batch d"]) -> float:
    """Share of the variance of `x [*batch, d]` that `x_hat` explains: `1 - fvu`."""
    return 1.0 - fvu(x, x_hat)


def cosine(x: Float[Tensor, "*batch d"], x_hat: Float[Tensor, "*batch d"]) -> float:
    """Mean cosine between the rows of `x` and `x_hat`, both `[*batch, d]`; a row of zeros counts as 0."""
    return float(functional.cosine_similarity(x.double(), x_hat.double(), dim=-1).mean())


def l0(z: Codes) -> float:
    """Mean number of active latents per token, of codes (`Latents` or `[*batch, d_sae]`) or a running sum of them."""
    return _active(z).l0


def dead_share(z: Codes) -> float:
    """Share of latents that are active on no token, of codes or a running sum of them."""
    return _active(z).dead_share


def dense_share(z: Codes, above: float = DENSE_ABOVE) -> float:
    """Share of latents that are active on more than `above` of the tokens, of codes or a running sum of them."""
    active = _active(z)
    return float((active.fires > above * active.rows).double().mean()) if active.rows else float("nan")


def _active(z: Codes) -> ActiveSum:
    if isinstance(z, ActiveSum):
        return z
    total = ActiveSum(z.shape[-1] if isinstance(z, Tensor) else z.d_sae)
    total.add(z)
    return total


def ce_loss(
    logits: Float[Tensor, "b pos vocab"], ids: Int[Tensor, "b pos"], mask: Bool[Tensor, "b pos"] | None = None
) -> float:
    """Mean cross-entropy of the next token, in nats per predicted token.

    Args:
        logits: `[b, pos, vocab]`.
        ids: the tokens `[b, pos]`.
        mask: real tokens `[b, pos]`. A prediction counts where both the token and the next one are real.

    Raises:
        InputError: no token has a real successor.
    """
    return _mean(ce_per_token(logits, ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask))


def kl(
    clean: Float[Tensor, "b pos vocab"],
    edited: Float[Tensor, "b pos vocab"],
    mask: Bool[Tensor, "b pos"] | None = None,
) -> float:
    """Mean `KL(p_clean || p_edited)` over the real tokens, in nats.

    Args:
        clean, edited: logits `[b, pos, vocab]` of the untouched and of the edited model.
        mask: real tokens `[b, pos]`.
    """
    return _mean(kl_per_token(clean, edited, _all(clean) if mask is None else mask))


def top1_agreement(
    clean: Float[Tensor, "b pos vocab"],
    edited: Float[Tensor, "b pos vocab"],
    mask: Bool[Tensor, "b pos"] | None = None,
) -> float:
    """Share of the real tokens after which both models find the same next token likeliest. Arguments as for `kl`."""
    return _mean(top1_per_token(clean, edited, _all(clean) if mask is None else mask))


def ce_recovered(clean: float, edited: float, ablated: float) -> float:
    """Share of the loss that an ablation costs which an edit keeps: `(ablated - edited) / (ablated - clean)`.

    1 means as good as the untouched model, 0 as bad as the ablation. NaN when the ablation changes nothing.
    """
    return (ablated - edited) / (ablated - clean) if ablated != clean else float("nan")


def ce_per_token(
    logits: Float[Tensor, "b pos vocab"], ids: Int[Tensor, "b pos"], mask: Bool[Tensor, "b pos"]
) -> Float[Tensor, "predicted"]:
    """Cross-entropy at every token that is real and has a real successor, `[predicted]`, row after row."""
    ids, mask = ids.to(logits.device), mask.to(logits.device)
    parts = [
        functional.cross_entropy(logits[rows, at].float(), ids[rows, at + 1], reduction="none")
        for rows, at in _places(mask[:, :-1] & mask[:, 1:])
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0)


def kl_per_token(
    clean: Float[Tensor, "b pos vocab"], edited: Float[Tensor, "b pos vocab"], mask: Bool[Tensor, "b pos"]
) -> Float[Tensor, "real"]:
    """`KL(p_clean || p_edited)` at every real token, `[real]`, row after row."""
    parts = []
    for rows, at in _places(mask.to(clean.device)):
        p, q = (functional.log_softmax(logits[rows, at].float(), dim=-1) for logits in (clean, edited))
        parts.append(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
    return torch.cat(parts) if parts else clean.new_zeros(0)


def top1_per_token(
    clean: Float[Tensor, "b pos vocab"], edited: Float[Tensor, "b pos vocab"], mask: Bool[Tensor, "b pos"]
) -> Bool[Tensor, "real"]:
    """Whether both find the same next token likeliest, at every real token, `[real]`, row after row."""
    return (clean.argmax(-1) == edited.argmax(-1))[mask.to(clean.device)]


def _places(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Row and column indices where `mask` is True, some at a time, so that no copy of all logits is made."""
    for part in mask.nonzero().split(_ROWS):
        yield part[:, 0], part[:, 1]


def _all(logits: Tensor) -> Tensor:
    return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)


def _mean(values: Tensor) -> float:
    if not values.numel():
        raise InputError("there is no real token to measure on: every row is empty, padding, or a single token.")
    return float(values.double().mean())

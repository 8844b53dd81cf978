"""The lean TopK training step: one dense product (the encoder), everything after it on the k codes of each token.

A dense step multiplies `[tokens, d_sae]` six times: encode, decode, and the gradients of codes, decoder, encoder and
input. Only the first is needed in full. The last is needed only summed over tokens (for `b_dec`), which is one
matrix-vector product; the other four touch k of d_sae latents and are gathers. The gradients are exact, not estimates.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class Weights(NamedTuple):
    """Parameters of an SAE in training: `enc [d_sae, d_in]` (row-major like the decoder), `b_enc`, `dec`, `b_dec`."""

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor


class StepResult(NamedTuple):
    """What a step saw: the codes' `indices` of active latents (flat), mean active latents per token, squared error
    per token."""

    fired: Tensor
    l0: Tensor
    error: Tensor


# Weight of the auxiliary loss. It reaches only dead latents (and b_dec), and Adam is blind to a constant factor.
AUX = 1 / 32


@torch.no_grad()
def topk_gradients(
    w: Weights, x: Float[Tensor, "batch d_in"], k: int, dead: Int[Tensor, " n_dead"] | None = None
) -> tuple[Weights, StepResult]:
    """Gradients of the TopK loss `mean over tokens of ||x - x_hat||^2` and what the step saw.

    Args:
        w: the parameters.
        x: activations `[batch, d_in]`.
        k: codes kept per token.
        dead: indices of latents that have not fired for long: they are trained to reconstruct what is left over
            (the auxiliary loss of Gao et al., 2024), with up to d_in / 2 of them per token.
    """
    batch = x.shape[0]
    centred = x - w.b_dec
    pre = torch.addmm(w.b_enc, centred, w.enc.T)
    values, indices = pre.topk(k, dim=1, sorted=False)
    values.relu_()
    with torch.enable_grad():  # only to reach the gradient of the gather: a dot product per code, nothing stored
        codes = values.requires_grad_()
        x_hat = functional.embedding_bag(indices, w.dec, mode="sum", per_sample_weights=codes)
    error = x_hat.detach() + w.b_dec - x
    g_out = error * (2 / batch)
    (g_codes,) = torch.autograd.grad(x_hat, codes, g_out)
    values = values.detach()
    g_codes *= values > 0

    order, starts = _by_latent(indices, w.dec.shape[0])
    tokens = order // k
    grads = Weights(
        enc=_sum_by_latent(centred, tokens, starts, g_codes.flatten()[order]),
        b_enc=torch.zeros_like(w.b_enc).index_add_(0, indices.flatten(), g_codes.flatten()),
        dec=_sum_by_latent(g_out, tokens, starts, values.flatten()[order]),
        b_dec=g_out.sum(0),
    )
    if dead is not None and len(dead):
        _add_auxiliary(grads, w, centred, pre, error, dead)
    grads.b_dec.sub_(grads.b_enc @ w.enc)
    active = values > 0
    return grads, StepResult(indices[active], active.sum() / batch, error.square().sum() / batch)


def _by_latent(indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor]:
    """The order that sorts all codes by latent, and where each latent starts in it."""
    flat = indices.flatten()
    order = flat.to(torch.int32).argsort()  # 32 bits sort twice as fast
    counts = torch.bincount(flat, minlength=d_sae)
    return order, counts.cumsum(0) - counts


def _sum_by_latent(rows: Tensor, tokens: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """`out[latent] = sum over its codes of weight * rows[token]`: a sparse transposed product as a bag per latent."""
    return functional.embedding_bag(tokens, rows, starts, mode="sum", per_sample_weights=weights)


def _add_auxiliary(grads: Weights, w: Weights, centred: Tensor, pre: Tensor, error: Tensor, dead: Tensor) -> None:
    """Add the gradients of `AUX * mean ||(x - x_hat) - aux_hat||^2`, dense over the dead latents alone."""
    keep = min(len(dead), max(1, w.dec.shape[1] // 2))
    codes = pre[:, dead]
    if keep < len(dead):
        floor = codes.topk(keep, dim=1, sorted=False).values.amin(1, keepdim=True)
        codes = codes * (codes >= floor)
    codes = codes.relu()
    dec = w.dec[dead]
    g_out = (torch.addmm(error, codes, dec)) * (2 * AUX / len(centred))  # aux_hat - (x - x_hat)
    g_codes = (g_out @ dec.T) * (codes > 0)
    grads.dec.index_add_(0, dead, codes.T @ g_out)
    grads.enc.index_add_(0, dead, g_codes.T @ centred)
    grads.b_enc.index_add_(0, dead, g_codes.sum(0))

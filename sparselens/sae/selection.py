"""Which pre-activations survive: exact selections over a token or a whole batch, in bounded memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The k largest of a row lie in the blocks with the k largest maxima. Looking at maxima of 8 first is 1.4 times as fast
# as a selection from 9,216 numbers, 2.6 times from 65,536.
_BLOCK = 8


def largest_of_token(pre: Float[Tensor, "n d_sae"], k: int, signed: bool = False) -> Int[Tensor, "n k"]:
    """Indices of the k largest pre-activations of every row (in size, if `signed`), in no order.

    Which of equal ones are taken is left to chance; a half-precision `pre` has many.
    """
    n, d_sae = pre.shape
    if d_sae % _BLOCK or d_sae < 4 * _BLOCK * k:
        return (pre.abs() if signed else pre).topk(k, dim=1, sorted=False).indices
    width = d_sae // _BLOCK  # a block is every width-th number: maxima of neighbours come from neighbouring memory
    blocks = pre.reshape(n, _BLOCK, width)
    most = blocks.amax(1)
    if signed:
        most = torch.maximum(most, -blocks.amin(1))
    best = most.topk(k, dim=1, sorted=False).indices
    steps = torch.arange(_BLOCK, device=pre.device) * width
    candidates = (best[:, None, :] + steps[:, None]).flatten(1)
    values = pre.gather(1, candidates)
    inside = (values.abs_() if signed else values).topk(k, dim=1, sorted=False).indices
    return candidates.gather(1, inside)


def largest_of_batch(pre: Float[Tensor, "n d_sae"], k: int | float, signed: bool = False) -> Int[Tensor, " kept"]:
    """Flat indices of the `int(k * n)` largest entries of the whole batch (in size, if `signed`), in no order.

    Two stages: the 4k largest of each row, then the largest of these. Should a row have more survivors than that, the
    batch is searched whole.
    """
    n, d_sae = pre.shape
    keep = min(int(k * n), pre.numel())
    first = min(d_sae, max(1, int(4 * k)))
    where = largest_of_token(pre, first, signed)
    values = pre.gather(1, where)
    values = values.abs() if signed else values
    top = values.flatten().topk(min(keep, values.numel()), sorted=False)
    if first < d_sae and keep and bool((values.amin(1) > top.values.min()).any()):
        flat = pre.flatten()
        return (flat.abs() if signed else flat).topk(keep, sorted=False).indices
    return flat_indices(where, d_sae).flatten()[top.indices]


def flat_indices(where: Int[Tensor, "n k"], d_sae: int) -> Int[Tensor, "n k"]:
    """Positions in the flattened `[n, d_sae]` of column indices of each row."""
    return where + torch.arange(len(where), device=where.device)[:, None] * d_sae

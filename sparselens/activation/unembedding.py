"""The unembedding of one token, read where it lies: the largest layer of a small model, which no sparsifier touches."""

from collections.abc import Callable

from torch import Tensor, nn

from sparselens.activation.kernels import KINDS, backend, dense_row
from sparselens.activation.sparse_linear import is_own_forward
from sparselens.models.engine import Context, Swap
from sparselens.models.live import LiveModel

SITE = "unembed.hook_in"


def fast_unembedding(model: LiveModel) -> list[Swap]:
    """What makes the logits of single tokens quicker, and leaves them as they are but for the order of the sum.

    Nothing where it cannot be had: no such site, another device or type, or no compiled kernel.
    """
    module = model.linear(SITE) if SITE in model.table.available else None
    if type(module) is not nn.Linear or module.weight.device.type != "cpu" or backend() != "compiled":
        return []

    def compute(x: Tensor, original: Callable[[Tensor], Tensor], _context: Context) -> Tensor:
        weight = module.weight
        one = x.numel() == x.shape[-1] and x.dtype == weight.dtype and weight.dtype in KINDS and weight.is_contiguous()
        return dense_row(x, weight, module.bias) if one and is_own_forward(original, module, x) else original(x)

    return [Swap(SITE, compute)]

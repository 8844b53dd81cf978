"""One linear layer computed on the input channels that a gate keeps."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparselens.activation.gates import Gate, TopK, channel_scores
from sparselens.activation.kernels import Columns
from sparselens.activation.linears import Linear, column_norms, stamp
from sparselens.activation.window import Window
from sparselens.models.engine import Context, Edit, Swap


class Seen(NamedTuple):
    """One layer in one pass.

    x: what it read, `[*batch, d_in]`; at: place of each token within its row; keep: bool, as x; y: what it gave,
    `[*batch, d_out]`; original: the dense layer; context: the pass.
    """

    x: Tensor
    at: Tensor
    keep: Tensor
    y: Tensor
    original: Callable[[Tensor], Tensor]
    context: Context

    @property
    def real(self) -> Tensor:
        """Which tokens are not padding, `[batch]`, all axes but the last taken together."""
        rows = self.x.flatten(0, -2)
        mask = self.context.mask
        return rows.new_ones(len(rows), dtype=torch.bool) if mask is None else mask.to(rows.device).reshape(-1)


@runtime_checkable
class Watcher(Protocol):
    """Is shown what sparse layers do."""

    def see(self, layer: "SparseLinear", seen: Seen) -> None: ...


def is_own_forward(original: Callable, module: nn.Module, x: Tensor) -> bool:
    """Whether a kernel can stand for `original` on one token: that is the layer's own forward, and not something that
    was put on before, and no gradient is wanted."""
    own = getattr(original, "__self__", None) is module
    return own and not (torch.is_grad_enabled() and x.requires_grad)


class SparseLinear:
    """`y = (x * keep) W^T + b`. A subclass may score otherwise, or add to the product.

    What is made of the weight (norms, columns) is made at the first use, and again when the weight has changed, so
    that it always belongs to the weight that is in place.

    Args:
        linear: the layer.
        gate: which scores are kept.
        weighted: score by `|x_j| * ||W_:,j||` instead of `|x_j|`.
    """

    #: Weights read for a token besides those of the kept columns.
    extra = 0

    def __init__(self, linear: Linear, gate: Gate, weighted: bool = False):
        self.linear, self.gate, self.weighted = linear, gate, weighted
        #: The layers whose weights are read only for the kept channels.
        self.skips: tuple[Linear, ...] = (linear,)
        self._stamp: tuple | None = None
        self._scale: Tensor | None = None
        self._columns: Columns | None = None

    @property
    def scale(self) -> Float[Tensor, "d_in"] | None:
        """What `|x|` is multiplied with to give the scores, float32; None for nothing."""
        self._follow()
        if self.weighted and self._scale is None:
            self._scale = column_norms(self.linear.weight)
        return self._scale

    def _follow(self) -> None:
        """Drop what was made of another weight than that in place."""
        module = self.linear.module
        weight = module._parameters.get("weight")  # this runs for every layer and token, and is quicker than .weight
        now = stamp(module.weight if weight is None else weight)  # type: ignore[arg-type]
        if now != self._stamp:
            self._stamp, self._scale, self._columns = now, None, None

    def scores(
        self, x: Float[Tensor, "*batch d_in"], at: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Scores of the channels, float32.

        Args:
            x: what the layer reads.
            at: place of each token within its row, for scores that depend on it.
        """
        return channel_scores(self.signal(x), self.scale)

    def signal(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Whose size is scored: the input itself."""
        return x

    def keep(
        self, x: Float[Tensor, "*batch d_in"], at: Int[Tensor, "*batch"] | None = None
    ) -> Bool[Tensor, "*batch d_in"]:
        """The channels that are kept. Arguments as for `scores`."""
        return self.gate.keep(self.scores(x, at))

    def product(
        self, x: Float[Tensor, "*batch d_in"], keep: Bool[Tensor, "*batch d_in"], original: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "*batch d_out"]:
        """The output for inputs of which only some channels are kept. Where all are, it is that of `original`."""
        return original(x.masked_fill(~keep, 0))

    def looks(self) -> list[Edit]:
        """What must be seen elsewhere in the pass before the layer can be computed."""
        return []

    def make_columns(self) -> Columns:
        """The weight, stored so that some of its columns can be read alone."""
        return Columns(self.linear.weight)

    @property
    def columns(self) -> Columns:
        """What `make_columns` gave for the weight in place."""
        self._follow()
        if self._columns is None:
            self._columns = self.make_columns()
        return self._columns

    def row(self, x: Float[Tensor, "*one d_in"]) -> Float[Tensor, "*one d_out"]:
        """The output for one token, from the kept columns alone."""
        gate, columns, bias = self.gate, self.columns, self.linear.bias
        scale = self._scale if self._scale is not None or not self.weighted else self.scale  # columns has followed
        if isinstance(gate, TopK):
            return columns.topk(x, scale, gate.k, bias)[0]
        return columns.threshold(x, scale, gate.tau, bias)[0]

    def swap(self, window: Window, speed: str, watcher: Watcher | None = None) -> Swap:
        """What to install.

        Args:
            window: which tokens are computed sparsely.
            speed: "mask" never computes by `row`; "auto" does where there is a kernel.
            watcher: shown every input and what was made of it; nothing is then computed by `row`.
        """
        module = self.linear.module
        # `row` stands for a plain layer only, not for one that another library has wrapped
        plain = type(module) is nn.Linear or self.linear.transposed
        rows = plain and watcher is None and speed != "mask"

        def compute(x: Tensor, original: Callable[[Tensor], Tensor], context: Context) -> Tensor:
            chosen = window.tokens(x, context.run)
            if chosen is False and watcher is None:
                return original(x)
            if rows and chosen is True and x.numel() == x.shape[-1] and self._may_row(x, original):
                return self.row(x)
            at = window.positions(x, context.run)
            keep = self.keep(x, at)
            if chosen is not True:
                keep = keep | ~torch.as_tensor(chosen, device=x.device)[..., None]
            y = self.product(x, keep, original)
            if watcher is not None:
                watcher.see(self, Seen(x, at, keep, y, original, context))
            return y

        return Swap(self.linear.site, compute)

    def _may_row(self, x: Tensor, original: Callable) -> bool:
        """Whether `row` can stand for `original` on one token; and there is a kernel, or `row` would gain nothing."""
        if not is_own_forward(original, self.linear.module, x):
            return False
        columns = self.columns
        return columns.backend != "torch" and x.dtype == columns.stored.dtype

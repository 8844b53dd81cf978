"""Which tokens of a forward pass are computed sparsely: prompt or decoding, and all but the first few of a row."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.errors import InputError, closest
from sparselens.models.engine import Pass

PHASES = ("both", "prefill", "decode")


class Window:
    """Tells, for the pass under way, the tokens to be computed sparsely. Worked out once a pass.

    Args:
        dense_prefix: first tokens of each row that stay dense: a count, or a share of the row (of its prompt, when
            generating). Padding counts for nothing.
        phase: "prefill" (passes over several tokens), "decode" (one token after a cache) or "both".
    """

    def __init__(self, dense_prefix: int | float = 8, phase: str = "both"):
        self.dense_prefix, self.phase = checked_prefix(dense_prefix), phase
        if phase not in PHASES:
            raise InputError(f"phase={phase!r} is unknown; valid are {', '.join(PHASES)}.{closest(str(phase), PHASES)}")
        self._pass: tuple | None = None
        self._tokens: Tensor | bool = False
        self._positions: Tensor | None = None

    def tokens(self, x: Tensor, run: Pass) -> Tensor | bool:
        """True: all; False: none; else bool, of the shape of `x` without its last axis.

        Args:
            x: what a layer reads, `[b, pos, d_in]`, or `[b*pos, d_in]` in models that flatten.
            run: the pass.
        """
        self._enter(x, run)
        found = self._tokens
        return found if isinstance(found, bool) else found.to(x.device).reshape(x.shape[:-1])

    def positions(self, x: Tensor, run: Pass) -> Tensor:
        """Place of every token of the pass within its row, of the shape of `x` without its last axis. Padding on the
        left counts for nothing.
        """
        self._enter(x, run)
        if self._positions is None:
            self._positions = _positions(x, run)
        return self._positions.to(x.device).reshape(x.shape[:-1])

    def _enter(self, x: Tensor, run: Pass) -> None:
        """Work out the tokens, at the first layer of a pass."""
        now = (run.mask, run.past, run.step)
        before = self._pass
        # the mask is a new tensor with every pass; it is kept here, so its identity cannot be taken by another
        if before is None or run.mask is None or before[0] is not now[0] or before[1:] != now[1:]:
            self._pass, self._positions = now, None
            self._tokens = self._work_out(x, run)

    def _work_out(self, x: Tensor, run: Pass) -> Tensor | bool:
        n = x.shape[-2] if run.mask is None else run.mask.shape[1]
        decoding = run.past > 0 and n == 1
        if self.phase != "both" and (self.phase == "decode") != decoding:
            return False
        if not self.dense_prefix or (isinstance(self.dense_prefix, float) and run.past):
            return True
        at = self._positions = _positions(x, run)
        prefix: Tensor | int = self.dense_prefix if isinstance(self.dense_prefix, int) else 0
        if isinstance(self.dense_prefix, float):
            length = torch.full_like(at[:, :1], n) if run.mask is None else run.mask.sum(-1, keepdim=True)
            prefix = length - torch.floor((1 - self.dense_prefix) * length + 1e-6).long()
        chosen = at >= prefix
        real = chosen if run.mask is None else chosen[run.mask.to(chosen.device)]
        if bool(real.all()):  # what padding gets does not matter
            return True
        return chosen if bool(real.any()) else False


def _positions(x: Tensor, run: Pass) -> Int[Tensor, "b pos"]:
    mask = run.mask
    if mask is None:
        rows = x.shape[0] if x.dim() > 2 else 1
        return torch.arange(run.past, run.past + x.shape[-2], device=x.device).expand(rows, -1)
    given = run.positions
    if given is not None and given.dim() == 2 and given.shape[1] == mask.shape[1]:
        return given.expand_as(mask)
    return run.past + (mask.long().cumsum(-1) - 1).clamp(min=0)


def checked_prefix(prefix: Any) -> int | float:
    """A dense prefix as it is, if it is a count of tokens or a share of a row.

    Raises:
        InputError: it is neither.
    """
    if isinstance(prefix, bool) or not isinstance(prefix, int | float):
        prefix_is = "is no number"
    elif isinstance(prefix, int) and prefix >= 0 or isinstance(prefix, float) and 0 <= prefix < 1:
        return prefix
    else:
        prefix_is = "is neither a count nor a share"
    raise InputError(
        f"dense_prefix={prefix!r} {prefix_is}: give a count of tokens (8, or 0 for none) or a share of a row (0.01)."
    )


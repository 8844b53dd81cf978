"""How an SAE scales its input, and how its output is scaled back.

The per-token numbers travel in a `TokenScale` from the encoder's side to the decoder's; nothing is kept on the SAE.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import FitError, InputError, closest

KINDS = ("none", "scale", "unit_norm", "layer_norm")
_EPS = 1e-5  # layer_norm divides by (unbiased) deviation + eps and multiplies back by the deviation, as SAELens does


def check_floating(x: Any) -> None:
    """Refuse what are no activations, such as token ids.

    Raises:
        InputError: not a tensor of floating point numbers.
    """
    if not torch.is_tensor(x) or not x.is_floating_point():
        kind = x.dtype if hasattr(x, "dtype") else type(x).__name__
        raise InputError(f"activations must be a tensor of floating point numbers, not {type(x).__name__} of {kind}.")


def check_rows(x: Any, d_in: int) -> None:
    """Refuse what an SAE of width d_in cannot read.

    Raises:
        InputError: not a tensor of floating point numbers. FitError: another width.
    """
    check_floating(x)
    if x.shape[-1] != d_in:
        raise FitError(f"x has width {x.shape[-1]}, this SAE reads width d_in={d_in}.")


class TokenScale(NamedTuple):
    """What decoding needs to know of the tokens that were encoded.

    Attributes:
        factor, shift: bring a normalised token back, `x = normed * factor + shift`, each `[*batch, 1]`; None unless
            the input norm is per token.
        bypass: what reaches the output around the codes, `[*batch, d_out]`, such as a skip connection; None if nothing.
    """

    factor: Tensor | None = None
    shift: Tensor | None = None
    bypass: Tensor | None = None


@dataclass(frozen=True)
class InputNorm:
    """The input normalisation of an SAE.

    Attributes:
        kind: "none"; "scale" (x times a constant); "unit_norm" (each token to norm sqrt(d), called
            `constant_norm_rescale` by SAELens); "layer_norm" (each token to mean 0 and deviation 1).
        scale: the constant of kind "scale".
    """

    kind: str = "none"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown input_norm {self.kind!r}; valid: {', '.join(KINDS)}.{closest(self.kind, KINDS)}")

    @property
    def per_token(self) -> bool:
        """Whether decoding needs the `TokenScale` of the tokens that were encoded."""
        return self.kind in ("unit_norm", "layer_norm")

    def measure(self, x: Float[Tensor, "*batch d"]) -> TokenScale | None:
        """The per-token numbers of `x [*batch, d]`; None where none are needed."""
        if self.kind == "unit_norm":
            factor = (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5).clamp_min(1e-12)
            return TokenScale(factor, factor.new_zeros(()).expand_as(factor))
        if self.kind == "layer_norm":
            if x.shape[-1] < 2:
                raise InputError("layer_norm needs activations of width 2 or more: one number has no deviation.")
            return TokenScale(x.std(-1, keepdim=True), x.mean(-1, keepdim=True))
        return None

    def apply(self, x: Float[Tensor, "*batch d"], tokens: TokenScale | None) -> Float[Tensor, "*batch d"]:
        """Normalise `x`, given its own `measure(x)`."""
        if tokens is not None and tokens.factor is not None and tokens.shift is not None:
            return (x - tokens.shift) / (tokens.factor + (_EPS if self.kind == "layer_norm" else 0.0))
        return x * self.scale if self.kind == "scale" else x

    def undo(self, x: Float[Tensor, "*batch d"], tokens: TokenScale | None) -> Float[Tensor, "*batch d"]:
        """Scale a reconstruction back.

        Raises:
            InputError: the numbers of the tokens are needed and were not given.
        """
        if self.per_token:
            if tokens is None or tokens.factor is None or tokens.shift is None:
                raise InputError(
                    f"this SAE uses input_norm={self.kind!r}: call decode(z, tokens=sae.measure(x)) with the x "
                    "that was encoded, or call sae(x)."
                )
            return x * tokens.factor + tokens.shift
        return x / self.scale if self.kind == "scale" else x

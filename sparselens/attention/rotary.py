"""Rotary positions: pairs of numbers of a query or key, turned by angles that grow with the position."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BASE = 10_000.0


def rotate(x: Float[Tensor, "*b n d"], at: Shaped[Tensor, "n"]) -> Float[Tensor, "*b n d"]:
    """Turn the halves of `x` against each other, as Llama does.

    Args:
        x: queries or keys, `d` even.
        at: position of each; need not be whole, as for the centre of a region.
    """
    half = x.shape[-1] // 2
    speeds = BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = at.to(torch.float64)[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

"""Planted activations for the tests of training."""

import torch

QUIET = {"progress": False, "live": False}


def planted(rows: int = 20_000, d: int = 64, features: int = 128, active: int = 3, seed: int = 0, signed: bool = False):
    """Sums of `active` of `features` known unit directions, plus a constant; and the directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    which = torch.rand(rows, features, generator=generator).argsort(1)[:, :active]
    weights = torch.rand(rows, active, generator=generator) + 0.5
    if signed:
        weights *= torch.randint(0, 2, weights.shape, generator=generator) * 2 - 1
    return torch.zeros(rows, features).scatter(1, which, weights) @ directions + 0.3, directions

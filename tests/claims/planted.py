"""What the claims about dictionaries share: planted data, quiet training, the fit."""

import torch

from sparselens.sae import SAE, train_sae


def trained(x: torch.Tensor, steps: int, batch: int, **settings) -> SAE:
    """An SAE trained on rows without a word."""
    return train_sae(x, n_tokens=steps * batch, batch_size=batch, progress=False, live=False, **settings)[0]


def fvu(sae: SAE, x: torch.Tensor) -> float:
    """Share of the variance of rows that the reconstruction leaves."""
    with torch.no_grad():
        return float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def listed(values, digits: int = 2) -> str:
    """Numbers in a row."""
    return ", ".join(f"{v:.{digits}f}" for v in values)

"""GroupMax: the latents stand in k groups, and each token keeps the largest of each group (sparsify's `groupmax`)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.activations import TopK
from sparselens.sae.latents import Latents


class GroupMax(TopK):
    """Keeps the largest pre-activation of each of k groups of neighbouring latents, where positive.

    Raises:
        InputError: k does not divide the number of latents.
    """

    name = "groupmax"
    ranks = False

    def forward(self, pre: Float[Tensor, "n d_sae"]) -> Latents:
        d_sae = pre.shape[-1]
        if d_sae % self.k:
            raise InputError(f"groupmax needs a k that divides d_sae: {self.k} groups of {d_sae} latents are uneven.")
        values, inside = pre.unflatten(-1, (self.k, -1)).max(dim=-1)
        first = torch.arange(0, d_sae, d_sae // self.k, device=pre.device)
        return Latents(values.relu(), inside + first, d_sae)

"""Variational SAE: sampled latents and a KL term, kept as a baseline that loses (Baker et al., 2025, arXiv 2509.22994).

A rule for topk and abstopk. Noise is on in training only; in use the SAE is what its architecture says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError, closest
from sparselens.sae.latents import to_dense
from sparselens.sae.losses import dense_codes
from sparselens.sae.rules import Rule, Step
from sparselens.sae.sae import SAE
from sparselens.sae.selection import flat_indices, largest_of_token

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.trainer import SAETrainer

VARIANCES = ("none", "fixed", "learned")
_MU_RANGE = 10.0  # means beyond do not count more in the KL term


@dataclass(frozen=True)
class GaussianPrior(Rule):
    """Latents `z = mu + sigma * noise` before the k largest in size are kept, and a KL term towards N(0, 1).

    All in training units, where an input has norm sqrt(d) on average.

    Args:
        beta: weight of the KL term, against the squared error per token.
        variance: "none": no noise, and the KL term is an L2 penalty on all latents, which is what the published
            dictionaries with "fixed variance" were trained with; "fixed": noise of size `sigma`; "learned": its size
            is a linear function of the input.
        sigma: size of the noise ("fixed"), or what it starts from ("learned").
        warm_up: share of the run over which the weight of the KL term rises.
        log_var_range: limits of the learned log-variance.
        relu_mu: whether means are cut off at zero.
    """

    beta: float = 1.0
    variance: str = "none"
    sigma: float = 1.0
    warm_up: float = 0.1
    log_var_range: tuple[float, float] = (-6.0, 2.0)
    relu_mu: bool = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            valid = f"valid: {', '.join(VARIANCES)}.{closest(self.variance, VARIANCES)}"
            raise InputError(f"variance={self.variance!r} is unknown; {valid}")
        if self.variance == "learned" and self.sigma <= 0:
            raise InputError(f"a learned size of the noise starts above 0, not at {self.sigma}.")

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        if t.model.architecture not in ("topk", "abstopk"):
            raise InputError(f"a Gaussian prior goes with topk and abstopk, not with {t.model.architecture}.")
        if self.variance == "learned":
            generator = torch.Generator(x.device).manual_seed(0)
            weight = torch.randn(x.shape[1], t.model.d_sae, generator=generator, device=x.device)
            t.learn("W_var", 0.01 * weight / x.shape[1] ** 0.5)
            t.learn("b_var", torch.full((t.model.d_sae,), 2 * math.log(self.sigma), device=x.device))

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        z = mu = self.means(s.pre)
        if self.variance != "none":
            noise = torch.randn(mu.shape, generator=t.generator(s), device=mu.device, dtype=mu.dtype)
            log_var = self.log_variance(t, s)
            z = mu + (self.sigma if log_var is None else (0.5 * log_var).exp()) * noise
        where = flat_indices(largest_of_token(z.detach(), int(t.k), signed=True), z.shape[1]).flatten()
        return dense_codes(where, z, signed=True)

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        rise = min(1.0, s.share / self.warm_up) if self.warm_up > 0 else 1.0
        return self.beta * rise * self.kl(self.means(s.pre), self.log_variance(t, s))

    def means(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """The latents without noise."""
        return pre.relu() if self.relu_mu else pre

    def log_variance(self, t: "SAETrainer", s: Step) -> Tensor | None:
        """The learned log-variance of every latent `[n, d_sae]`, in float32; None if it is not learned."""
        if self.variance != "learned":
            return None
        return (s.centred.float() @ t.learned["W_var"] + t.learned["b_var"]).clamp(*self.log_var_range)

    @staticmethod
    def kl(mu: Float[Tensor, "n d_sae"], log_var: Float[Tensor, "n d_sae"] | None = None) -> Float[Tensor, ""]:
        """Mean over tokens of KL(N(mu, sigma^2) || N(0, 1)) summed over all latents, without what is constant if the
        variance is."""
        total = mu.float().clamp(-_MU_RANGE, _MU_RANGE).square()
        if log_var is not None:
            total = total + log_var.exp() - 1 - log_var
        return 0.5 * total.sum() / len(mu)


@dataclass(frozen=True)
class SelectionChurn:
    """How noise on the pre-activations changes what TopK keeps.

    Attributes:
        sigma: sizes of noise, in units of the mean active code.
        jaccard: mean overlap of the kept sets with and without noise.
        fvu: of the reconstruction from the noisy codes.
    """

    sigma: tuple[float, ...]
    jaccard: tuple[float, ...]
    fvu: tuple[float, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a size of noise."""
        import pandas as pd

        return pd.DataFrame({"sigma": self.sigma, "jaccard": self.jaccard, "fvu": self.fvu})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw overlap and fvu against noise, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 3.2))[1]
        ax.plot(self.sigma, self.jaccard, marker="o", color="#0072B2", label="overlap of kept latents")
        ax.plot(self.sigma, self.fvu, marker="s", color="#D55E00", label="fvu")
        ax.set(xlabel="noise / mean active code")
        ax.legend(frameon=False, fontsize=9)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4g}".format)


@torch.no_grad()
def selection_churn(
    sae: SAE, acts: Float[Tensor, "n d_in"], sigma: Sequence[float] = (0.0, 0.05, 0.1, 0.2), seed: int = 0
) -> SelectionChurn:
    """Add noise to the pre-activations of a topk or abstopk SAE, and see which latents it keeps then.

    Raises:
        InputError: the SAE does not keep k latents a token.
    """
    if not sae.activation.sparse:
        raise InputError(f"this {sae.architecture} SAE keeps no fixed number of latents a token; give a topk one.")
    pre = sae.pre_activations(acts.to(sae.b_dec.dtype))
    clean = to_dense(sae.activation(pre))
    size = float(clean[clean != 0].abs().mean())
    noise = torch.randn(pre.shape, generator=torch.Generator(pre.device).manual_seed(seed), device=pre.device)
    variance = (acts - acts.mean(0)).square().sum()
    jaccard, fvu = [], []
    for scale in sigma:
        noisy = to_dense(sae.activation(pre + scale * size * noise))
        both, either = ((clean != 0) & (noisy != 0)).sum(1), ((clean != 0) | (noisy != 0)).sum(1)
        jaccard.append(float((both / either.clamp_min(1)).mean()))
        fvu.append(float((sae.decode(noisy, sae.measure(acts)) - acts).square().sum() / variance))
    return SelectionChurn(tuple(map(float, sigma)), tuple(jaccard), tuple(fvu))

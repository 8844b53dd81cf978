"""Norms of codes against norms of inputs: the ZF diagnostic, and top-AFA, which selects by it (Lee et al., 2025).

If decoder directions are nearly orthogonal, a right code has about the norm of what it explains ("approximate feature
activation"). arXiv 2503.24277.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.activations import Activation
from sparselens.sae.latents import Latents, to_dense
from sparselens.sae.rules import Rule, Step

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.sae import SAE
    from sparselens.sae.trainer import SAETrainer

_ROWS = 4096  # tokens encoded together
_QUANTILES = (0.5, 0.9, 0.99, 0.999)


class TopAFA(Activation):
    """Keeps the largest latents of a token, as many as bring the norm of its code closest to the norm of its input.

    If decoder directions were orthogonal, a right code would have exactly that norm ("approximate feature
    activation"). There is no k. The norm of a code counts each latent times the norm of its decoder row; at least one
    latent is kept.

    Args:
        max_k: most latents per token; None: all.
        min_act: latents below this share of the token's largest are not kept. A little cross-talk on many latents
            adds up and would be counted in otherwise.
    """

    name = "topafa"
    ranks = True

    def __init__(self, max_k: int | None = None, min_act: float = 0.0) -> None:
        super().__init__(max_k=max_k, min_act=min_act)
        if max_k is not None and max_k < 1:
            raise InputError(f"max_k must be at least 1, not {max_k}.")
        if not 0 <= min_act < 1:
            raise InputError(f"min_act is a share of the largest activation, from 0 to below 1, not {min_act}.")
        self.max_k, self.min_act = max_k, min_act

    def encode(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        pre = sae.linear(x)
        norms = torch.ones(()) if sae.rank_by_decoder_norm else sae.W_dec.norm(dim=1)
        return self.keep(pre.relu(), norms.to(pre), x.norm(dim=1))

    def keep(
        self, acts: Float[Tensor, "n d_sae"], norms: Tensor, target: Float[Tensor, " n"]
    ) -> Float[Tensor, "n d_sae"]:
        """The activations that stay: `k(b) = argmin_m | ||largest m of acts * norms|| - target |`, at least one."""
        if not acts.numel():
            return acts
        weighed = (acts * norms).float()
        most = min(self.max_k or acts.shape[1], acts.shape[1])
        values, where = weighed.topk(most, dim=1)
        shown = values * (values >= self.min_act * values[:, :1])
        total = shown.square().cumsum(1).sqrt()
        count = 1 + (total - target[:, None]).abs().argmin(1)
        kept = (torch.arange(most, device=acts.device) < count[:, None]) & (shown > 0)
        return acts * torch.zeros_like(acts).scatter(1, where, kept.to(acts.dtype))


@dataclass(frozen=True)
class MatchNorm(Rule):
    """Trains top-AFA: squared error, and the squared difference between the norm of the code and that of the input.

    Both the selection and this loss look at the centred input. The published code compares codes with the input as it
    is; where the activations have a mean, the two then pull against each other and one latent is left.

    Args:
        weight: of that difference, against the squared error per number. It takes the place of k: a larger one keeps
            fewer latents, whose norms fit better.
    """

    weight: float = 1 / 32

    def codes(self, t: "SAETrainer", s: Step) -> Latents | Tensor:
        return s.model.activation.encode(s.model, s.centred)

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        weighed = s.codes if s.model.rank_by_decoder_norm else s.codes * s.model.W_dec.norm(dim=1)
        norms = (weighed.square().sum(1) + 1e-12).sqrt()
        return s.y.shape[1] * self.weight * (norms - s.centred.detach().norm(dim=1)).square().mean()


@dataclass(frozen=True)
class ZF:
    """Norm of every token against the norm of its code, decoder norms counted in; `[tokens]` each.

    Attributes:
        norm_x: norm of what the dictionary is to explain.
        norm_f: norm of the code. Above norm_x the token is over-activated, below under-activated.
        eps_lbo: `| norm_x^2 - norm_f^2 | / ((d_sae - 1) norm_f^2)`: the smallest largest cosine of decoder rows that
            could explain the difference. It is small for any code, since it is divided by d_sae; look at `ratio`.
    """

    norm_x: Float[Tensor, " tokens"]
    norm_f: Float[Tensor, " tokens"]
    eps_lbo: Float[Tensor, " tokens"]

    @property
    def ratio(self) -> Float[Tensor, " tokens"]:
        """`norm_f / norm_x`."""
        return self.norm_f / self.norm_x

    def to_frame(self) -> "pandas.DataFrame":
        """A row a token."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name).numpy() for name in ("norm_x", "norm_f", "ratio", "eps_lbo")})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw norms of codes against norms of tokens, with the diagonal, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(4.5, 4.5))[1]
        over = float((self.ratio > 1).double().mean())
        ax.scatter(self.norm_x, self.norm_f, s=4, alpha=0.4, color="#0072B2", label=f"over-activated: {over:.0%}")
        ends = [float(self.norm_x.min()), float(self.norm_x.max())]
        ax.plot(ends, ends, color="#000000", linewidth=1)
        ax.set(xlabel="norm of the token", ylabel="norm of its code", xscale="log", yscale="log")
        ax.legend(frameon=False, fontsize=9)
        return ax

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        low, middle, high = torch.quantile(self.ratio.double(), torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
        rows = [("tokens", len(self.norm_x)), ("ratio, median", middle), ("5 % to 95 %", f"{low:.3g} to {high:.3g}")]
        return report_html("Norm of code / norm of token", rows)


@torch.no_grad()
def zf(sae: "SAE", acts: Float[Tensor, "*batch d_in"], center: bool = True) -> ZF:
    """Compare the norms of codes with those of what they explain, token by token.

    Args:
        sae: a dictionary that writes what it reads.
        acts: activations.
        center: compare with the norm of `x - b_dec`; False compares with that of x, and counts `b_dec` as one more
            latent, as the authors do for existing dictionaries.
    """
    if sae.is_transcoder:
        raise InputError("norms of codes are compared with what is written; this transcoder reads something else.")
    norms = sae.W_dec.detach().float().norm(dim=1)
    found: list[list[Tensor]] = [[], []]
    for rows in acts.reshape(-1, sae.d_in).split(_ROWS):
        x = sae.input_norm.apply(rows.to(sae.b_dec.dtype), sae.input_norm.measure(rows.to(sae.b_dec.dtype))).float()
        z = to_dense(sae.encode(rows)).float()
        squared = (z if sae.rank_by_decoder_norm else z * norms).square().sum(1)
        if not center:
            squared = squared + sae.b_dec.float().square().sum()
        found[0].append(((x - sae.b_dec) if center else x).norm(dim=1).cpu())
        found[1].append(squared.sqrt().cpu())
    norm_x, norm_f = torch.cat(found[0]), torch.cat(found[1])
    return ZF(norm_x, norm_f, eps_lbo(norm_x, norm_f, sae.d_sae + (not center)))


def eps_lbo(norm_x: Tensor, norm_f: Tensor, n_directions: int) -> Tensor:
    """The smallest largest cosine among `n_directions` unit directions that allows for these norms; inf for a zero
    code."""
    return (norm_x.square() - norm_f.square()).abs() / ((n_directions - 1) * norm_f.square())


@dataclass(frozen=True)
class QuasiOrthogonality:
    """How far a dictionary's directions are from orthogonal.

    Attributes:
        eps_max: largest |cosine| of two different rows.
        quantiles: of |cosine|, by share: 0.5, 0.9, 0.99, 0.999 (of a sample of pairs).
        n_directions: number of rows.
    """

    eps_max: float
    quantiles: dict[float, float]
    n_directions: int

    @property
    def spread(self) -> float:
        """`eps_max (n - 1)`. The bound `norm_x^2 / (1 + spread) <= norm_f^2 <= norm_x^2 / (1 - spread)` holds while it
        is below 1."""
        return self.eps_max * (self.n_directions - 1)

    @property
    def vacuous(self) -> bool:
        """Whether the upper side of the bound says nothing."""
        return self.spread >= 1

    def to_frame(self) -> "pandas.DataFrame":
        """One row."""
        import pandas as pd

        shares = {f"q{share:g}": value for share, value in self.quantiles.items()}
        facts = {"eps_max": self.eps_max, "spread": self.spread, "vacuous": self.vacuous}
        return pd.DataFrame([{"n_directions": self.n_directions, **facts, **shares}])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


@torch.no_grad()
def quasi_orthogonality(rows: Float[Tensor, "n d"], block: int = 2048) -> QuasiOrthogonality:
    """Largest |cosine| of two different rows, in blocks, and quantiles over a sample of pairs.

    Args:
        rows: directions, such as `sae.W_dec`; their norms do not matter.
        block: rows compared at once.

    Raises:
        InputError: fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError("one direction has nothing to be orthogonal to; give two rows at least.")
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    most, sample = 0.0, []
    for start in range(0, len(unit), block):
        cosines = (unit[start : start + block] @ unit.T).abs_()
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + start] = -1.0
        most = max(most, float(cosines.max()))
        picked = cosines[:: max(1, len(cosines) * len(unit) // 2**20)].flatten()
        sample.append(picked[picked >= 0][: 2**20])
    joined = torch.cat(sample)
    joined = joined[:: max(1, len(joined) // 2**20)].double()
    shares = torch.quantile(joined[: 2**24], torch.tensor(_QUANTILES, dtype=torch.float64, device=joined.device))
    return QuasiOrthogonality(most, dict(zip(_QUANTILES, shares.tolist(), strict=True)), len(unit))

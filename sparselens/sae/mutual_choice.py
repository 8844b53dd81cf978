"""Active latents as a budget over the whole batch: Mutual Choice, Feature Choice and aux_zipf (arXiv 2411.02124).

Mutual Choice is the selection of BatchTopK (`architecture="batchtopk"`, also called "mutualchoice"). The constants and
the exact form of the auxiliary loss are a reading of the abstract and the reviews.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.activations import FeatureChoice
from sparselens.sae.losses import FOLLOW
from sparselens.sae.rules import Rule, Step
from sparselens.sae.selection import largest_of_batch

if TYPE_CHECKING:
    from sparselens.sae.trainer import SAETrainer

# Densities are a running mean with this weight of the past; ranks are taken from them every so many steps.
_MEMORY, _RERANK = 0.99, 100


class ZipfFit(NamedTuple):
    """A Zipf-Mandelbrot law `density ~ scale * (rank + beta)^-alpha`, rank from 1; `r2` of the fit in logarithms."""

    alpha: float
    beta: float
    scale: float
    r2: float


def zipf_shares(d_sae: int, alpha: float, beta: float) -> Float[Tensor, " d_sae"]:
    """Shares of ranks 1 to d_sae under a Zipf-Mandelbrot law; they sum to 1. float64."""
    weights = (torch.arange(1, d_sae + 1, dtype=torch.float64) + beta) ** -alpha
    return weights / weights.sum()


def zipf_budgets(total: int, n: int, d_sae: int, alpha: float, beta: float) -> Int[Tensor, " d_sae"]:
    """How many tokens of a batch of n each rank may have: whole numbers from 1 to n, falling, that sum to `total`.

    Raises:
        InputError: fewer than one token a latent, or more than there are.
    """
    if not d_sae <= total <= n * d_sae:
        need = -(-d_sae * n // max(total, 1))
        raise InputError(
            f"a budget of {total} active codes in a batch of {n} tokens leaves less than one for each of {d_sae} "
            f"latents (or more than there are): take a batch of at least {need} tokens, or a larger k."
        )
    shares = zipf_shares(d_sae, alpha, beta)
    low, high = 0.0, 2.0 * total * n
    for _ in range(200):  # the scale at which rounded and clamped budgets come just short of the total
        middle = (low + high) / 2
        short = int((shares * middle).floor().clamp(1, n).sum()) <= total
        low, high = (middle, high) if short else (low, middle)
    budgets = (shares * low).floor().clamp(1, n).long()
    while missing := total - int(budgets.sum()):  # one more each, to the first ranks that can take it
        takers = (budgets < n).nonzero().flatten()[:missing]
        budgets[takers] += 1
    return budgets


def fit_zipf(density: Float[Tensor, " d_sae"], drop: float = 0.1) -> ZipfFit:
    """Fit a Zipf-Mandelbrot law to firing densities by least squares on logarithms.

    Args:
        density: share of tokens on which each latent fires, in any order.
        drop: share of the rarest ranks to leave out, besides those that never fire.

    Raises:
        InputError: fewer than three latents fire.
    """
    ranked = density.double().sort(descending=True).values
    ranked = ranked[: max(3, round(len(ranked) * (1 - drop)))]
    ranked = ranked[ranked > 0]
    if len(ranked) < 3:
        raise InputError("a law of ranks needs three latents that fire at least.")
    target, ranks = ranked.log(), torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    best: tuple[float, float, float, float] | None = None
    for beta in torch.cat([torch.zeros(1), torch.logspace(-1, 3, 161)]).double().tolist():
        log_rank = (ranks + beta).log()
        centred = log_rank - log_rank.mean()
        slope = float((centred * target).sum() / centred.square().sum())
        offset = float(target.mean() - slope * log_rank.mean())
        error = float((target - slope * log_rank - offset).square().sum())
        if best is None or error < best[0]:
            best = (error, slope, beta, offset)
    assert best is not None
    error, slope, beta, offset = best
    spread = float((target - target.mean()).square().sum())
    return ZipfFit(-slope, beta, float(torch.tensor(offset).exp()), 1 - error / spread if spread else 1.0)


def largest_of_features(
    pre: Float[Tensor, "n d_sae"], budgets: Int[Tensor, " d_sae"]
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " d_sae"]]:
    """Sorted flat indices of the `budgets[i]` largest positive entries of each column i, and the smallest of each
    (infinity for a column that keeps none)."""
    n, d_sae = pre.shape
    found, smallest = [], torch.full((d_sae,), torch.inf, dtype=pre.dtype, device=pre.device)
    order = torch.log2(budgets.double()).ceil().long()
    for level in order.unique().tolist():  # latents of similar budgets together
        columns = (order == level).nonzero().flatten()
        most = int(budgets[columns].max())
        values, rows = pre[:, columns].topk(most, dim=0)
        kept = (torch.arange(most, device=pre.device)[:, None] < budgets[columns]) & (values > 0)
        found.append((rows * d_sae + columns)[kept])
        smallest[columns] = torch.where(kept, values, torch.inf).amin(0)
    return torch.cat(found).sort().values, smallest


def count_density(t: "SAETrainer", fires: Tensor, tokens: int) -> None:
    """Keep the running mean of firing densities in `t.extra["density"]`."""
    t.extra["density"].lerp_(fires / tokens, 1 - _MEMORY)


def _ranks(density: Tensor) -> Tensor:
    """Rank of each latent, 0 for the one that fires most."""
    return density.argsort(descending=True, stable=True).argsort()


@dataclass(frozen=True)
class FeatureBudget(Rule):
    """Feature Choice: every latent keeps its largest pre-activations of the batch, as many as its budget.

    The first part of the run chooses freely over the batch (Mutual Choice), until the ranks of densities are settled.

    Args:
        begin: share of the run after which budgets hold.
    """

    begin: float = 0.8

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        d_sae = t.model.d_sae
        t.remember("density", torch.full((d_sae,), t.k / d_sae, device=x.device))
        t.remember("ranks", torch.arange(d_sae, device=x.device))
        t.remember("followed", torch.zeros((), device=x.device))

    def choose(self, t: "SAETrainer", s: Step) -> Tensor:
        pre, part = s.pre.detach(), s.model.activation
        assert isinstance(part, FeatureChoice)
        if s.share < self.begin:
            return largest_of_batch(pre, t.k).sort().values
        n, d_sae = pre.shape
        alpha = part.alpha if part.budget == "zipf" else 0.0
        budgets = zipf_budgets(int(t.k * n), n, d_sae, alpha, part.beta).to(pre.device)[t.extra["ranks"]]
        where, smallest = largest_of_features(pre.float(), budgets)
        # a plain mean at first, then a running one
        t.extra["followed"] += 1
        pace = max(FOLLOW, 1 / float(t.extra["followed"]))
        kept = smallest.isfinite()
        part.threshold[kept] = part.threshold[kept].lerp(smallest[kept], pace)
        return where

    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        count_density(t, seen.fires, len(s.x))
        if s.number % _RERANK == 0 and s.share < self.begin:
            t.extra["ranks"].copy_(_ranks(t.extra["density"]))


@dataclass(frozen=True)
class AuxZipf(Rule):
    """The auxiliary loss for under-used latents, not for dead ones alone.

    Under-used is a latent whose density is below `tau` times what a Zipf law gives its rank.

    Args:
        weight: of the squared error that these latents leave of the residual.
        tau: share of the expected density below which a latent is under-used.
        alpha, beta: of the law.
    """

    weight: float = 1 / 32
    tau: float = 0.1
    alpha: float = 1.0
    beta: float = 4.0

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        t.aux_weight = self.weight
        shares = zipf_shares(t.model.d_sae, self.alpha, self.beta).float().to(x.device)
        t.remember("density", t.k * shares)

    def revive(self, t: "SAETrainer", s: Step) -> Tensor:
        expected = t.k * zipf_shares(t.model.d_sae, self.alpha, self.beta).float().to(s.x.device)
        density = t.extra["density"]
        return (density < self.tau * expected[_ranks(density)]).nonzero().flatten()

    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        if not isinstance(t.model.activation, FeatureChoice):  # which counts them itself
            count_density(t, seen.fires, len(s.x))

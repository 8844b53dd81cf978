"""Sparse plus low-rank codes (Liu et al., 2025, arXiv 2503.08980).

`x_hat = (S + R) @ W_dec + b_dec`: S is sparse and holds the features, R has a low rank over the tokens and holds what
concepts share. The paper gives the loss; how the two parts are computed, and the constants, are a reading of it.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError
from sparselens.sae.activations import ReLU
from sparselens.sae.decoders import Bypass
from sparselens.sae.rules import Rule, Step

if TYPE_CHECKING:
    import pandas

    from sparselens.sae.sae import SAE
    from sparselens.sae.trainer import SAETrainer

_EPS = 1e-8  # keeps the slope of |s|^p finite at zero
_RATE = 0.02  # how fast the weight of the penalty follows the number of active latents, per step, in log units


class LowRank(Bypass):
    """The low-rank part of the code, `R = x @ P @ Q`, decoded by the same rows as the sparse part.

    Args:
        d_in, d_sae: sizes of the SAE it belongs to.
        rank: largest rank of R.
    """

    name = "low_rank"

    def __init__(self, d_in: int, d_sae: int, rank: int) -> None:
        if not 1 <= rank <= d_in:
            raise InputError(f"rank={rank} does not fit a code of activations of width {d_in}: give 1 to {d_in}.")
        super().__init__(d_in=d_in, d_sae=d_sae, rank=rank)
        start = torch.randn(d_in, rank, generator=torch.Generator().manual_seed(0))
        self.P = nn.Parameter(torch.linalg.qr(start).Q.contiguous())
        self.Q = nn.Parameter(torch.zeros(rank, d_sae))

    def rescale(self, codes: float, output: float) -> None:
        if abs(codes - output) > 1e-6 * abs(output):
            raise InputError("a low-rank code goes with an SAE that writes what it reads, not with a transcoder.")

    def forward(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return x @ self.P @ (self.Q @ sae.W_dec)

    def codes(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """R of centred rows."""
        return x @ self.P @ self.Q


class Structured(ReLU):
    """Codes with a sparse and a low-rank part. What `encode` gives is the sparse one; R goes around it (`LowRank`).

    Args:
        rank: largest rank of the other part.
    """

    name = "structured"

    def __init__(self, rank: int = 32) -> None:
        super().__init__(rank=rank)
        self.rank = rank

    def around(self, d_in: int, d_sae: int) -> LowRank:
        return LowRank(d_in, d_sae, min(self.rank, d_in))


@dataclass(frozen=True)
class SparseLowRank(Rule):
    """Squared error, `lambda * ||S||_p^p` with p falling, and `gamma` times the nuclear norm of R.

    The weight lambda is steered so that k latents are active; where p changes it is set so that the penalty does not
    jump. The nuclear norm is the bound `(||x P||^2 / n + ||Q||^2) / 2`, which it reaches at the optimum, in units of
    the squared norm of an input. On a "relu" SAE, which has no R, this is p-annealing alone.

    Args:
        gamma: weight of the nuclear norm. A small one lets R take everything: see `code_split`.
        hold: share of the run with p = 1.
        p_end: p at the end; it falls linearly.
    """

    gamma: float = 0.03
    hold: float = 0.5
    p_end: float = 0.2
    alone = True

    def __post_init__(self) -> None:
        if not 0 < self.p_end <= 1 or not 0 <= self.hold <= 1 or self.gamma < 0:
            raise InputError(
                f"p_end={self.p_end} lies above 0 and up to 1, hold={self.hold} between 0 and 1, and "
                f"gamma={self.gamma} is 0 or more."
            )

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        if t.model.architecture not in ("structured", "relu"):
            raise InputError(f"SparseLowRank trains structured and relu SAEs, not {t.model.architecture}.")
        if t.model.bypass is not None and not t.model.subtract_b_dec:
            raise InputError("a low-rank code needs subtract_b_dec=True: it is a linear map of x - b_dec.")
        t.remember("log_l1", torch.tensor(1 / x.shape[1], device=x.device).log())
        t.remember("p", torch.ones((), device=x.device))

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        return s.pre.relu()

    def loss(self, t: "SAETrainer", s: Step) -> Tensor:
        n, d = s.y.shape
        p = self.exponent(s.share)
        with torch.no_grad():
            before = float(t.extra["p"])
            if p != before:
                was, now = (t.mean(power(s.codes, each).sum()) for each in (before, p))
                if now > 0:
                    t.extra["log_l1"] += (was / now).log()
                t.extra["p"].fill_(p)
            l0 = t.mean((s.codes != 0).sum() / n)
            t.extra["log_l1"] += _RATE * (l0 / t.k - 1).clamp(-1, 1)
        penalty = t.extra["log_l1"].exp() * power(s.codes, p).sum() / n
        part: Any = s.model.bypass
        if part is None:
            return d * penalty
        return d * (penalty + self.gamma * nuclear_bound(s.centred @ part.P, part.Q))

    def exponent(self, share: float) -> float:
        """p after this share of the run."""
        fallen = max(0.0, share - self.hold) / max(1e-9, 1 - self.hold)
        return 1 - (1 - self.p_end) * min(1.0, fallen)


def power(codes: Float[Tensor, "*batch d_sae"], p: float) -> Float[Tensor, "*batch d_sae"]:
    """`|s|^p`, with a finite slope at zero; exactly zero there."""
    return codes.abs() if p == 1 else (codes.abs() + _EPS) ** p - _EPS**p


def nuclear_bound(left: Float[Tensor, "n rank"], right: Float[Tensor, "rank d_sae"]) -> Float[Tensor, ""]:
    """`(||left||^2 / n + ||right||^2) / 2`, at least the nuclear norm of `left @ right` divided by sqrt(n)."""
    return (left.square().sum() / len(left) + right.square().sum()) / 2


@dataclass(frozen=True)
class CodeSplit:
    """How much of a reconstruction comes from either part of the code.

    Attributes:
        low_rank: variance of `R @ W_dec` as a share of that of the data. From 5 to 30 % is what one wants.
        sparse: the same of `S @ W_dec`; the two need not add up to 1, as they may overlap or cancel.
        effective_rank: exponential of the entropy of the singular values of R over these tokens.
        fvu: of the whole, and fvu_sparse: with R left out.
        l0: active latents of S per token.
    """

    low_rank: float
    sparse: float
    effective_rank: float
    fvu: float
    fvu_sparse: float
    l0: float

    def to_frame(self) -> "pandas.DataFrame":
        """One row."""
        import pandas as pd

        return pd.DataFrame([asdict(self)])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4g}".format)


@torch.no_grad()
def code_split(sae: "SAE", acts: Float[Tensor, "n d_in"]) -> CodeSplit:
    """Measure what the sparse and the low-rank part of a structured SAE's code write.

    Raises:
        InputError: the SAE has no low-rank part.
    """
    part = sae.bypass
    if not isinstance(part, LowRank):
        raise InputError(f"this {sae.architecture} SAE has no low-rank code: train one with architecture='structured'.")
    x = acts.to(sae.b_dec.dtype)
    centred = sae.centred(x)
    z: Any = sae.encode(x)
    shared, sparse = part(sae, centred), sae.contributions(z)
    target = sae.input_norm.apply(x, sae.input_norm.measure(x)) - sae.b_dec
    total = float((target - target.mean(0)).square().sum())
    # R = left @ Q has the singular values of the two triangular factors' product
    left, right = torch.linalg.qr(centred @ part.P).R, torch.linalg.qr(part.Q.T).R
    values = torch.linalg.svdvals(left @ right.T).double()
    weights = values / values.sum() if float(values.sum()) else values
    entropy = -float((weights * weights.clamp_min(1e-300).log()).sum())
    return CodeSplit(
        low_rank=float((shared - shared.mean(0)).square().sum()) / total,
        sparse=float((sparse - sparse.mean(0)).square().sum()) / total,
        effective_rank=float(torch.tensor(entropy).exp()) if float(values.sum()) else 0.0,
        fvu=float((target - shared - sparse).square().sum()) / total,
        fvu_sparse=float((target - sparse).square().sum()) / total,
        l0=float((z != 0).sum()) / len(x),
    )

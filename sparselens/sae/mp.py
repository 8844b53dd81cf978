"""Matching pursuit: latents chosen one after the other, each for what is left over (Costa et al., 2025).

arXiv 2506.03093. An SAE of the architecture `mp` has no encoder: it picks the decoder row that the residual leans on
most, takes it off, and goes on, `k` times. A child concept then has only to add to its parent, and sparsity stays free
after training: set `sae.activation.k`, and more steps never fit worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselens.errors import FitError, InputError, NotFiniteError, closest
from sparselens.sae.activations import Activation
from sparselens.sae.latents import Latents
from sparselens.sae.lean_step import auxiliary_codes
from sparselens.sae.rules import Rule, Step
from sparselens.sae.selection import largest_of_token

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.sae import SAE
    from sparselens.sae.trainer import SAETrainer

SOLVERS = ("mp", "omp", "topk")
ROWS = 128  # tokens pursued together: their correlations stay in the processor's cache
LEAST = 1e-6  # of a row's norm: a smaller gain is rounding, and the pursuit has come to its end
GRAM = 2**27  # most numbers in a table of products of all atoms (512 MB); without one every step multiplies anew


class Pursuit(NamedTuple):
    """A pursuit, step by step: what was picked and what was left.

    values, indices `[n, k]`: gain and atom of each step (0 after the stop; an atom may come twice); residual `[n, k]`:
    norm of what is left after the step.
    """

    values: Tensor
    indices: Tensor
    residual: Tensor


@torch.no_grad()
def pursue(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "d_sae d"],
    k: int,
    tol: float = 0.0,
    gram: Float[Tensor, "d_sae d_sae"] | None = None,
    signed: bool = False,
) -> Pursuit:
    """Matching pursuit, by default with non-negative gains.

    Args:
        x: rows to take apart.
        atoms: directions of norm 1.
        k: most steps. A row stops when nothing leans on it any more, or at
        tol: this share of its own norm.
        gram: `atoms @ atoms.T`. With it a step costs d_sae operations a row, without it d_sae * d.
        signed: pick the largest product in size, so that gains may be negative.
    """
    values, residual = x.new_zeros(len(x), k), x.new_zeros(len(x), k)
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), ROWS):
        at = slice(start, start + ROWS)
        rest, square = x[at].clone(), x[at].square().sum(1)
        floor, least = tol * tol * square, LEAST * square.sqrt()[:, None]
        lean = rest @ atoms.T
        for step in range(k):
            best = largest_of_token(lean, 1, signed)
            gain = lean.gather(1, best)
            gain *= ((gain.abs() if signed else gain) > least) & (square > floor)[:, None]
            values[at, step], indices[at, step] = gain[:, 0], best[:, 0]
            square = (square - gain[:, 0].square()).clamp_min_(0)
            residual[at, step] = square.sqrt()
            if step + 1 == k or not gain.any():
                residual[at, step:] = square.sqrt()[:, None]
                break
            if gram is not None:
                lean.addcmul_(gram[best[:, 0]], gain, value=-1)
            else:
                rest.addcmul_(atoms[best[:, 0]], gain, value=-1)
                torch.mm(rest, atoms.T, out=lean)
    return Pursuit(values, indices, residual)


class MatchingPursuit(Activation):
    """Picks decoder rows one after the other, each for what is left over.

    Args:
        k: most steps a token; as many latents are active, or fewer where a row is picked again.
        tol: a token stops when less than this share of its norm is left.
    """

    name = "mp"
    wants_k = "whole"
    sparse = True
    encoder = ()
    k: int

    def __init__(self, k: int, tol: float = 0.05) -> None:
        if not 0 <= tol < 1:
            raise InputError(f"tol={tol} is no share of a norm: give 0 up to, but not including, 1.")
        super().__init__(k=int(k), tol=float(tol))
        self.k, self.tol = int(k), float(tol)
        self._gram: tuple[tuple, Tensor] | None = None

    def encode(self, sae: "SAE", x: Float[Tensor, "n d_in"]) -> Latents:
        """Codes of centred rows. Gradients reach them through every step; which rows are picked is a constant."""
        atoms = sae.W_dec
        norms = atoms.norm(dim=1)
        unit = atoms / norms[:, None]
        table = self._products(atoms, unit.detach())
        found = pursue(x.detach(), unit.detach(), self.k, self.tol, table, self.signed)
        tracked = torch.is_grad_enabled() and (x.requires_grad or atoms.requires_grad)
        gains = replay(x, unit, found.indices, found.values != 0) if tracked else found.values
        return merged(gains / norms[found.indices], found.indices, sae.d_sae)

    def _products(self, atoms: Tensor, unit: Tensor) -> Tensor | None:
        """Products of all atoms, kept for as long as these do not change; None where they are too many."""
        if len(atoms) ** 2 > GRAM:
            return None
        stamp = (atoms.data_ptr(), atoms._version, atoms.dtype, atoms.device, float(unit.sum(dtype=torch.float64)))
        if self._gram is None or self._gram[0] != stamp:
            self._gram = stamp, unit @ unit.T
        return self._gram[1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_gram": None}  # a copy makes its own


def replay(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "d_sae d"], indices: Tensor, taken: Tensor
) -> Float[Tensor, "n k"]:
    """Gains of a pursuit that is known already, with the graph of the chosen atoms alone."""
    rest, gains = x, []
    for step in range(indices.shape[1]):
        atom = atoms[indices[:, step]]
        gain = (rest * atom).sum(1) * taken[:, step]
        rest = rest - gain[:, None] * atom
        gains.append(gain)
    return torch.stack(gains, 1)


def merged(values: Float[Tensor, "n k"], indices: Tensor, d_sae: int) -> Latents:
    """Codes in which an atom that was picked again stands once, where it was picked first."""
    k = indices.shape[1]
    same = indices[:, :, None] == indices[:, None, :]  # [n, later, earlier]
    first = same.to(torch.uint8).argmax(2)
    if bool((first == torch.arange(k, device=first.device)).all()):
        return Latents(values, indices, d_sae)
    return Latents(torch.zeros_like(values).scatter_add(1, first, values), indices, d_sae)


@dataclass(frozen=True)
class Pursued(Rule):
    """Trains an `mp` SAE on its squared error, decoder rows kept at norm 1; atoms that are never picked learn from what
    is left over."""

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        if t.model.is_transcoder or t.model.decoder is not None:
            raise InputError("matching pursuit takes apart what it reads: it makes no transcoder, and needs the linear "
                             "decoder.")
        t.clip = 1.0

    def codes(self, t: "SAETrainer", s: Step) -> Latents:
        model, part = s.model, s.model.activation
        assert isinstance(part, MatchingPursuit)
        unit = functional.normalize(model.W_dec, dim=1)
        fixed, x = unit.detach(), s.centred.detach()
        # the table of products is as large as d_sae^2, and worth it where as many steps are made
        table = fixed @ fixed.T if len(x) * part.k > len(fixed) and len(fixed) ** 2 <= GRAM else None
        found = pursue(x, fixed, part.k, part.tol, table)
        gains = replay(s.centred, unit, found.indices, found.values != 0)
        return merged(gains, found.indices, model.d_sae)

    def loss(self, t: "SAETrainer", s: Step) -> Tensor | None:
        if not t.aux or not len(s.dead):
            return None
        left, atoms = -s.error.detach(), s.model.W_dec[s.dead]
        codes = auxiliary_codes(left @ atoms.T, s.y.shape[1], signed=False)
        return t.aux_weight * (left - codes @ atoms).square().sum() / len(s.x)


@torch.no_grad()
def encode_with(
    dictionary: Float[Tensor, "d_sae d"],
    x: Float[Tensor, "n width"],
    k: int,
    solver: str = "mp",
    tol: float = 0.0,
) -> Latents:
    """Codes of rows over any dictionary, by a solver in place of its encoder.

    Args:
        dictionary: its rows, such as `sae.W_dec`, of any norm but zero.
        x: rows, with what the dictionary does not explain (`b_dec`) taken off.
        k: most latents a row.
        solver: "mp"; "omp", which fits all gains anew in each step, non-negative, and picks no atom twice; or "topk",
            the k largest products.
        tol: "mp" and "omp" stop when less than this share of a row's norm is left.

    Raises:
        InputError: an unknown solver, or a k that does not fit. FitError: rows of another width.
        NotFiniteError: NaN or infinite rows.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r} is unknown; valid: {', '.join(SOLVERS)}.{closest(solver, SOLVERS)}")
    if not 1 <= k <= len(dictionary):
        raise InputError(f"k={k} does not fit: it must be 1 to {len(dictionary)}, the number of rows.")
    if x.shape[1] != dictionary.shape[1]:
        raise FitError(f"the rows have {x.shape[1]} numbers, those of the dictionary {dictionary.shape[1]}.")
    if not torch.isfinite(x).all():
        raise NotFiniteError("the rows hold NaN or infinite numbers.")
    norms = dictionary.norm(dim=1)
    unit = dictionary / norms[:, None]
    if solver == "topk":
        pre = x @ unit.T
        indices = largest_of_token(pre, k)
        values = pre.gather(1, indices).relu()
    elif solver == "omp":
        values, indices = _orthogonal(x, unit, k, tol)
    else:
        table = unit @ unit.T if len(unit) ** 2 <= GRAM and len(x) * k > len(unit) else None
        values, indices, _ = pursue(x, unit, k, tol, table)
    return merged(values / norms[indices], indices, len(dictionary))


def _orthogonal(x: Tensor, atoms: Tensor, k: int, tol: float) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit with non-negative gains, `[n, k]` each."""
    lean = x @ atoms.T
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    values, rest, floor = x.new_zeros(len(x), k), x.clone(), tol * x.norm(dim=1)
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for step in range(k):
        now = rest @ atoms.T
        now.scatter_(1, indices[:, :step], -torch.inf)
        best = now.argmax(1)
        going &= (now.gather(1, best[:, None])[:, 0] > 0) & (rest.norm(dim=1) > floor)
        if not going.any():
            break
        indices[:, step] = best
        chosen = atoms[indices[:, : step + 1]]
        fitted = _non_negative(chosen, lean.gather(1, indices[:, : step + 1]))
        values[:, : step + 1] = torch.where(going[:, None], fitted, values[:, : step + 1])
        rest = x - torch.einsum("nk,nkd->nd", values[:, : step + 1], chosen)
    return values, indices


def _non_negative(chosen: Tensor, products: Tensor) -> Tensor:
    """Least squares with gains of at least zero, `[n, k]`: negative ones are dropped until there are none."""
    table = chosen @ chosen.transpose(1, 2)
    free = torch.ones_like(products, dtype=torch.bool)
    identity = torch.eye(table.shape[1], dtype=table.dtype, device=table.device)
    for _ in range(table.shape[1]):
        both = free[:, :, None] & free[:, None, :]
        gains = torch.linalg.solve(torch.where(both, table, identity), (products * free)[..., None])[..., 0]
        wrong = free & (gains < 0)
        if not wrong.any():
            break
        free &= ~wrong
    return gains.clamp_min(0)


@dataclass(frozen=True)
class PursuitCurve:
    """How the fit of a dictionary depends on the number of latents.

    Attributes:
        k: latents a token at most.
        fvu: share of variance left over: by matching pursuit over the dictionary, `pursuit`, and by its `own` encoder
            (None where that keeps no fixed number).
    """

    k: tuple[int, ...]
    pursuit: tuple[float, ...]
    own: tuple[float, ...] | None

    def to_frame(self) -> "pandas.DataFrame":
        """A row a number of latents."""
        import pandas as pd

        columns: dict[str, Any] = {"k": self.k, "pursuit": self.pursuit}
        return pd.DataFrame(columns if self.own is None else columns | {"own": self.own})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the curves, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 3.2))[1]
        ax.plot(self.k, self.pursuit, marker="o", color="#0072B2", label="matching pursuit")
        if self.own is not None:
            ax.plot(self.k, self.own, marker="s", color="#D55E00", label="its own encoder")
        ax.set(xlabel="latents a token", ylabel="fvu", xscale="log")
        ax.legend(frameon=False, fontsize=9)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4g}".format)


@torch.no_grad()
def pursuit_curve(
    sae: "SAE", acts: Float[Tensor, "n d_in"], steps: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
) -> PursuitCurve:
    """Reconstruct with more and more latents: by matching pursuit, and by what a topk SAE does when k is raised.

    Args:
        sae: an SAE with the linear decoder.
        acts: activations.
        steps: numbers of latents.
    """
    x = sae.centred(acts.to(sae.b_dec.dtype))
    x = x if sae.subtract_b_dec else x - sae.b_dec
    variance = (x - x.mean(0)).square().sum()
    found = pursue(x, functional.normalize(sae.W_dec, dim=1), max(steps))
    pursuit = [float(found.residual[:, k - 1].square().sum() / variance) for k in steps]
    own = None
    if sae.activation.ranks and sae.activation.sparse:
        pre, own = sae.pre_activations(acts.to(sae.b_dec.dtype)), []
        for k in steps:
            z = type(sae.activation)(k=k)(pre)
            own.append(float((x - sae.contributions(z)).square().sum() / variance))
    return PursuitCurve(tuple(steps), tuple(pursuit), None if own is None else tuple(own))

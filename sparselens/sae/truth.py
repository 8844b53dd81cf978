"""Planted truth against what a dictionary found: directions one to one, and when they fire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae.latents import active_counts, to_dense
from sparselens.sae.sae import SAE

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

_ROWS = 4096  # rows encoded together


@dataclass(frozen=True)
class Recovery:
    """How well a dictionary holds planted directions.

    Attributes:
        cosine: `[n]` for each planted direction, the largest cosine with a decoder row.
        latent: `[n]` the latent of each direction when every latent may stand for one only; -1 where none was left.
        matched: `[n]` cosine with that latent; 0 where none was left.
        f1: `[n]` how well that latent fires when the direction is active; None if it was not measured.
        fvu, l0: of the dictionary on the same rows; None if not measured.
    """

    cosine: Float[Tensor, " n"]
    latent: Int[Tensor, " n"]
    matched: Float[Tensor, " n"]
    f1: Float[Tensor, " n"] | None = None
    fvu: float | None = None
    l0: float | None = None

    def share(self, above: float) -> float:
        """Share of the planted directions that are recovered beyond a cosine."""
        return float((self.cosine > above).double().mean())

    def to_frame(self) -> "pandas.DataFrame":
        """A row a planted direction."""
        import pandas as pd

        columns = {"cosine": self.cosine, "latent": self.latent, "matched": self.matched}
        columns |= {} if self.f1 is None else {"f1": self.f1}
        return pd.DataFrame({k: v.cpu().numpy() for k, v in columns.items()}).rename_axis("direction").reset_index()

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[tuple[str, Any]] = [("directions", len(self.cosine)), ("mean cosine", float(self.cosine.mean()))]
        rows += [(f"share above {a:g}", self.share(a)) for a in (0.8, 0.9)]
        rows.append(("mean cosine, one to one", float(self.matched.mean())))
        if self.f1 is not None:
            rows += [("mean F1 of firing", float(self.f1.mean())), ("fvu", self.fvu), ("l0", self.l0)]
        return report_html("Recovery", rows)


@torch.no_grad()
def recovery(
    sae: SAE,
    truth: Float[Tensor, "n d"],
    x: Float[Tensor, "rows d"] | None = None,
    codes: Float[Tensor, "rows features"] | None = None,
) -> Recovery:
    """Compare a dictionary with the directions that its data was made of.

    Args:
        sae: the dictionary; for a signed one the sign of a row does not count.
        truth: the planted directions, of any norm.
        x, codes: rows and their true codes; with them also F1 of firing, fvu and l0 are measured.

    Raises:
        InputError: x without codes, or codes without x. FitError: sizes that do not fit. NotFiniteError: NaN or
            infinite directions or rows.
    """
    from scipy.optimize import linear_sum_assignment

    if truth.shape[1] != sae.d_out:
        raise FitError(f"the directions have width {truth.shape[1]}, this SAE writes width d_out={sae.d_out}.")
    if not torch.isfinite(truth).all():
        raise NotFiniteError("the planted directions hold NaN or infinite numbers.")
    if (x is None) != (codes is None):
        raise InputError("F1 needs both x and its true codes; give both or neither.")
    if codes is not None and (codes.shape[1] != len(truth) or x is None or len(codes) != len(x)):
        raise FitError(f"codes are {tuple(codes.shape)}; there are {len(truth)} directions and "
                       f"{0 if x is None else len(x)} rows.")
    normalize = torch.nn.functional.normalize
    cosines = normalize(truth.float(), dim=1) @ normalize(sae.W_dec.float(), dim=1).T
    cosines = cosines.abs() if sae.activation.signed else cosines
    rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(-cosines.cpu().numpy()))
    latent, matched = torch.full((len(truth),), -1), torch.zeros(len(truth))
    latent[rows], matched[rows] = columns, cosines.cpu()[rows, columns]
    found = Recovery(cosines.amax(1), latent, matched)
    return found if x is None or codes is None else _with_firing(found, sae, x, codes)


def _with_firing(found: Recovery, sae: SAE, x: Tensor, codes: Tensor) -> Recovery:
    """Add F1, fvu and l0, over rows in pieces."""
    both, ours, left, active = torch.zeros(len(found.latent)), torch.zeros(len(found.latent)), 0.0, 0
    kept = found.latent.clamp_min(0)
    for rows, true in zip(x.split(_ROWS), codes.split(_ROWS), strict=True):
        z = sae.encode(rows)
        fires = (to_dense(z) != 0)[:, kept]
        both += (fires & (true != 0)).sum(0)
        ours += fires.sum(0)
        left += float((sae(rows) - rows).double().square().sum())
        active += int(active_counts(z).sum())
    f1 = 2 * both / (ours + (codes != 0).sum(0)).clamp_min(1) * (found.latent >= 0)
    fvu = left / float((x - x.mean(0)).double().square().sum())
    return Recovery(found.cosine, found.latent, found.matched, f1, fvu, active / len(x))


@dataclass(frozen=True)
class RecoveryBench:
    """Dictionaries on planted data: a row a kind, a dictionary and a seed."""

    frame: "pandas.DataFrame"

    def to_frame(self) -> "pandas.DataFrame":
        """`kind, name, seed, cosine, f1, fvu, l0` (cosine: one to one, mean over directions)."""
        return self.frame

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, of: str = "f1") -> "matplotlib.axes.Axes":
        """Draw means over seeds with their spread: a group a kind, a point a dictionary. Returns the axes."""
        import matplotlib.pyplot as plt

        if of not in ("cosine", "f1", "fvu", "l0"):
            raise InputError(f"of={of!r} is unknown; valid: cosine, f1, fvu, l0.")
        kinds, names = (list(dict.fromkeys(self.frame[column])) for column in ("kind", "name"))
        ax = ax or plt.subplots(figsize=(1.2 + 1.5 * len(kinds), 3.5))[1]
        for i, name in enumerate(names):
            rows = self.frame[self.frame["name"] == name].groupby("kind")[of]
            low, mean, high = (getattr(rows, how)().reindex(kinds) for how in ("min", "mean", "max"))
            at = [j + 0.6 * (i - (len(names) - 1) / 2) / len(names) for j in range(len(kinds))]
            ax.errorbar(at, mean, yerr=[mean - low, high - mean], fmt="o", markersize=5, label=name, capsize=2)
        ax.set_xticks(range(len(kinds)), kinds)
        ax.set(ylabel={"cosine": "cosine with the truth", "f1": "F1 of firing"}.get(of, of))
        ax.legend(frameon=False, fontsize=8)
        return ax

    def _repr_html_(self) -> str:
        table = self.frame.groupby(["kind", "name"], sort=False)[["cosine", "f1", "fvu", "l0"]].mean()
        return table.to_html(float_format="{:.3f}".format)


def recovery_bench(
    dictionaries: Mapping[str, Mapping[str, Any]],
    kinds: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] = (0, 1),
    n_tokens: int = 200_000,
    progress: bool = True,
    **data: Any,
) -> RecoveryBench:
    """Train dictionaries on planted data of several kinds and measure what each recovers.

    Args:
        dictionaries: by name, settings as the `saes` of `train_sae` takes them; `d_sae` and `k` default to the number
            of planted directions and to the number of active ones. A `make` among them is called with the seed and
            gives the SAE to train: for parts that hold weights.
        kinds: of `datasets.planted`; None: all.
        seeds: of the data and of the initial weights.
        n_tokens: rows to train on; they come again if there are fewer.
        progress: show a progress bar.
        data: what `datasets.planted` takes: n, d, n_features, k.

    Raises:
        InputError: no dictionaries, an unknown kind, or settings that do not fit.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    from sparselens.datasets import KINDS, planted
    from sparselens.sae.train import train_sae

    if not dictionaries:
        raise InputError("give at least one dictionary: {'topk': {'architecture': 'topk'}}.")
    runs, found = [(kind, seed) for kind in kinds or KINDS for seed in seeds], []
    for kind, seed in tqdm(runs, desc="planted data", disable=not progress):
        truth = planted(kind, seed=seed, **data)
        shared = {"d_sae": len(truth.directions), "k": max(1, round(float((truth.codes != 0).sum(1).float().mean())))}
        made = {name: _settings(dict(own), shared, seed) for name, own in dictionaries.items()}
        saes, _ = train_sae(truth.x, saes=made, n_tokens=n_tokens, batch_size=512, progress=False, live=False)
        for name, sae in saes.items():
            r = recovery(sae, truth.directions, truth.x, truth.codes)
            f1 = None if r.f1 is None else float(r.f1.mean())
            found.append({"kind": kind, "name": name, "seed": seed, "cosine": float(r.matched.mean()), "f1": f1,
                          "fvu": r.fvu, "l0": r.l0})
    return RecoveryBench(pd.DataFrame(found))


def _settings(own: dict[str, Any], shared: dict[str, Any], seed: int) -> dict[str, Any]:
    if "make" in own:
        return {"sae": own.pop("make")(seed), **own}
    return shared | {"seed": seed} | own

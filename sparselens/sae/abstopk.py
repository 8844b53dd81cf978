"""AbsTopK: latents with a sign, so that one can stand for a whole axis (Zhu et al., 2025, arXiv 2510.00404).

The architectures are `abstopk` and `batch_abstopk`. Here is what tells whether latents use both sides, what each side
means, and which half-axes of a non-negative dictionary belong together.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import FitError, InputError
from sparselens.sae.latents import Latents, to_dense
from sparselens.sae.sae import SAE

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

_ROWS = 4096  # tokens encoded together
_BEFORE, _AFTER = 10, 4  # tokens of context shown around an example


@dataclass(frozen=True)
class Bidirectionality:
    """How often each latent is positive and negative.

    Attributes:
        n_pos, n_neg: `[d_sae]` numbers of tokens.
        tokens: tokens looked at.
        min_side: share of a latent's firings that its rarer side needs to count.
    """

    n_pos: Int[Tensor, " d_sae"]
    n_neg: Int[Tensor, " d_sae"]
    tokens: int
    min_side: float

    @property
    def balance(self) -> Float[Tensor, " d_sae"]:
        """Share of a latent's firings on its rarer side, 0 to 0.5; NaN for one that never fires."""
        return torch.minimum(self.n_pos, self.n_neg).double() / (self.n_pos + self.n_neg)

    @property
    def share(self) -> float:
        """Share of the latents that fire, which use both sides."""
        fires = (self.n_pos + self.n_neg) > 0
        return float((self.balance[fires] >= self.min_side).double().mean()) if fires.any() else float("nan")

    def to_frame(self) -> "pandas.DataFrame":
        """A row a latent."""
        import pandas as pd

        columns = {"n_pos": self.n_pos, "n_neg": self.n_neg, "balance": self.balance}
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        return frame.rename_axis("feature").reset_index()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw negative against positive firings, a point a latent, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(4.5, 4.5))[1]
        ax.scatter(self.n_pos.cpu() + 1, self.n_neg.cpu() + 1, s=6, alpha=0.5, color="#0072B2")
        ax.set(xscale="log", yscale="log", xlabel="tokens with a positive code + 1", ylabel="with a negative code + 1")
        return ax

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        fires = int(((self.n_pos + self.n_neg) > 0).sum())
        rows = [("tokens", self.tokens), ("latents that fire", fires), (f"both sides ≥ {self.min_side:g}", self.share)]
        return report_html("Use of both signs", rows)


@torch.no_grad()
def bidirectionality(
    sae: SAE, acts: Latents | Float[Tensor, "*batch width"], min_side: float = 0.05
) -> Bidirectionality:
    """Count positive and negative firings of every latent.

    Two sides need not be opposites: two unrelated directions may share a latent. See `poles`.

    Args:
        sae: the dictionary.
        acts: activations `[*batch, d_in]`, or `Latents` from `sae.encode`.
        min_side: share of a latent's firings that its rarer side needs to count.
    """
    if isinstance(acts, Latents):
        k = acts.values.shape[-1]
        codes: Any = [Latents(acts.values.reshape(-1, k), acts.indices.reshape(-1, k), acts.d_sae)]
    else:
        codes = (sae.encode(rows) for rows in acts.reshape(-1, acts.shape[-1]).split(_ROWS))
    pos, neg = torch.zeros(2, sae.d_sae, dtype=torch.int64)
    tokens = 0
    for z in codes:
        values, indices = (z, None) if isinstance(z, Tensor) else (z.values, z.indices)
        tokens += values.shape[0]
        for counts, side in ((pos, values > 0), (neg, values < 0)):
            found = side.sum(0) if indices is None else torch.bincount(indices[side], minlength=sae.d_sae)
            counts += found.cpu()
    return Bidirectionality(pos, neg, tokens, min_side)


@dataclass(frozen=True)
class Poles:
    """Where a latent is most positive and most negative.

    Attributes:
        feature: the latent.
        positive, negative: `(value, text before, token, text after)`, the strongest first.
    """

    feature: int
    positive: list[tuple[float, str, str, str]]
    negative: list[tuple[float, str, str, str]]

    def to_frame(self) -> "pandas.DataFrame":
        """A row an example, with its `pole` ("+" or "-")."""
        import pandas as pd

        rows = [("+", *row) for row in self.positive] + [("-", *row) for row in self.negative]
        return pd.DataFrame(rows, columns=["pole", "value", "before", "token", "after"])

    def _repr_html_(self) -> str:
        from sparselens.views.html import escape, fragment, number

        def column(name: str, rows: list[tuple[float, str, str, str]]) -> str:
            items = "".join(
                f"<li>{escape(before, 200)}<b>{escape(token, 40)}</b>{escape(after, 200)} ({number(value)})</li>"
                for value, before, token, after in rows
            )
            return f'<td style="vertical-align:top;text-align:left">{name}<ul>{items or "none"}</ul></td>'

        cells = column("positive", self.positive) + column("negative", self.negative)
        return fragment(f"<div>feature {self.feature}</div><table><tr>{cells}</tr></table>")


@torch.no_grad()
def poles(sae: SAE, m: Any, texts: Any, feature: int, n: int = 10, **reading: Any) -> Poles:
    """The tokens on which a latent is most positive and most negative, in their context.

    Only content tokens within the dictionary's range count, without the first of a row.

    Args:
        sae: the dictionary; its `site` must be a site of `m`.
        m: a live model.
        texts: what `m.stream` takes.
        feature: the latent.
        n: examples on each side, at most.
        reading: passed on to `m.stream`.

    Raises:
        FitError: the SAE names no site. InputError: no such latent.
    """
    if sae.site is None:
        raise FitError("this SAE does not name its site; set sae.metadata['hook_name'].")
    if not 0 <= feature < sae.d_sae:
        raise InputError(f"feature {feature} does not exist: this SAE has features 0 to {sae.d_sae - 1}.")
    site = m.resolve(sae.site)
    found: dict[int, list[tuple[float, str, str, str]]] = {1: [], -1: []}
    for batch in m.stream(texts, site, **reading):
        x = batch[site].float()
        kept = batch.content.to(x.device) & ~batch.first.to(x.device) & sae.applies(x)
        values = torch.where(kept, to_dense(sae.encode(x))[:, feature], 0.0).cpu()
        for sign, rows in found.items():
            top = (sign * values).topk(min(n, len(values)))
            rows += [
                (float(values[i]), *_around(m, batch, i)) for i in top.indices.tolist() if sign * float(values[i]) > 0
            ]
            rows.sort(key=lambda row: -abs(row[0]))
            del rows[n:]
    return Poles(feature, found[1], found[-1])


def _around(m: Any, batch: Any, i: int) -> tuple[str, str, str]:
    """Text before, token, text after, from the same document."""
    same = (batch.doc == batch.doc[i]).tolist()
    first, last = max(0, i - _BEFORE), min(len(same) - 1, i + _AFTER)
    before = batch.token[[j for j in range(first, i) if same[j]]]
    after = batch.token[[j for j in range(i + 1, last + 1) if same[j]]]
    decode = m.tokenizer.decode
    return decode(before.tolist()), decode([int(batch.token[i])]), decode(after.tolist())


@dataclass(frozen=True)
class Twins:
    """Pairs of latents whose decoder rows point in opposite directions: `first < second`, `cosine`, all `[n_pairs]`."""

    first: Int[Tensor, " n_pairs"]
    second: Int[Tensor, " n_pairs"]
    cosine: Float[Tensor, " n_pairs"]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a pair, the most opposite first."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name).cpu().numpy() for name in ("first", "second", "cosine")})

    def _repr_html_(self) -> str:
        return f"<p>{len(self.first)} pairs</p>{self.to_frame().head(20).to_html(index=False)}"


@torch.no_grad()
def pair_twins(sae: SAE, cos: float = -0.8) -> Twins:
    """Find axes that a non-negative dictionary has split into two half-axes: decoder rows with a cosine below `cos`.

    Raises:
        InputError: `cos` is not negative.
    """
    if not -1 <= cos < 0:
        raise InputError(f"twins have a negative cosine; cos={cos} is not between -1 and 0.")
    rows = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    found = []
    for start in range(0, len(rows), 2048):
        products = rows[start : start + 2048] @ rows.T
        i, j = (products <= cos).nonzero(as_tuple=True)
        found.append(torch.stack([i + start, j, products[i, j]]).double()[:, j > i + start])
    pairs = torch.cat(found, dim=1)
    pairs = pairs[:, pairs[2].argsort()]
    return Twins(pairs[0].long(), pairs[1].long(), pairs[2].float())

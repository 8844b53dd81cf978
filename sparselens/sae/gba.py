"""Group bias adaptation: no sparsity penalty and no k, but a target frequency for each latent (Chen et al., 2025).

arXiv 2506.14002. The constants are as reported by others; the official code could not be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError, closest
from sparselens.sae import parallel
from sparselens.sae.latents import to_dense
from sparselens.sae.rules import Rule, Step
from sparselens.sae.sae import SAE

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.trainer import SAETrainer

STARTS = ("quantile", "zero")


@dataclass(frozen=True)
class BiasAdaptation(Rule):
    """Moves the threshold of each latent until it fires no more often than its target.

    For `jumprelu` (the threshold moves; codes are not shrunk by it) and `relu` (the bias moves). It takes the place of
    the architecture's own penalty: how many latents are active follows from the targets.

    Args:
        groups: number of groups of latents, with targets that fall geometrically.
        htf, ltf: target frequency of the first and of the last group. They are ceilings.
        gamma: how fast a threshold rises when its latent fires too often, and falls when it is dead, as shares of
            peaks above the threshold.
        every: steps between two adaptations.
        eps: frequency below which a latent counts as dead.
        start_at: "quantile" starts each threshold where its latent fires at its target on the sample; "zero" at 0.
        highest: highest threshold, in units of the median norm of the centred inputs.
    """

    groups: int = 10
    htf: float = 0.1
    ltf: float = 1e-3
    gamma: tuple[float, float] = (0.01, 0.01)
    every: int = 50
    eps: float = 1e-6
    start_at: str = "quantile"
    highest: float = 1.0

    alone = True

    def __post_init__(self) -> None:
        if self.start_at not in STARTS:
            raise InputError(
                f"start_at={self.start_at!r} is unknown; valid: {', '.join(STARTS)}.{closest(self.start_at, STARTS)}"
            )
        if not 0 < self.ltf <= self.htf < 1:
            raise InputError(f"target frequencies fall from htf to ltf, both between 0 and 1: {self.htf}, {self.ltf}.")

    def targets(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """The target frequency of every latent."""
        if not 1 <= self.groups <= d_sae:
            raise InputError(f"{d_sae} latents cannot be put in {self.groups} groups.")
        if self.groups == 1:
            return torch.full((d_sae,), self.htf)
        levels = torch.logspace(math.log10(self.htf), math.log10(self.ltf), self.groups)
        return levels[self.group_of(d_sae)]

    def group_of(self, d_sae: int) -> Tensor:
        """Number of the group of every latent, `[d_sae]`; the groups' sizes differ by one at most."""
        return torch.arange(d_sae) * self.groups // d_sae

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        model, part = t.model, t.model.activation
        if part.name not in ("relu", "jumprelu"):
            raise InputError(f"biases are adapted of relu and jumprelu SAEs, not of {part.name}.")
        assert model.b_enc is not None
        for parameter in (model.b_enc, *part.parameters()):
            parameter.requires_grad_(False)
        centred = model.centred(x)
        t.remember("targets", self.targets(model.d_sae).to(x.device))
        t.remember("top", self.highest * centred.norm(dim=1).median().detach())
        t.remember("fires", torch.zeros(model.d_sae, device=x.device))
        t.remember("peaks", torch.full((model.d_sae,), -torch.inf, device=x.device))
        t.remember("tokens", torch.zeros((), device=x.device))
        if self.start_at == "quantile":
            with torch.no_grad():
                pre, targets = model.linear(centred), t.extra["targets"]
                rank = (targets * len(pre)).round().long().clamp(1, len(pre) - 1)
                level = pre.sort(dim=0, descending=True).values.gather(0, rank[None])[0]
                self._set(t, level if part.name == "jumprelu" else self._threshold(t) + level)

    def codes(self, t: "SAETrainer", s: Step) -> Tensor:
        y = s.pre if s.model.activation.name == "relu" else s.pre - self._threshold(t)
        seen = y.detach().float()
        t.extra["fires"] += (seen > 0).sum(0)
        t.extra["tokens"] += len(seen)
        torch.maximum(t.extra["peaks"], seen.amax(0), out=t.extra["peaks"])
        return y.relu() if s.model.activation.name == "relu" else s.pre * (y > 0)

    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        if (s.number + 1) % self.every:
            return
        extra = t.extra
        fires, tokens = parallel.sum_(extra["fires"].clone()), parallel.sum_(extra["tokens"].clone())
        peaks = parallel.max_(extra["peaks"].clone()).clamp_min(0)
        self._set(t, self._threshold(t) + self.change(fires / tokens, peaks, extra["targets"]))
        extra["fires"].zero_()
        extra["tokens"].zero_()
        extra["peaks"].fill_(-torch.inf)

    def change(self, frequency: Tensor, peaks: Tensor, targets: Tensor) -> Tensor:
        """What is added to each threshold: up by a share of its peak where a latent fires too often, down by a share
        of the mean peak of its group where it is dead; `[d_sae]` each."""
        group = self.group_of(len(peaks)).to(peaks.device)
        alive = (peaks > 0).to(peaks.dtype)
        zeros = torch.zeros(self.groups, device=peaks.device)
        mean_peak = zeros.index_add(0, group, peaks) / zeros.index_add(0, group, alive).clamp_min(1)
        up = self.gamma[0] * peaks * (frequency > targets)
        return up - self.gamma[1] * mean_peak[group] * (frequency < self.eps)

    def _threshold(self, t: "SAETrainer") -> Tensor:
        part: Any = t.model.activation
        return -t.model.b_enc.detach() if part.name == "relu" else part.threshold.detach()  # type: ignore[union-attr]

    @torch.no_grad()
    def _set(self, t: "SAETrainer", threshold: Tensor) -> None:
        kept = torch.minimum(threshold.clamp_min(0), t.extra["top"])
        part: Any = t.model.activation
        if part.name == "relu":
            t.model.b_enc.copy_(-kept)  # type: ignore[union-attr]
        else:
            part.threshold.copy_(kept)


@dataclass(frozen=True)
class SeedConsistency:
    """Which latents come back in other runs.

    Attributes:
        similarity: `[d_sae]` for each latent of the first SAE, the largest cosine with a latent of another one; the
            smallest over the others.
        chosen: `[d_sae]` the latents that count: those with the largest activations.
        share: of the chosen ones, those with a similarity above `above`.
        above: the limit.
    """

    similarity: Float[Tensor, " d_sae"]
    chosen: Tensor
    share: float
    above: float

    def to_frame(self) -> "pandas.DataFrame":
        """A row a latent of the first SAE."""
        import pandas as pd

        columns = {"similarity": self.similarity.cpu().numpy(), "chosen": self.chosen.cpu().numpy()}
        return pd.DataFrame(columns).rename_axis("feature").reset_index()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the distribution of similarities, all and chosen, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 3.2))[1]
        for values, name in ((self.similarity, "all"), (self.similarity[self.chosen], "chosen")):
            ax.hist(values.cpu(), bins=40, range=(0, 1), density=True, histtype="step", label=name)
        ax.set(xlabel="largest cosine with a latent of another run", ylabel="density")
        ax.legend(frameon=False, fontsize=9)
        return ax

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows = [("latents looked at", int(self.chosen.sum())), (f"share above {self.above:g}", self.share)]
        return report_html("Latents that come back", rows)


@torch.no_grad()
def seed_consistency(
    saes: Sequence[SAE], acts: Float[Tensor, "n d_in"], alpha: float = 0.05, above: float = 0.9
) -> SeedConsistency:
    """Compare the dictionaries of several runs that differ in their seed.

    Args:
        saes: two or more, of one width.
        acts: activations to rank the latents of the first by.
        alpha: share of the latents that count: those with the largest activation.
        above: cosine from which a latent has come back.

    Raises:
        InputError: fewer than two SAEs, or of different widths.
    """
    if len(saes) < 2 or len({sae.d_out for sae in saes}) > 1:
        raise InputError("give two or more SAEs that write the same width.")
    first, *others = (torch.nn.functional.normalize(sae.W_dec.float(), dim=1) for sae in saes)
    signed = saes[0].activation.signed
    best = [torch.cat([_largest(rows @ other.T, signed) for rows in first.split(2048)]) for other in others]
    similarity = torch.stack(best).amin(0)
    peaks = torch.stack([to_dense(saes[0].encode(rows)).abs().amax(0) for rows in acts.split(4096)]).amax(0)
    chosen = torch.zeros(len(first), dtype=torch.bool)
    chosen[peaks.topk(max(1, round(alpha * len(first)))).indices.cpu()] = True
    share = float((similarity.cpu()[chosen] > above).double().mean())
    return SeedConsistency(similarity, chosen, share, above)


def _largest(cosines: Tensor, signed: bool) -> Tensor:
    return (cosines.abs() if signed else cosines).amax(1)

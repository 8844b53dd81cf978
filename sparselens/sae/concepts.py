"""Features against linear probes of a concept, and concept directions against probe weights (Liu et al., 2025).

arXiv 2503.08980: the last representation of a next-token model is, up to a linear map, the log-posterior of discrete
concepts. A probe's logit then estimates the log-odds of a concept, and the best that a latent can do is to follow it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.errors import FitError, InputError
from sparselens.sae.latents import to_dense

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.sae import SAE

_LOG_FLOOR = 1e-3  # of a latent's largest value, added before the logarithm
_ROWS = 4096  # tokens encoded together


@dataclass(frozen=True)
class ProbeAgreement:
    """How closely one latent of each dictionary follows the logit of a linear probe.

    All are absolute Pearson correlations on rows that neither the probe nor the choice of the latent saw.

    Attributes:
        scores: columns `dictionary, concept, latent, score, score_log`; the last with the logarithm of the codes,
            which is what should be linear in a log-posterior.
        bound: by concept, of a second probe trained on the rows that latents are chosen on.
        chance: by concept, of the best of as many random directions, cut off at zero, chosen the same way.
    """

    scores: "pandas.DataFrame"
    bound: dict[str, float]
    chance: dict[str, float]

    def to_frame(self) -> "pandas.DataFrame":
        """The scores, with the bound and chance of their concept."""
        return self.scores.assign(bound=self.scores["concept"].map(self.bound),
                                  chance=self.scores["concept"].map(self.chance))  # fmt: skip

    @property
    def means(self) -> "pandas.DataFrame":
        """Means over concepts, a row a dictionary."""
        columns = ["score", "score_log", "bound", "chance"]
        return self.to_frame().groupby("dictionary", sort=False)[columns].mean()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw a dot a dictionary and concept, with bound and chance as lines, and return the axes."""
        import matplotlib.pyplot as plt

        names = list(self.bound)
        ax = ax or plt.subplots(figsize=(max(5.0, 0.7 * len(names)), 3.4))[1]
        for values, label, style in ((self.bound, "a second probe", "-"), (self.chance, "random directions", ":")):
            ax.step(range(len(names)), [values[n] for n in names], style, where="mid", color="#555555", label=label)
        for name, part in self.scores.groupby("dictionary", sort=False):
            ax.plot([names.index(c) for c in part["concept"]], part["score"], "o", alpha=0.8, label=str(name))
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set(ylabel="correlation with the probe", ylim=(0, 1.02))
        ax.legend(frameon=False, fontsize=8)
        return ax

    def _repr_html_(self) -> str:
        return self.means.to_html(float_format="{:.3f}".format)


def probe_agreement(
    dictionaries: "Mapping[str, SAE | Float[Tensor, 'n latents']]",
    acts: Float[Tensor, "n d"],
    labels: Bool[Tensor, "rows n_concepts"],
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> ProbeAgreement:
    """Compare latents with linear probes of known concepts.

    The rows are shuffled into thirds: probes are trained on the first, the latent of each concept is chosen on the
    second, scores are taken on the last.

    Args:
        dictionaries: by name, SAEs that read `acts`, or codes made already.
        acts: representations.
        labels: whether each concept holds; as many rows as `acts`.
        names: of the concepts.
        seed: of the thirds and of the random directions.

    Raises:
        InputError: a concept that holds for fewer than two rows of a third, or for all but one.
        FitError: codes or labels of another number of rows.
    """
    import pandas as pd

    concepts = [str(name) for name in (names or range(labels.shape[1]))]
    if len(labels) != len(acts) or len(concepts) != labels.shape[1]:
        raise FitError(f"{len(acts)} rows of activations, labels {tuple(labels.shape)}, {len(concepts)} names.")
    generator = torch.Generator().manual_seed(seed)
    train, choose, report = torch.randperm(len(acts), generator=generator).chunk(3)
    x = acts.float().cpu()
    logits, bound = [], {}
    for i, name in enumerate(concepts):
        first, second = (probe_logit(x, labels[:, i].cpu(), rows, name) for rows in (train, choose))
        logits.append(first)
        bound[name] = float(correlations(second[report, None], first[report, None]).abs())
    logit = torch.stack(logits, 1)
    sizes, found = [], []
    for name, given in dictionaries.items():
        codes = _codes(given, acts)
        if len(codes) != len(acts):
            raise FitError(f"{name}: codes of {len(codes)} rows for {len(acts)} rows of activations.")
        sizes.append(codes.shape[1])
        plain, logged = (_follow(c, logit, choose, report) for c in (codes, _logged(codes)))
        for i, concept in enumerate(concepts):
            found.append((name, concept, int(plain.latent[i]), float(plain.score[i]), float(logged.score[i])))
    directions = torch.randn(x.shape[1], max(sizes, default=1), generator=generator)
    random = _follow(((x - x.mean(0)) @ directions).relu(), logit, choose, report)
    chance = {name: float(random.score[i]) for i, name in enumerate(concepts)}
    columns = ["dictionary", "concept", "latent", "score", "score_log"]
    return ProbeAgreement(pd.DataFrame(found, columns=columns), bound, chance)


def probe_logit(x: Float[Tensor, "n d"], label: Bool[Tensor, " n"], rows: Tensor, name: str) -> Float[Tensor, " n"]:
    """Logit of a logistic regression that is trained on some rows, for all of them."""
    weights, bias = _logistic(x[rows], label[rows], name)
    return x @ weights + bias


def _logistic(x: Tensor, label: Tensor, name: str) -> tuple[Tensor, float]:
    """Weights and bias of a logistic regression on standardised columns (C = 1), for columns as they are."""
    from sklearn.linear_model import LogisticRegression

    holds = int(label.sum())
    if min(holds, len(label) - holds) < 2:
        raise InputError(f"concept {name} holds for {holds} of {len(label)} rows; a probe needs two of either kind.")
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-8)
    probe = LogisticRegression(max_iter=1000).fit(((x - mean) / deviation).numpy(), label.numpy())
    weights = torch.from_numpy(probe.coef_[0]).float() / deviation
    return weights, float(probe.intercept_[0]) - float(mean @ weights)


class _Followed(NamedTuple):
    """For each concept the latent chosen, and its correlation on other rows."""

    latent: Tensor
    score: Tensor


def _follow(codes: Tensor, logit: Tensor, choose: Tensor, report: Tensor) -> _Followed:
    latent = correlations(codes[choose], logit[choose]).abs().argmax(0)
    score = correlations(codes[report][:, latent], logit[report]).abs().diagonal()
    return _Followed(latent, score)


def correlations(a: Float[Tensor, "n m"], b: Float[Tensor, "n q"]) -> Float[Tensor, "m q"]:
    """Pearson correlations of columns; 0 for a column that does not vary."""
    a, b = (part.double() - part.double().mean(0) for part in (a, b))
    norms = a.norm(dim=0)[:, None] * b.norm(dim=0)
    return torch.where(norms > 0, (a.T @ b) / norms.clamp_min(1e-300), 0.0).float()


def _logged(codes: Tensor) -> Tensor:
    """`log(|z| + floor)` with the sign of z; the floor is a small share of each latent's largest value."""
    floor = (_LOG_FLOOR * codes.abs().amax(0)).clamp_min(1e-12)
    return codes.sign() * ((codes.abs() + floor) / floor).log()


@torch.no_grad()
def _codes(given: Any, acts: Tensor) -> Tensor:
    """Dense codes on the CPU."""
    if isinstance(given, Tensor):
        return given.float().cpu()
    return torch.cat([to_dense(given.encode(rows)).float().cpu() for rows in acts.split(_ROWS)])


@dataclass(frozen=True)
class ConceptAlignment:
    """Probe weights of each concept times the direction in which it moves representations.

    Attributes:
        names: of the concepts.
        matrix: `W @ A`, unit rows of W and unit columns of A from different pairs. The theory says: the identity.
        null: diagonals with the labels of each pair drawn at random, `[draws, n_concepts]`.
    """

    names: list[str]
    matrix: Float[Tensor, "n_concepts n_concepts"]
    null: Float[Tensor, "draws n_concepts"]

    @property
    def diagonal(self) -> float:
        """Mean of the diagonal."""
        return float(self.matrix.diagonal().mean())

    @property
    def off_diagonal(self) -> float:
        """Mean size of the other entries; NaN for a single concept."""
        return float(self.matrix[~torch.eye(len(self.names), dtype=torch.bool)].abs().mean())

    @property
    def gap(self) -> float:
        """How far the mean diagonal lies above what random labels give."""
        return self.diagonal - float(self.null.mean())

    def to_frame(self) -> "pandas.DataFrame":
        """The matrix: a row a probe, a column a direction."""
        import pandas as pd

        return pd.DataFrame(self.matrix.numpy(), index=self.names, columns=self.names)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the matrix as a heat map and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(4.6, 4.2))[1]
        image = ax.imshow(self.matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_xticks(range(len(self.names)), self.names, rotation=45, ha="right")
        ax.set_yticks(range(len(self.names)), self.names)
        ax.set(xlabel="direction", ylabel="probe")
        ax.figure.colorbar(image, ax=ax, shrink=0.8)
        return ax

    def _repr_html_(self) -> str:
        null = float(self.null.mean())
        said = f"diagonal {self.diagonal:.2f}, with random labels {null:.2f}, other entries {self.off_diagonal:.2f}"
        return f"<p>{said}</p>{self.to_frame().to_html(float_format='{:.2f}'.format)}"


def concept_alignment(
    pairs: Mapping[str, tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]], draws: int = 5, seed: int = 0
) -> ConceptAlignment:
    """Compare probe weights with mean differences of counterfactual pairs.

    Half of the pairs of a concept train its probe, the other half give its direction.

    Args:
        pairs: by concept, representations without and with it that differ in nothing else; see `read_pairs`.
        draws: of random labels (which of a pair has the concept).
        seed: of halves and labels.

    Raises:
        InputError: fewer than four pairs of a concept.
    """
    generator = torch.Generator().manual_seed(seed)
    directions, weights, null = [], [], []
    for name, (without, having) in pairs.items():
        if len(without) != len(having) or len(without) < 4:
            raise InputError(f"{name}: {len(without)} and {len(having)} representations; give four pairs at least.")
        one, two = torch.randperm(len(without), generator=generator).chunk(2)
        a, b = without.float(), having.float()
        directions.append(torch.nn.functional.normalize((b[two] - a[two]).mean(0), dim=0))
        weights.append(_pair_probe(a[one], b[one], name))
        flips = torch.rand(draws, len(one), generator=generator) < 0.5
        drawn = [(torch.where(f[:, None], b[one], a[one]), torch.where(f[:, None], a[one], b[one])) for f in flips]
        null.append(torch.stack([_pair_probe(*pair, name) @ directions[-1] for pair in drawn]))
    return ConceptAlignment(list(pairs), torch.stack(weights) @ torch.stack(directions, 1), torch.stack(null, 1))


def _pair_probe(without: Tensor, having: Tensor, name: str) -> Tensor:
    """Unit weights of a logistic regression on representations as they are, scaled as a whole (C = 1)."""
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([without, having])
    x = (x - x.mean(0)) / x.std().clamp_min(1e-12)
    label = np.repeat([0, 1], [len(without), len(having)])
    probe = LogisticRegression(max_iter=1000).fit(x.numpy(), label)
    return torch.nn.functional.normalize(torch.from_numpy(probe.coef_[0]).float(), dim=0)


def read_pairs(
    m: Any, pairs: Mapping[str, Sequence[tuple[str, str]]], site: str = "ln_final.hook_out"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Representations of counterfactual texts at their last token, for `concept_alignment`.

    The theory is about what multiplies the unembedding, the final norm's output.

    Args:
        m: a live model.
        pairs: by concept, texts without and with it, e.g. `{"plural": [(" cat", " cats"), ...]}`.
        site: where to read.
    """
    name = m.resolve(site)
    out = {}
    for concept, texts in pairs.items():
        sides = []
        for side in zip(*texts, strict=True):
            captured = m.capture(list(side), name, padding_side="left")
            sides.append(captured[name][:, -1].float().cpu())
        out[concept] = (sides[0], sides[1])
    return out


class PosteriorLinearity(NamedTuple):
    """Share of variance (R^2, on held-out rows) of the log-posterior and of the posterior that is linear in f."""

    r2_log: float
    r2_prob: float


def posterior_linearity(
    f: Float[Tensor, "n d"], log_posterior: Float[Tensor, "n states"], seed: int = 0
) -> PosteriorLinearity:
    """Whether representations are linear in the log-posterior of concept states, or in the posterior itself.

    Args:
        f: representations of n contexts.
        log_posterior: `log p(c | x)`; it is clamped at log(1e-12) and centred over the states.
        seed: of the halves: least squares on one, R^2 on the other.
    """
    logs = log_posterior.double().clamp_min(float(np.log(1e-12)))
    train, test = torch.randperm(len(f), generator=torch.Generator().manual_seed(seed)).chunk(2)
    x = torch.cat([f.double(), torch.ones(len(f), 1, dtype=torch.float64)], dim=1)
    scores = []
    for target in (logs - logs.mean(1, keepdim=True), logs.exp()):
        fitted = x[test] @ torch.linalg.lstsq(x[train], target[train], driver="gelsd").solution
        spread = (target[test] - target[test].mean(0)).square().sum()
        scores.append(1 - float((target[test] - fitted).square().sum() / spread))
    return PosteriorLinearity(*scores)

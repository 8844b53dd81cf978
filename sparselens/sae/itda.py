"""ITDA: a dictionary of real activations, built in one pass without gradients (Leask et al., 2025, arXiv 2505.17769).

A token that the dictionary reconstructs badly becomes an atom of it. Each atom is then a place in a text, "this token
of that text", and dictionaries of two models that read the same texts can be compared as sets of places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from sparselens.errors import FitError, InputError, NotFiniteError, closest
from sparselens.sae.mp import MatchingPursuit, pursue

if TYPE_CHECKING:
    import pandas

    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

SAME = 0.999  # cosine above which two tokens of a batch are one atom
CONTEXT = 12  # tokens before an atom that are kept to show where it is from
METRICS = ("cka", "svcca", "linreg", "relative")


class Atoms(MatchingPursuit):
    """Signed matching pursuit over atoms that are tokens of texts.

    Args:
        k: most steps a token.
        n: number of atoms.
        tol: a token stops when less than this share of its norm is left.

    Attributes:
        labels: `[n, 2]` int64: document and position of every atom.
    """

    name = "itda"
    signed = True
    labels: Tensor

    def __init__(self, k: int, n: int, tol: float = 0.0) -> None:
        super().__init__(k, tol)
        self.options = {"k": int(k), "n": int(n), "tol": float(tol)}
        self.register_buffer("labels", torch.full((n, 2), -1, dtype=torch.int64))

    @classmethod
    def make(cls, d_sae: int, k: int | float | None) -> "Atoms":
        assert k is not None
        return cls(int(k), d_sae)


class _Rows(NamedTuple):
    """Activations `[n, d]`, where they come from `[n, 2]`, and the token ids of their batch with their places in it."""

    x: Tensor
    labels: Tensor
    ids: Tensor | None = None
    at: Tensor | None = None


@torch.no_grad()
def build_itda(
    source: "LiveModel | Float[Tensor, 'n d']",
    texts: Any = None,
    *,
    site: str | None = None,
    k: int = 40,
    min_cosine: float = 0.85,
    max_atoms: int | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> "SAE":
    """Build a dictionary of real activations in one pass.

    The first d distinct rows are taken as they come, the most frequent of a batch first. From then on a row is added
    if the cosine between it and its reconstruction from k atoms is below `min_cosine`; near-copies within a batch are
    added once. (The paper's threshold on the mean squared difference of the normalised vectors is
    `tau = (2 - 2 min_cosine) / d`.) The first token of a text, an attention sink, is left out. Nothing is centred.

    Args:
        source: a live model, or activations.
        texts: with a model, what it reads, in an order that is part of the result.
        site: with a model, where.
        k: atoms a token is made of.
        min_cosine: how good is good enough: more atoms the nearer to 1.
        max_atoms: stop at so many; None for no end.
        batch_tokens: rows that are judged by the same dictionary.
        progress: show a bar.

    Returns:
        An SAE of the architecture "itda": unit rows, no bias, signed codes by matching pursuit. `atom_table(sae)` says
        where its atoms are from.

    Raises:
        InputError: an argument out of range, or a model without texts and site. NotFiniteError: NaN or infinite rows.
    """
    from sparselens.sae.sae import SAE  # its table of architectures imports this module

    if not -1 < min_cosine < 1 or k < 1 or (max_atoms is not None and max_atoms < 1):
        raise InputError(f"min_cosine={min_cosine}, k={k}, max_atoms={max_atoms}: a cosine is below 1, the others not.")
    if isinstance(source, Tensor):
        rows, name = _of_tensor(source, batch_tokens), None
    else:
        rows, name = _of_model(source, texts, site, batch_tokens), source.name
    atoms, labels, notes = torch.empty(0, 0), torch.empty(0, 2, dtype=torch.int64), []
    for batch in tqdm(rows, desc="atoms", unit="batch", disable=not progress):
        if not torch.isfinite(batch.x).all():
            raise NotFiniteError("the activations hold NaN or infinite numbers.")
        unit = functional.normalize(batch.x.float(), dim=1)
        atoms = atoms if len(atoms) else unit.new_empty(0, unit.shape[1])
        seeds = _seeds(unit, unit.shape[1] - len(atoms)) if len(atoms) < unit.shape[1] else torch.empty(0).long()
        known = torch.cat([atoms, unit[seeds]])
        new = torch.cat([seeds, _badly_made(unit, known, k, min_cosine)]) if len(known) >= unit.shape[1] else seeds
        new = new[: None if max_atoms is None else max_atoms - len(atoms)]
        atoms, labels = torch.cat([atoms, unit[new]]), torch.cat([labels, batch.labels[new]])
        notes += _contexts(batch, new, source)
        if max_atoms is not None and len(atoms) >= max_atoms:
            break
    if not len(atoms):
        raise InputError("there were no activations to build from.")
    site = site if isinstance(source, Tensor) else source.resolve(site)
    part = Atoms(min(k, len(atoms)), len(atoms))
    sae = SAE(part, d_in=atoms.shape[1], d_sae=len(atoms), site=site, model_name=name, seed=None,
              metadata={"atoms": notes} if notes else {})
    sae.W_dec.data, sae.b_dec.data = atoms, torch.zeros(atoms.shape[1])
    part.labels = labels
    return sae.requires_grad_(False)


def _of_tensor(x: Tensor, batch_tokens: int) -> Iterator[_Rows]:
    for start in range(0, len(x), batch_tokens):
        part = x[start : start + batch_tokens]
        at = torch.arange(start, start + len(part))
        yield _Rows(part, torch.stack([at, torch.zeros_like(at)], 1))


def _of_model(m: "LiveModel", texts: Any, site: str | None, batch_tokens: int) -> Iterator[_Rows]:
    if texts is None or site is None:
        raise InputError("with a live model give texts and a site, such as site='blocks.8.hook_resid_post'.")
    site = m.resolve(site)
    for batch in m.stream(texts, site, batch_tokens=batch_tokens):
        at = (~batch.first).nonzero().flatten()
        labels = torch.stack([batch.doc[at], batch.position[at]], 1).cpu()
        yield _Rows(batch[site][at].float().cpu(), labels, batch.token.cpu(), at.cpu())


def _seeds(unit: Tensor, missing: int) -> Tensor:
    """The rows of a batch that are taken unseen: distinct ones, the most frequent first."""
    _, inverse, counts = torch.unique(unit, dim=0, return_inverse=True, return_counts=True)
    first = torch.full((len(counts),), len(unit)).scatter_reduce(0, inverse, torch.arange(len(unit)), "amin")
    order = sorted(range(len(counts)), key=lambda i: (-int(counts[i]), int(first[i])))
    return first[order[:missing]]


def _badly_made(unit: Tensor, atoms: Tensor, k: int, min_cosine: float) -> Tensor:
    """Rows whose reconstruction points elsewhere, without near-copies of one another."""
    found = pursue(unit, atoms, k, 0.0, atoms @ atoms.T, signed=True)
    made = functional.embedding_bag(found.indices, atoms, mode="sum", per_sample_weights=found.values)
    bad = (functional.cosine_similarity(made, unit, dim=1) < min_cosine).nonzero().flatten()
    same = (unit[bad] @ unit[bad].T > SAME).tril(-1)
    kept = torch.ones(len(bad), dtype=torch.bool)
    for i in same.any(1).nonzero().flatten().tolist():
        kept[i] = not bool((same[i] & kept).any())
    return bad[kept]


def _contexts(batch: _Rows, new: Tensor, source: Any) -> list[list[str]]:
    """What stands before each new atom, and its own token, as text."""
    if batch.ids is None or batch.at is None:
        return []
    notes = []
    for row in new.tolist():
        at, position = int(batch.at[row]), int(batch.labels[row, 1])
        ids = batch.ids[max(at - min(position, CONTEXT), 0) : at + 1].tolist()
        notes.append([source.tokenizer.decode(ids[:-1]), source.tokenizer.decode(ids[-1:])])
    return notes


def atom_table(sae: "SAE") -> "pandas.DataFrame":
    """Where the atoms of an ITDA are from: `atom, document, position`, and `context, token` if it was built on texts.

    Raises:
        InputError: another kind of SAE.
    """
    import pandas as pd

    labels = _labels(sae)
    frame = pd.DataFrame({"atom": range(len(labels)), "document": labels[:, 0], "position": labels[:, 1]})
    notes = sae.metadata.get("atoms")
    return frame if notes is None else frame.assign(context=[n[0] for n in notes], token=[n[1] for n in notes])


def jaccard(a: "SAE", b: "SAE") -> float:
    """Share of the places of two ITDAs that both have (eq. 8). They must have read the same texts in the same order."""
    mine, theirs = ({tuple(row) for row in _labels(sae).tolist()} for sae in (a, b))
    return len(mine & theirs) / len(mine | theirs)


def _labels(sae: "SAE") -> Int[Tensor, "n 2"]:
    if not isinstance(sae.activation, Atoms):
        raise InputError(f"only an ITDA has atoms with a place; this is a {sae.architecture} SAE.")
    return sae.activation.labels


@dataclass(frozen=True)
class Match:
    """Which layer of one model is most like which of another.

    Attributes:
        similarity: `[layers, layers]`.
        accuracy: share of rows whose largest entry is on the diagonal.
    """

    similarity: Float[Tensor, "a b"]

    @property
    def accuracy(self) -> float:
        right = self.similarity.argmax(1) == torch.arange(len(self.similarity))
        return float(right.double().mean())

    def to_frame(self) -> "pandas.DataFrame":
        """The similarities as a table."""
        import pandas as pd

        return pd.DataFrame(self.similarity.numpy())

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(float_format="{:.3f}".format)


def match_layers(a: "list[SAE]", b: "list[SAE]") -> Match:
    """Jaccard similarity of every ITDA of one model with every one of another, layers in order."""
    return Match(torch.tensor([[jaccard(x, y) for y in b] for x in a]))


@torch.no_grad()
def representation_similarity(
    x: Float[Tensor, "n d_x"], y: Float[Tensor, "m d_y"], metric: str = "cka", seed: int = 0
) -> float:
    """How alike two representations of the same tokens are, by what was used before.

    Args:
        x, y: activations, row for row.
        metric: "cka" (linear), "svcca" (mean correlation of 20 components), "linreg" (R2 of y from x), or "relative"
            (cosine of the cosines with 300 anchors).
        seed: of the anchors.

    Raises:
        InputError: an unknown metric. FitError: different numbers of rows.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is unknown; valid: {', '.join(METRICS)}.{closest(metric, METRICS)}")
    if len(x) != len(y):
        raise FitError(f"there are {len(x)} rows on one side and {len(y)} on the other; they must be the same tokens.")
    if metric == "relative":
        anchors = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:300]
        sides = [functional.normalize(side, dim=1) for side in (x, y)]
        one, other = (s @ s[anchors].T for s in sides)
        return float(functional.cosine_similarity(one, other, dim=1).mean())
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    if metric == "cka":
        return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))
    if metric == "linreg":
        left = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
        return float(1 - left.square().sum() / y.square().sum())
    u, v = (torch.linalg.svd(side, full_matrices=False).U[:, :20] for side in (x, y))
    return float(torch.linalg.svdvals(u.T @ v).mean())

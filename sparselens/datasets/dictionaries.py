"""Activations that are made of known directions, for a dictionary to find."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError, closest

KINDS = ("independent", "correlated", "hierarchical", "bidirectional", "compositional")
_GROUP = 4  # features of a group: neighbours that fire together, or a parent and its children


def sparse_mixture(n: int, d: int, n_features: int, k: int, seed: int = 0) -> tuple[
    Float[Tensor, "n d"], Float[Tensor, "n_features d"], Float[Tensor, "n n_features"]
]:
    """Vectors that are sums of a few directions of a known dictionary, for a sparse autoencoder to recover.

    Each row adds `k` different directions, drawn evenly, with strengths drawn evenly from 0.5 to 1.5.

    Args:
        n: number of vectors.
        d: their size.
        n_features: number of directions; more than `d` makes the dictionary overcomplete.
        k: directions in a row.
        seed: seed of its own generator; the global one is left alone.

    Returns:
        `x = codes @ dictionary`, the dictionary (rows of norm 1) and the codes, all float32.

    Raises:
        InputError: a size below 1, or `k` above `n_features`.
    """
    if min(n, d, n_features, k) < 1 or k > n_features:
        raise InputError(f"n={n}, d={d}, n_features={n_features}, k={k}: all must be at least 1, and k at "
                         "most n_features.")
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
    active = torch.rand(n, n_features, generator=generator).topk(k, dim=1).indices
    strength = torch.rand(n, k, generator=generator) + 0.5
    codes = torch.zeros(n, n_features).scatter(1, active, strength)
    return codes @ dictionary, dictionary, codes


def concept_tree(n: int, parent_mix: float = 0.0, child_mix: float = 0.0, seed: int = 0) -> tuple[
    Float[Tensor, "n 20"], Float[Tensor, "20 20"], Float[Tensor, "n 20"]
]:
    """Make rows whose 20 concepts form a tree: a child is active only together with its parent (Costa et al., 2025).

    Concepts 0, 1, 2 are parents, 3 to 11 their children (three each, in order), 12 to 19 have no relatives. A row has
    exactly one of the parents (a fifth of the rows each) or of the others (a twentieth each); a parent brings one of
    its children in three rows of five. Strengths are 1.5 with a standard deviation of 0.25.

    Args:
        n: number of rows.
        parent_mix, child_mix: how far the directions of top-level concepts, and of siblings, are moved towards the mean
            of the others of their group (0: all are orthogonal).
        seed: seed of its own generator.

    Returns:
        `x = codes @ dictionary`, the dictionary (rows of norm 1) and the codes, all float32.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    groups = [([0, 1, 2, *range(12, 20)], parent_mix), *(([3 * p + i for i in (3, 4, 5)], child_mix) for p in range(3))]
    for members, mix in groups:
        group = rows[members]
        others = (group.sum(0) - group) / (len(members) - 1)
        rows[members] = torch.nn.functional.normalize((1 - mix) * group + mix * others, dim=1)
    top = torch.multinomial(torch.tensor([0.2] * 3 + [0.05] * 8), n, replacement=True, generator=generator)
    child = torch.multinomial(torch.tensor([0.2, 0.2, 0.2, 0.4]), n, replacement=True, generator=generator)
    active = torch.zeros(n, 20)
    active[torch.arange(n), torch.where(top < 3, top, top + 9)] = 1
    brings = (top < 3) & (child < 3)
    active[brings.nonzero().flatten(), (3 + 3 * top + child)[brings]] = 1
    codes = active * (1.5 + 0.25 * torch.randn(n, 20, generator=generator))
    return codes @ rows, rows, codes


@dataclass(frozen=True)
class Planted:
    """Activations and what they were made of.

    Attributes:
        x: the activations. directions: rows of norm 1. codes: strengths, 0 where a direction is not active.
        kind: how the directions go together.
        products: directions that pairs (0, 1), (2, 3), ... write together, beyond what each writes; none but for
            "compositional".
    """

    x: Float[Tensor, "n d"]
    directions: Float[Tensor, "n_features d"]
    codes: Float[Tensor, "n n_features"]
    kind: str
    products: Float[Tensor, "pairs d"]


def planted(
    kind: str = "independent", n: int = 20_000, d: int = 64, n_features: int = 128, k: int | float = 4, seed: int = 0
) -> Planted:
    """Make activations of `n_features` directions, of which `k` are active on average, with strengths from 0.5 to 1.5.

    Args:
        kind: how the directions go together. "independent"; "correlated": in groups of four that fire together, each
            member half of the time; "hierarchical": in groups of four, three children that fire only with their
            parent, each half of the time; "bidirectional": as independent, with either sign; "compositional": the
            directions 2i and 2i + 1 of the first half fire together half of the time that either does, and then also
            write a direction of their own, at the product of their strengths.
        n: number of rows. d: their width.
        n_features: number of directions, in whole groups of four.
        k: directions active in a row, on average.
        seed: seed of its own generator.

    Raises:
        InputError: an unknown kind (the closest is named), or sizes that do not fit.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; valid: {', '.join(KINDS)}.{closest(kind, KINDS)}")
    if min(n, d, n_features) < 1 or n_features % _GROUP or not 0 < k <= n_features / _GROUP:
        raise InputError(f"n={n}, d={d}, n_features={n_features}, k={k}: sizes must be at least 1, n_features whole "
                         f"groups of {_GROUP}, and k above 0 and at most a quarter of n_features.")
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n_features, d, generator=g), dim=1)
    active = _active(kind, n, n_features, k / n_features, g)
    codes = active * (torch.rand(n, n_features, generator=g) + 0.5)
    products = directions[:0]
    if kind == "bidirectional":
        codes *= torch.randint(0, 2, codes.shape, generator=g) * 2 - 1
    x = codes @ directions
    if kind == "compositional":
        products = torch.nn.functional.normalize(torch.randn(n_features // _GROUP, d, generator=g), dim=1)
        first, second = codes[:, : n_features // 2].unflatten(1, (-1, 2)).unbind(2)
        x = x + (first * second) @ products
    return Planted(x, directions, codes, kind, products)


def _active(kind: str, n: int, n_features: int, share: float, g: torch.Generator) -> Tensor:
    """Which directions are active, each in a `share` of the rows (parents in more, their children in fewer)."""
    def draw(columns: int, chance: float) -> Tensor:
        return torch.rand(n, columns, generator=g) < chance

    groups = n_features // _GROUP
    if kind == "correlated":
        return draw(groups, 2 * share).repeat_interleave(_GROUP, 1) & draw(n_features, 0.5)
    if kind == "hierarchical":  # a parent and half of its three children: 2.5 directions each time
        parents = draw(groups, share * _GROUP / 2.5)
        children = parents.repeat_interleave(_GROUP, 1) & draw(n_features, 0.5)
        children[:, ::_GROUP] = parents
        return children
    if kind == "compositional":  # two thirds of the chance together, the rest alone: both fire in half of either's rows
        together = draw(n_features // _GROUP, share * 2 / 3).repeat_interleave(2, 1)
        pairs = together | draw(n_features // 2, share / 3)
        return torch.cat([pairs, draw(n_features - n_features // 2, share)], 1)
    return draw(n_features, share)

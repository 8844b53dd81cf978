"""Clusters of queries and keys: centroids that follow the data, and which tokens belong to which."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparselens.errors import InputError, closest

ASSIGNMENTS = ("topw", "argmax", "causal_topw")


class Centroids(nn.Module):
    """Centroids of each head, moved towards the vectors nearest to them after each training pass (online k-means).

    `count <- decay count + (1 - decay) n`, `sum <- decay sum + (1 - decay) sum of x`, `centroid = sum / count`, with
    counts smoothed so that none is zero. The first centroids are vectors far from each other.

    Args:
        heads, clusters, dim: sizes.
        decay: how much of the past is kept.
        seed: of the first choice.
    """

    def __init__(self, heads: int, clusters: int, dim: int, decay: float = 0.999, seed: int = 0):
        super().__init__()
        if clusters < 1 or not 0 <= decay < 1:
            raise InputError(f"clusters={clusters}, decay={decay}: at least one cluster, a decay from 0 to below 1.")
        self.decay, self.seed = decay, seed
        self.register_buffer("sums", torch.zeros(heads, clusters, dim))
        self.register_buffer("counts", torch.zeros(heads, clusters))
        self.counts: Tensor
        self.sums: Tensor

    @property
    def fitted(self) -> bool:
        """Whether any vectors were seen."""
        return bool(self.counts.sum() > 0)

    @property
    def means(self) -> Float[Tensor, "heads clusters dim"]:
        """The centroids."""
        total = self.counts.sum(-1, keepdim=True)
        smoothed = (self.counts + 1e-5) / (total + 1e-5 * self.counts.shape[1]) * total
        return self.sums / smoothed[..., None].clamp(min=1e-12)

    def scores(self, x: Float[Tensor, "b heads n dim"]) -> Float[Tensor, "b heads n clusters"]:
        """How close each vector is to each centroid: their product, for vectors of one length."""
        return x @ self.means.transpose(1, 2)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "b heads n dim"]) -> None:
        """Take vectors of `x` as the first centroids: one by lot, then each time the one farthest from all before."""
        flat = x.transpose(0, 1).flatten(1, 2)
        generator = torch.Generator().manual_seed(self.seed)
        first = int(torch.randint(flat.shape[1], (), generator=generator))
        self.sums[:, 0] = flat[:, first]
        apart = (flat - flat[:, first, None]).square().sum(-1)
        for c in range(1, self.counts.shape[1]):
            self.sums[:, c] = flat.gather(1, apart.argmax(1)[:, None, None].expand(-1, 1, flat.shape[2]))[:, 0]
            apart = torch.minimum(apart, (flat - self.sums[:, c, None]).square().sum(-1))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "b heads n dim"]) -> None:
        """Move each centroid towards the vectors that are nearest to it."""
        flat = x.transpose(0, 1).flatten(1, 2)
        nearest = F.one_hot((flat @ self.means.transpose(1, 2)).argmax(-1), self.counts.shape[1]).to(flat.dtype)
        self.counts.mul_(self.decay).add_(nearest.sum(1), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(nearest.transpose(1, 2) @ flat, alpha=1 - self.decay)


def normalised(x: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b dim"]:
    """Mean 0 and variance 1 over each vector, without scale or bias: all then have the same length."""
    return F.layer_norm(x, x.shape[-1:])


def top_members(scores: Float[Tensor, "b h n c"], window: int) -> Int[Tensor, "b h c w"]:
    """The `window` tokens closest to each centroid, in order of position; a token may be in several or in none."""
    w = min(window, scores.shape[2])
    return scores.transpose(2, 3).topk(w, dim=-1).indices.sort(dim=-1).values


def membership(scores: Float[Tensor, "b h n c"], window: int, assign: str) -> Bool[Tensor, "b h n c"]:
    """Which tokens are in which cluster.

    Args:
        scores: closeness of tokens to centroids.
        window: size of a cluster, for "topw".
        assign: "topw" takes the closest tokens of the whole row; "argmax" puts each token with its nearest centroid.

    Raises:
        InputError: an assignment that gives no fixed clusters.
    """
    if assign == "argmax":
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).bool()
    if assign == "topw":
        members = top_members(scores, window)
        return torch.zeros_like(scores, dtype=torch.bool).transpose(2, 3).scatter(3, members, True).transpose(2, 3)
    raise InputError(f"assign={assign!r}: clusters are given by 'topw' or 'argmax'.{closest(assign, ASSIGNMENTS)}")


def pairs(
    query: Float[Tensor, "b h n c"], key: Float[Tensor, "b h n c"], window: int, assign: str, causal: bool
) -> Bool[Tensor, "b h n n"]:
    """Which key each query may look at: those it shares a cluster with, and itself.

    Args:
        query, key: closeness to the centroids.
        window: tokens in a cluster, for "topw" and "causal_topw".
        assign: "topw" and "argmax" as in `membership`; "causal_topw": each query is with its nearest centroid, and sees
            the `window` earlier tokens closest to that.
        causal: whether a query sees only itself and keys before it.
    """
    n = query.shape[2]
    past = torch.ones(n, n, dtype=torch.bool, device=query.device)
    past = past.tril() if causal else past
    if assign == "causal_topw":
        mine = query.argmax(-1)
        close = key.transpose(2, 3).gather(2, mine[..., None].expand(*mine.shape, n)).masked_fill(~past, -torch.inf)
        best = close.topk(min(window, n), dim=-1).indices
        keep = torch.zeros_like(close, dtype=torch.bool).scatter(3, best, True) & past
    else:
        ours = membership(query, window, assign).to(query.dtype)
        theirs = membership(key, window, assign).to(query.dtype)
        keep = (ours @ theirs.transpose(2, 3) > 0) & past
    return keep | torch.eye(n, dtype=torch.bool, device=query.device)

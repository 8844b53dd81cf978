"""Routing Transformer: attention inside clusters of queries and keys that are learnt online (arXiv 2003.05997)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparselens.attention.clusters import ASSIGNMENTS, Centroids, normalised, pairs, top_members
from sparselens.attention.rotary import rotate
from sparselens.errors import InputError, closest

MERGES = ("mean", "union")


class RoutingAttention(nn.Module):
    """Some heads see a local window, the others the tokens of their cluster.

    Clusters are found on normalised queries and keys before rotary positions, attention uses them after. Calling it
    gives `(output, loss)`: the loss pulls queries towards their centroids, and is to be added in training; centroids
    move once a training pass. A token that sees no other sees itself.

    Args:
        d_model: width of the input.
        n_heads: heads in all.
        local_heads: how many of them are local.
        clusters: centroids of each routing head.
        window: tokens of a cluster, and of a local block; clusters times window is about the length.
        shared_qk: routing heads use their queries as keys. A token's own key, the best match by far, then counts only
            where there is no other.
        causal: whether a token sees only itself and those before it.
        assign: "topw" (the paper): the closest tokens of the whole row are a cluster, and later tokens can push an
            earlier one out. "argmax" and "causal_topw" depend on the past only.
        merge: for "topw", a token in several clusters: "mean" averages their outputs (the paper), "union" is one
            softmax over all their keys. A token in none gives zero with "mean", and sees itself with "union".
        decay: of the centroids.
        commit: weight of the loss.
        seed: of the first centroids.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, local_heads: int = 2, clusters: int = 8, window: int = 32, *,
        shared_qk: bool = True, causal: bool = True, assign: str = "topw", merge: str = "mean", decay: float = 0.999,
        commit: float = 1e-4, seed: int = 0,
    ):
        super().__init__()
        if d_model % (2 * n_heads):
            raise InputError(f"d_model={d_model} must be n_heads={n_heads} times an even number.")
        if not 0 <= local_heads <= n_heads or window < 1:
            raise InputError(f"local_heads={local_heads} of {n_heads}, window={window}: local heads from 0 to all, a "
                             "window of at least 1.")
        for name, given, valid in (("assign", assign, ASSIGNMENTS), ("merge", merge, MERGES)):
            if given not in valid:
                raise InputError(f"{name}={given!r} is unknown; valid are {', '.join(valid)}.{closest(given, valid)}")
        self.n_heads, self.local_heads, self.window, self.causal = n_heads, local_heads, window, causal
        self.shared_qk, self.assign, self.merge, self.commit = shared_qk, assign, merge, commit
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.centroids = Centroids(n_heads - local_heads, clusters, d_model // n_heads, decay, seed)

    def forward(self, x: Float[Tensor, "b pos d"]) -> tuple[Float[Tensor, "b pos d"], Float[Tensor, ""]]:
        """Attend, all positions at once. Returns the output and the commitment loss."""
        query, key, value = self._heads(x)
        routed = slice(self.local_heads, None)
        ours, theirs = normalised(query[:, routed]), normalised(key[:, routed])
        if self.local_heads < self.n_heads and not self.centroids.fitted:
            self.centroids.start(ours.detach())
        at = torch.arange(x.shape[1], device=x.device)
        turned, keys = rotate(query, at), rotate(key, at)
        near = slice(0, self.local_heads)
        outs = [_masked(turned[:, near], keys[:, near], value[:, near], self._local(x.shape[1], x.device))]
        loss = x.new_zeros(())
        if self.local_heads < self.n_heads:
            outs.append(self._routed(ours, theirs, turned[:, routed], keys[:, routed], value[:, routed]))
            loss = self.commit * self.commitment(ours)
            if self.training:
                both = ours if self.shared_qk else torch.cat([ours, theirs], 2)
                self.centroids.update(both.detach())
        return self.o_proj(torch.cat(outs, 1).transpose(1, 2).flatten(2)), loss

    def commitment(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, ""]:
        """Mean squared distance of vectors to their nearest centroids, which are taken as given."""
        means = self.centroids.means.detach()
        nearest = self.centroids.scores(x.detach()).argmax(-1)
        own = means[None].expand(len(x), -1, -1, -1).gather(2, nearest[..., None].expand_as(x))
        return (x - own).square().mean()

    def keeps(self, x: Float[Tensor, "b pos d"]) -> Bool[Tensor, "b h pos pos"]:
        """Which key each query of each head may look at, local heads first. For `merge="union"` this is all there is.

        Raises:
            InputError: no centroids yet: nothing was trained, nor run once.
        """
        self._fitted()
        query, key, _ = self._heads(x)
        routed = slice(self.local_heads, None)
        scores = [self.centroids.scores(normalised(part[:, routed])) for part in (query, key)]
        clustered = self._pairs(*scores)
        local = self._local(x.shape[1], x.device).expand(len(x), self.local_heads, -1, -1)
        return torch.cat([local, clustered], 1)

    @torch.no_grad()
    def coverage(self, x: Float[Tensor, "b pos d"]) -> float:
        """Share of tokens that are in some cluster; below 1 only with "topw"."""
        self._fitted()
        if self.assign != "topw":
            return 1.0
        scores = self.centroids.scores(normalised(self._heads(x)[0][:, self.local_heads :]))
        inside = torch.zeros(scores.shape[:3], dtype=torch.bool, device=x.device)
        return float(inside.scatter(2, top_members(scores, self.window).flatten(2), True).float().mean())

    @torch.no_grad()
    def leakage(self, x: Float[Tensor, "b pos d"], at: int) -> float:
        """Largest change of the output before position `at` when everything from there on is turned upside down.

        0 for an attention that depends on the past only. With "topw" later tokens change who is in a cluster.
        """
        training = self.training
        self.eval()
        changed = torch.cat([x[:, :at], -x[:, at:].flip(1)], 1)
        difference = (self(x)[0] - self(changed)[0])[:, :at].abs().max()
        self.train(training)
        return float(difference)

    def _fitted(self) -> None:
        if not self.centroids.fitted:
            raise InputError("there are no centroids yet: train the layer, or run it once on some input.")

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = (proj(x).unflatten(-1, (self.n_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (part.transpose(1, 2) for part in parts)
        if self.shared_qk:
            key = torch.cat([key[:, : self.local_heads], query[:, self.local_heads :]], 1)
        return query, key, value

    def _local(self, n: int, device: torch.device) -> Bool[Tensor, "1 1 n n"]:
        """A token's own block of `window` and the one before it (and after it, where both sides are seen)."""
        at = torch.arange(n, device=device)
        apart = at[:, None] // self.window - at // self.window
        keep = (apart.abs() <= 1) & ((at[:, None] >= at) | (not self.causal))
        return keep[None, None]

    def _routed(self, ours: Tensor, theirs: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mine, their = self.centroids.scores(ours), self.centroids.scores(theirs)
        if self.assign != "topw" or self.merge == "union":
            return _masked(query, key, value, self._pairs(mine, their))
        members, keys = top_members(mine, self.window), top_members(their, self.window)
        return _averaged(query, key, value, members, keys, self.causal, self.shared_qk)

    def _pairs(self, query: Tensor, key: Tensor) -> Tensor:
        keep = pairs(query, key, self.window, self.assign, self.causal)
        if not self.shared_qk:
            return keep
        own = torch.eye(keep.shape[-1], dtype=torch.bool, device=keep.device)
        others = keep & ~own
        return others | (own & ~others.any(-1, keepdim=True))


def _masked(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=keep) if query.shape[1] else query


def _averaged(
    query: Tensor, key: Tensor, value: Tensor, members: Tensor, keys: Tensor, causal: bool, shared: bool
) -> Tensor:
    """Attention inside each cluster, and for each token the mean over its clusters; zero where it has none.

    A query that may see no key of a cluster sees itself there.
    """
    d = query.shape[-1]

    def take(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(2, index.flatten(2)[..., None].expand(-1, -1, -1, d)).unflatten(2, index.shape[2:])

    scores = take(query, members) @ take(key, keys).transpose(-1, -2) * d**-0.5
    asks, answers = members[..., :, None], keys[..., None, :]
    if causal:
        scores = scores.masked_fill(asks < answers, -torch.inf)
    if shared:
        scores = scores.masked_fill(asks == answers, -torch.inf)
    alone = (scores == -torch.inf).all(-1, keepdim=True)
    inside = scores.masked_fill(alone, 0.0).softmax(-1) @ take(value, keys)
    out, index = torch.where(alone, take(value, members), inside).flatten(2, 3), members.flatten(2)
    total = torch.zeros_like(query).scatter_add(2, index[..., None].expand(-1, -1, -1, d), out)
    count = torch.zeros_like(query[..., 0]).scatter_add(2, index, torch.ones_like(out[..., 0]))
    return total / count.clamp(min=1)[..., None]

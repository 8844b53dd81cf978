"""Routing without training: clusters of a model's own keys choose what its queries look at (arXiv 2003.05997)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.attention.clusters import Centroids, normalised
from sparselens.attention.method import Layer, SparseAttention, checked_count
from sparselens.attention.pattern import Pattern
from sparselens.errors import InputError
from sparselens.models.live import LiveModel


class KMeansRouting(SparseAttention):
    """Each query looks at the keys of the cluster it fits best, at the first keys of its row, and at the last ones.

    `fit` finds the clusters of each key head on texts, before it is put on a model. Queries and keys are clustered as
    the layer multiplies them, turned by their positions, each scaled to one length; which cluster a token is in depends
    on nothing but the token itself, so decoding agrees with reading.

    Args:
        clusters: centroids of each key head: a query then sees about one key in so many.
        sink: first keys that are always kept, and left out of the clusters.
        local: last keys that are always kept, the query's own among them.
        steps: rounds of k-means.
        seed: of its start.
        phase, executor, prompt: as for `SparseAttention`.

    Example:
        >>> routing = sl.KMeansRouting(16).fit(m, texts)
        >>> routing.masks(m, text).explore()

    Source: Routing Transformer, arXiv 2003.05997, as a mask for a model that was trained without it.
    """

    phases = ("both", "prefill", "decode")

    def __init__(
        self, clusters: int = 16, *, sink: int = 4, local: int = 64, steps: int = 20, seed: int = 0, **settings: Any
    ):
        super().__init__(None, **settings)
        self.clusters, self.sink = checked_count("clusters", clusters), checked_count("sink", sink, 0)
        self.local, self.steps = checked_count("local", local), checked_count("steps", steps)
        self.seed = seed
        self.centroids_: dict[int, Float[Tensor, "kv clusters d"]] = {}

    def __repr__(self) -> str:
        return f"KMeansRouting({self.clusters} clusters, sink={self.sink}, local={self.local}, phase={self.phase!r})"

    def fit(self, model: LiveModel, texts: Any, *, max_length: int | None = 1024) -> "KMeansRouting":
        """Find the clusters of each layer on texts, read with dense attention. Returns itself.

        Args:
            model: a live model.
            texts: what it reads; some thousands of tokens do.
            max_length: tokens of a text that are read; None for all.

        Raises:
            InputError: fewer keys than clusters.
        """
        keys = _Keys(self.sink)
        with model.attach(keys):
            model.run(texts, max_length=max_length, long="error" if max_length is None else "cut")
        self.centroids_ = {}
        for layer, parts in keys.found.items():
            found = torch.cat(parts, 1)
            if found.shape[1] < self.clusters:
                raise InputError(f"{found.shape[1]} keys are too few for {self.clusters} clusters: give more text.")
            means = Centroids(len(found), self.clusters, found.shape[2], decay=0.0, seed=self.seed).to(found.device)
            means.start(found[None])
            for _ in range(self.steps):
                means.update(found[None])
            self.centroids_[layer] = means.means
        return self

    def decode(self, layer: Layer) -> Pattern:
        mine, theirs = self.labels(layer)
        keep = mine[..., None] == theirs.repeat_interleave(mine.shape[1] // layer.n_kv, 1)[:, :, None]
        may = layer.allowed.rows()
        before = may.int().cumsum(-1, dtype=torch.int32)  # how many allowed keys up to this one
        own, at = layer.allowed.own[:, None, :, None], torch.arange(layer.allowed.n_k, device=may.device)
        near = (own - at).abs() < self.local
        return Pattern(keep & may | (may & (near | (before <= self.sink))), (1, 1))

    def labels(self, layer: Layer) -> tuple[Int[Tensor, "b h q"], Int[Tensor, "b kv k"]]:
        """The cluster of each query and of each key.

        Raises:
            InputError: not fitted, or on another model.
        """
        means = self.centroids_.get(layer.index)
        if means is None or means.shape[::2] != (layer.n_kv, layer.key.shape[-1]):
            raise InputError(f"{self} has no clusters for layer {layer.index}: fit(model, texts) finds them, on the "
                             "model that it is put on.")
        means = means.to(layer.key.device)
        keys = normalised(layer.key.float()) @ means.transpose(1, 2)
        spread = means.repeat_interleave(layer.query.shape[1] // layer.n_kv, 0)
        return (normalised(layer.query.float()) @ spread.transpose(1, 2)).argmax(-1), keys.argmax(-1)


class _Keys(SparseAttention):
    """Looks at keys, and leaves everything dense."""

    def __init__(self, sink: int):
        super().__init__()
        self.sink = sink
        self.found: dict[int, list[Float[Tensor, "kv n d"]]] = {}

    def prefill(self, layer: Layer) -> None:
        real = layer.real_keys
        real = real & (real.int().cumsum(-1) > self.sink)
        keys = normalised(layer.key.float()).transpose(1, 2)[real].transpose(0, 1)
        self.found.setdefault(layer.index, []).append(keys)

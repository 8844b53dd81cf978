"""Groups of documents along the axis that chosen features span."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import made_by, named
from sparselens.embeddings.contrasts import hits
from sparselens.embeddings.jaccard import conductance_z, jaccard, parts_of, spectral
from sparselens.embeddings.query import Encoder, match, normalised
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.embeddings.differences import DatasetDiff
    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

_FEATURES, _CENTRAL = 5, 5
_BLOCK = 2048  # documents that join a cluster at once


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """Documents in groups, made by `cluster`.

    Attributes:
        frame: a row a cluster, as `to_frame` gives it.
        emb: the documents.
        labels: int64 `[documents]` the cluster of each, 0 the largest; -1 for a document in which no feature in use
            fires, or none that fires in another document too.
        centrality: float64 `[documents]` mean Jaccard similarity with the other documents of the same cluster.
        features: the features in use; None for all.
        descriptions: of the features that the frame names.
        notes: what a reader must know: sizes, features in use, documents without a cluster, who described.
    """

    frame: "pandas.DataFrame"
    emb: "SAEEmbedding"
    labels: np.ndarray
    centrality: np.ndarray
    features: np.ndarray | None
    descriptions: Mapping[int, str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a cluster, the largest first.

        Columns: `cluster`, `documents` (how many), `description` and `features` (the five features whose share of
        documents inside exceeds that outside most, in words and numbers), `central` (the five documents most like the
        others inside), and `conductance_z`: how much less its documents share with the others than random sets of its
        size do, by all features, in standard deviations. The lower, the more a cluster is one by everything in the
        texts; near 0 it is one only by the features in use.
        """
        return self.frame.copy()

    def documents(self, cluster: int | None = None) -> "pandas.DataFrame":
        """The documents with `cluster` and `centrality`; of one cluster, the most central first.

        Raises:
            InputError: there is no such cluster.
        """
        frame = self.emb.documents.assign(cluster=self.labels, centrality=self.centrality)
        if cluster is None:
            return frame
        return frame[self._inside(cluster)].sort_values("centrality", ascending=False, kind="stable")

    def subset(self, cluster: int) -> "SAEEmbedding":
        """The documents of a cluster as an embedding."""
        return self.emb.subset(self._inside(cluster))

    def diff(self, cluster: int) -> "DatasetDiff":
        """The documents of a cluster against those of all others, feature by feature.

        The p-values of features that made the clusters are too small: they differ by construction.

        Raises:
            InputError: there is no such cluster, or no other.
        """
        from sparselens.embeddings.differences import compare

        inside = self._inside(cluster)
        outside = ~inside & (self.labels >= 0)
        if not outside.any():
            raise InputError("all documents are in this cluster: there are no others to compare it with.")
        sets = {f"cluster {cluster}": self.emb.subset(inside), "other clusters": self.emb.subset(outside)}
        return compare(sets, described_by=self.emb)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 3) -> "matplotlib.axes.Axes":
        """Draw in which share of the documents of each cluster its first `top` features fire. Returns the axes."""
        from sparselens.views import share_grid

        chosen = list(dict.fromkeys(f for row in self.frame["features"] for f in row[:top]))
        fires, clusters = self.emb.fires()[:, chosen], self.frame["cluster"].tolist()
        shares = np.stack([hits(fires[self.labels == c]) / (self.labels == c).sum() for c in clusters], axis=1)
        names = [f"{c} ({n:,})" for c, n in zip(clusters, self.frame["documents"], strict=True)]
        return share_grid(shares, [f"{f} · {self.descriptions[f]}" for f in chosen], names, ax)

    def explore(self) -> Any:
        """A live map of the documents, laid out by the features in use and coloured by cluster; see `concept_map`.

        Raises:
            ImportError: umap-learn is not installed.
        """
        from sparselens.embeddings.maps import concept_map

        return concept_map(self.emb, self, features=self.features, labels=self.descriptions).explore()

    def _inside(self, cluster: int) -> np.ndarray:
        if cluster not in self.labels:
            raise InputError(f"there is no cluster {cluster}; there are {sorted(set(self.labels.tolist()))}.")
        return self.labels == cluster

    def __repr__(self) -> str:
        return "Clusters: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        texts = self.emb.documents["text"]
        rows: list[list[Any]] = [["cluster", "documents", "features that set it apart", "most central document"]]
        for r in self.frame.itertuples():
            rows.append([f"cluster {r.cluster}", r.documents, r.description, texts.iloc[r.central[0]]])
        return report_html(" ".join(self.notes), rows)


def cluster(
    emb: "SAEEmbedding",
    k: int,
    *,
    features: Sequence[int] | np.ndarray | None = None,
    query: str | Sequence[str] | None = None,
    top: int = 100,
    m: "LiveModel | None" = None,
    sae: "SAE | None" = None,
    labels: Mapping[int, str] | None = None,
    encoder: Encoder | None = None,
    threshold: float = 0.0,
    min_tokens: int = 1,
    max_documents: int = 5000,
    seed: int = 0,
) -> Clusters:
    """Group documents by the features that fire in them, all or those of one axis (Jiang, Sun et al., 2025).

    Spectral clustering of the Jaccard similarity of the sets of features. All features group texts mostly by topic;
    with `features` or `query` they are grouped along the axis that these features span, such as style.

    Args:
        emb: the documents.
        k: number of clusters.
        features: use only these features.
        query: use the features that fit this phrase, or one of these phrases; joined with `features` if both are given.
        top: features for each phrase.
        m, sae, encoder: how to find features that fit a phrase, as for `retrieve`.
        labels: descriptions of features, by number; others are described by the tokens they fire on.
        threshold: a token counts as firing when its code is larger than this in magnitude.
        min_tokens: tokens of a document that must fire.
        max_documents: of more than this a random sample is clustered, and each other document joins the cluster with
            whose documents its mean similarity is largest. Memory grows with the square, time with the cube.
        seed: of the sample and of k-means.

    Raises:
        InputError: k below 2 or too large for the documents, no such feature, or a query that no feature fits.
    """
    if k < 2 or max_documents <= k or top < 1:
        raise InputError(f"k={k} must be at least 2 and below max_documents={max_documents}; top={top} at least 1.")
    chosen, chosen_by = _chosen(emb, features, query, top, m, sae, labels, encoder)
    every = emb.fires(threshold, min_tokens)
    fires = every if chosen is None else every[:, chosen]
    filled = np.flatnonzero(np.diff(fires.indptr))
    sampled = filled
    if len(filled) > max_documents:
        sampled = np.sort(np.random.default_rng(seed).permutation(filled)[:max_documents])
    affinity = jaccard(fires[sampled], fires[sampled])
    met = affinity.sum(axis=1) - np.diagonal(affinity) > 0
    nodes, affinity = sampled[met], affinity[np.ix_(met, met)]
    if k >= len(nodes):
        raise InputError(f"k={k} clusters need more than {k} documents that share a feature in use with another one; "
                         f"of {len(emb):,} documents {len(nodes):,} do. Take a smaller k or more features.")
    found = spectral(affinity, k, seed)
    found = np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"), kind="stable")[found]
    member = (found[:, None] == np.arange(k)).astype(np.float32)
    group, centrality = np.full(len(emb), -1), np.zeros(len(emb))
    group[nodes] = found
    own = (affinity @ member)[np.arange(len(nodes)), found] - np.diagonal(affinity)
    centrality[nodes] = own / np.maximum(member.sum(axis=0)[found] - 1, 1)
    rest = np.setdiff1d(filled, sampled)
    for start in range(0, len(rest), _BLOCK):
        block = rest[start : start + _BLOCK]
        mean = jaccard(fires[block], fires[nodes]) @ member / np.maximum(member.sum(axis=0), 1)
        group[block] = np.where(mean.max(axis=1) > 0, mean.argmax(axis=1), -1)
        centrality[block] = mean.max(axis=1)
    whole = affinity if chosen is None else jaccard(every[nodes], every[nodes])
    frame, descriptions, by = _frame(emb, every, group, centrality, labels)
    frame["conductance_z"] = [conductance_z(whole, found == c, seed) for c in frame["cluster"]]
    notes = _notes(emb, group, chosen, chosen_by, len(rest) and len(nodes), parts_of(affinity), by)
    return Clusters(frame, emb, group, centrality, chosen, descriptions, notes)


def _chosen(
    emb: "SAEEmbedding",
    features: Sequence[int] | np.ndarray | None,
    query: str | Sequence[str] | None,
    top: int,
    m: "LiveModel | None",
    sae: "SAE | None",
    labels: Mapping[int, str] | None,
    encoder: Encoder | None,
) -> tuple[np.ndarray | None, str]:
    """The features to use, None for all; and how they were chosen."""
    if features is None and query is None:
        return None, ""
    given = [] if features is None else [emb._feature(int(f)) for f in features]
    found, how = list(given), ["given"] if given else []
    values = normalised(emb) if query is not None else None
    for phrase in [query] if isinstance(query, str) else query or []:
        fit = match(emb, phrase, values, top, m, sae, labels, encoder)
        if not len(fit.features):
            raise InputError(f"no feature fits {phrase!r} ({fit.method}). Use other words, labels= or encoder=, or "
                             "choose features= yourself.")
        found += fit.features.tolist()
        how.append(f"{phrase!r}: {fit.method}")
    if not found:
        raise InputError("features is empty: give at least one, or leave it out to use all.")
    return np.unique(found), "; ".join(how)


def _frame(
    emb: "SAEEmbedding",
    fires: "scipy.sparse.csr_matrix",
    group: np.ndarray,
    centrality: np.ndarray,
    labels: Mapping[int, str] | None,
) -> tuple["pandas.DataFrame", dict[int, str], str]:
    """A row a cluster without the conductance; descriptions of the features it names, and who made them."""
    import pandas as pd

    total, n = hits(fires[group >= 0]), int((group >= 0).sum())
    rows = []
    for c in np.unique(group[group >= 0]).tolist():
        inside = np.flatnonzero(group == c)
        there = hits(fires[inside])
        apart = there / len(inside) - (total - there) / max(n - len(inside), 1)
        best = np.argsort(-apart, kind="stable")[:_FEATURES]
        central = inside[np.argsort(-centrality[inside], kind="stable")[:_CENTRAL]]
        rows.append({"cluster": c, "documents": len(inside), "description": "",
                     "features": best[apart[best] > 0].tolist(), "central": central.tolist()})
    named_ones = sorted({f for row in rows for f in row["features"]})
    texts, by = named(emb, named_ones, labels)
    known = dict(zip(named_ones, texts, strict=True))
    for row in rows:
        row["description"] = " | ".join(known[f] for f in row["features"])
    return pd.DataFrame(rows), known, made_by(by)


def _notes(
    emb: "SAEEmbedding", group: np.ndarray, chosen: np.ndarray | None, chosen_by: str, sampled: int, parts: int, by: str
) -> tuple[str, ...]:
    used = "all features" if chosen is None else f"{len(chosen):,} features ({chosen_by})"
    notes = [f"{len(emb):,} documents in {len(set(group[group >= 0].tolist())):,} clusters by Jaccard similarity of "
             f"{used}.", f"Descriptions: {by}."]
    if outside := int((group < 0).sum()):
        notes.append(f"{outside:,} documents are in no cluster (-1): none of these features fires in them, or none "
                     "that fires in another document too.")
    if sampled:
        notes.append(f"{sampled:,} documents drawn at random were clustered; the others joined the cluster they are "
                     "most like.")
    if parts > 1:
        notes.append(f"Warning: the documents fall into {parts:,} parts that share no feature, and a small part may "
                     "take a cluster for itself. More features join them.")
    return tuple(notes)

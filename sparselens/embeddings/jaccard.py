"""Documents as a graph: how alike the sets of features are that fire in them, and groups in it."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from sparselens.embeddings.pairs import joint_counts

if TYPE_CHECKING:
    import scipy.sparse

_DRAWS = 100


def jaccard(a: "scipy.sparse.csr_matrix", b: "scipy.sparse.csr_matrix") -> Float[np.ndarray, "n m"]:
    """Jaccard similarity of the features of each row with those of each other row, float32; 0 for empty rows.

    Args:
        a, b: bool `[n, features]` and `[m, features]`.
    """
    both = joint_counts(a.T.tocsr(), b.T.tocsr())
    union = np.diff(a.indptr)[:, None] + np.diff(b.indptr)[None, :] - both
    return np.divide(both, union, out=both, where=union > 0, casting="unsafe")


def spectral(affinity: Float[np.ndarray, "n n"], k: int, seed: int) -> Int[np.ndarray, "n"]:
    """Spectral clustering of a graph without isolated nodes (Shi and Malik, 2000; von Luxburg, 2007).

    Args:
        affinity: symmetric, not negative.
        k: number of clusters, less than n.
        seed: of k-means.
    """
    import warnings

    from sklearn.cluster import SpectralClustering

    with warnings.catch_warnings():  # a graph in several parts is cut between them; the caller is told
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        found = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=10).fit(affinity)
    return found.labels_.astype(np.int64)


def parts_of(affinity: Float[np.ndarray, "n n"]) -> int:
    """Into how many parts a graph falls that have no edge between them."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    return int(connected_components(csr_matrix(affinity > 0), directed=False)[0])


def conductance_z(
    affinity: Float[np.ndarray, "n n"], inside: Bool[np.ndarray, "n"], seed: int
) -> float:
    """How much less of its weight a set of nodes shares with the others than random sets of its size do.

    The conductance is the weight of the edges that leave the set, over the weight of all edges at its nodes (or at the
    others', if that is less). It is held against 100 random sets, in their standard deviations: the lower the tighter.
    NaN where random sets do not differ, such as a set of all nodes.

    Args:
        affinity: symmetric, not negative; the diagonal does not count.
        inside: the set.
        seed: of the random sets.
    """
    random = np.random.default_rng(seed)
    sets = np.stack([inside, *(random.permutation(inside) for _ in range(_DRAWS))], axis=1).astype(np.float32)
    own = np.diagonal(affinity)
    degree = affinity.sum(axis=1) - own
    volume = degree @ sets
    within = (sets * (affinity @ sets)).sum(axis=0) - own @ sets
    least = np.minimum(volume, degree.sum() - volume)
    if not (least > 0).all():
        return float("nan")
    phi = (volume - within) / least
    spread = float(phi[1:].std())
    return float((phi[0] - phi[1:].mean()) / spread) if spread > 0 else float("nan")

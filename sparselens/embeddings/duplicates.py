"""Features that say the same twice: near-duplicates in a list of findings, and how alike two features are."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from sparselens.errors import FitError

if TYPE_CHECKING:
    import scipy.sparse

    from sparselens.embeddings.descriptions import TokenMass
    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.sae.sae import SAE

BY_DECODER = "cosine of decoder rows"
BY_TOKENS = "cosine of the tokens they fire on"
_CHUNK = 20_000  # pairs worked out at once


def decoder_rows(emb: "SAEEmbedding", sae: "SAE", features: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d_in"]:
    """Decoder rows of some features, of norm 1.

    Raises:
        FitError: the embedding was made with another dictionary.
    """
    from sparselens.embeddings.reader import sae_hash

    if sae_hash(sae) != emb.info["sae_sha256"]:
        raise FitError("this SAE is not the one the texts were embedded with: its weights differ. Give the SAE that "
                       "sl.embed was called with.")
    rows = sae.W_dec.detach()[features.tolist()].float().cpu().numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def pair_cosines(
    rows: Any, other: Any, a: Int[np.ndarray, "pairs"], b: Int[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """Dot products of chosen rows of two matrices, sparse or dense."""
    out = np.zeros(len(a))
    for start in range(0, len(a), _CHUNK):
        span = slice(start, start + _CHUNK)
        x, y = rows[a[span]], other[b[span]]
        product = x * y if isinstance(x, np.ndarray) else x.multiply(y)
        out[span] = np.asarray(product.sum(axis=1)).ravel()
    return out


def token_rows(
    mass: "TokenMass", features: Int[np.ndarray, "n"], index: dict[str, int]
) -> "scipy.sparse.csr_matrix":
    """What the tokens tell about where each feature fires, as `fires_on` ranks them, in rows of norm 1.

    Args:
        mass: sums by feature and token.
        features: which features.
        index: the column of each piece of text; new ones are added at the end.
    """
    from scipy.sparse import csr_matrix

    from sparselens.embeddings.descriptions import telling

    row, token, score = telling(mass, features)
    norm = np.sqrt(np.bincount(row, score**2, minlength=len(features)))
    column = np.array([index.setdefault(piece, len(index)) for piece in mass.vocabulary], dtype=np.int64)
    return csr_matrix((score / norm[row], (row, column[token])), shape=(len(features), len(index)))


def first_alike(
    fires: "scipy.sparse.csr_matrix",
    rows: Float[np.ndarray, "n d_in"] | None,
    jaccard: float,
    cosine: float,
) -> Int[np.ndarray, "n"]:
    """For each feature the first one kept that it nearly repeats, or itself: it is then kept.

    Args:
        fires: bool `[documents, n]`, the features in the order of their importance.
        rows: their decoder rows, of norm 1.
        jaccard: features repeat each other when the sets of documents overlap by more than this,
        cosine: or when their decoder rows have a larger cosine than this.
    """
    counts = np.asarray(fires.sum(axis=0)).ravel()
    whole = fires.astype(np.int32)
    both = (whole.T @ whole).toarray()
    union = np.maximum(counts[:, None] + counts[None, :] - both, 1)
    alike = both / union > jaccard
    if rows is not None:
        alike |= rows @ rows.T > cosine
    kept = np.arange(len(counts))
    for i in range(len(counts)):
        before = np.flatnonzero(alike[i, :i] & (kept[:i] == np.arange(i)))
        if len(before):
            kept[i] = before[0]
    return kept

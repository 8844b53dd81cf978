"""Which features a query is about: by the words of their descriptions, by reading the query, or by an encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparselens.embeddings.codes import check_comparable, named
from sparselens.embeddings.descriptions import METHOD, fires_on
from sparselens.embeddings.ranking import bm25_scores, fuse_ranks, ranks_of
from sparselens.errors import InputError, NotFiniteError

if TYPE_CHECKING:
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

Encoder = Callable[[list[str]], Any]
_CARRIER = "The following text is about"  # the first tokens of a row are read badly, so that a query is never first
_TOKENS = 10  # words of a description that a query is held against


class Match(NamedTuple):
    """Features that fit a query, best first.

    Attributes:
        features: int64 `[k]`.
        similarity: float64 `[k]`, higher is nearer.
        method: how they were found.
    """

    features: np.ndarray
    similarity: np.ndarray
    method: str


def normalised(emb: "SAEEmbedding") -> "scipy.sparse.csr_matrix":
    """Magnitudes of the pooled features, each divided by the 90th percentile of its values that are not zero."""
    from scipy.sparse import csr_matrix

    matrix = abs(emb.matrix.tocsc().astype(np.float64))
    matrix.eliminate_zeros()
    scale = _percentiles(matrix.data, matrix.indptr, 0.9)
    data = matrix.data / np.repeat(scale, np.diff(matrix.indptr))
    return csr_matrix(type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape))


def _percentiles(
    values: Float[np.ndarray, "n"], starts: Int[np.ndarray, "columns_1"], q: float
) -> Float[np.ndarray, "columns"]:
    """The quantile `q` (0 to 1) of each column of a compressed matrix; 1 where a column is empty."""
    counts = np.diff(starts)
    column = np.repeat(np.arange(len(counts)), counts)
    ordered = values[np.lexsort((values, column))]
    place = starts[:-1] + q * np.maximum(counts - 1, 0)
    low = np.minimum(np.floor(place).astype(np.int64), max(len(values) - 1, 0))
    high = np.minimum(low + 1, np.maximum(starts[1:] - 1, low))
    if not len(values):
        return np.ones(len(counts))
    return np.where(counts > 0, ordered[low] + (place - low) * (ordered[high] - ordered[low]), 1.0)


def encoded(encoder: Encoder, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Dense vectors of texts, of length 1, from an encoder of the user.

    Raises:
        InputError: not a row a text. NotFiniteError: NaN or infinite numbers.
    """
    got = encoder(list(texts))
    array = np.asarray(got.detach().cpu().float() if hasattr(got, "detach") else got, dtype=np.float64)
    if array.ndim != 2 or len(array) != len(texts):
        raise InputError(f"the encoder was given {len(texts)} texts and returned shape {list(array.shape)}; it must "
                         f"return [{len(texts)}, d].")
    if not np.isfinite(array).all():
        raise NotFiniteError("the encoder returned NaN or infinite numbers.")
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return np.divide(array, length, out=np.zeros_like(array), where=length > 0)


def match(
    emb: "SAEEmbedding",
    query: Any,
    values: "scipy.sparse.csr_matrix",
    n: int,
    m: "LiveModel | None" = None,
    sae: "SAE | None" = None,
    labels: Mapping[int, str] | None = None,
    encoder: Encoder | None = None,
) -> Match:
    """The `n` features that fit a query best; features that fire in no document never do.

    Args:
        emb: embedded texts.
        query: a text, example texts, an embedding of example texts, or features, best first.
        values: `normalised(emb)`.
        n: most features.
        m, sae: what the documents were read with, to read the query.
        labels: labels by feature.
        encoder: texts -> vectors, to compare the query with the labels.

    Raises:
        InputError: an empty query, no such feature, or example texts without the model.
    """
    alive = np.diff(values.tocsc().indptr) > 0
    if isinstance(query, (int, np.integer)) or _all_of(query, (int, np.integer)):
        asked = [emb._feature(int(f)) for f in np.atleast_1d(query).tolist()]
        kept = [f for f in dict.fromkeys(asked) if alive[f]]
        return Match(np.array(kept, dtype=np.int64), np.ones(len(kept)), "features given")
    if isinstance(query, str):
        return _by_text(emb, query, values, alive, n, m, sae, labels, encoder)
    if not hasattr(query, "token_mass") and not _all_of(query, str):
        raise InputError("a query is a text, a list of example texts, an embedding of example texts, or a list of "
                         f"features; got {type(query).__name__}.")
    return _best(_by_examples(emb, query, values, m, sae) * alive, n, "features of the examples")


def _all_of(query: Any, kind: Any) -> bool:
    if isinstance(query, (str, dict)) or hasattr(query, "token_mass") or not hasattr(query, "__iter__"):
        return False
    items = list(query)
    if not items:
        raise InputError("the query is empty: give a text, example texts, or features.")
    return all(isinstance(item, kind) and not isinstance(item, bool) for item in items)


def _best(similarity: np.ndarray, n: int, method: str) -> Match:
    order = np.argsort(-similarity, kind="stable")[:n]
    order = order[similarity[order] > 0]
    return Match(order, similarity[order], method)


def _by_text(
    emb: "SAEEmbedding", query: str, values: Any, alive: np.ndarray, n: int, m: "LiveModel | None",
    sae: "SAE | None", labels: Mapping[int, str] | None, encoder: Encoder | None,
) -> Match:
    if not query.strip():
        raise InputError("the query is empty: give a text, example texts, or features.")
    features = np.flatnonzero(alive)
    texts, source = _label_texts(emb, features.tolist(), labels)
    similarity = np.zeros(emb.d_sae)
    if encoder is not None and len(features):
        vectors = encoded(encoder, [query, *texts])
        similarity[features] = np.where([bool(t) for t in texts], vectors[1:] @ vectors[0], 0.0)
        return _best(similarity, n, f"cosine of the encoder's vectors of the query and of {source}")
    if len(features):
        similarity[features] = bm25_scores(texts, [query])[0]
    by_words = f"BM25 of the query over {source}"
    if m is None or sae is None:
        return _best(similarity, n, by_words)
    own = _by_reading(emb, query, values, m, sae) * alive
    return _best(fuse_ranks([ranks_of(similarity), ranks_of(own)]), n,
                 f"the features that fire on the query, joined with {by_words}")


def _label_texts(
    emb: "SAEEmbedding", features: list[int], labels: Mapping[int, str] | None
) -> tuple[list[str], str]:
    """What is known about each feature, as words; and where it comes from."""
    if labels is not None:
        texts, _ = named(None, features, labels)
        return texts, f"labels ({getattr(labels, 'labelled_by', 'given')})"
    tops = fires_on(emb.token_mass, features, _TOKENS)
    return [" ".join(token.strip() for token in top) for top in tops], METHOD


def _by_reading(emb: "SAEEmbedding", query: str, values: Any, m: "LiveModel", sae: "SAE") -> np.ndarray:
    """How much stronger each feature is on the query's own tokens than in the documents on average."""
    from sparselens.embeddings.reading import embed

    read = embed([f"{_CARRIER} {query}"], m, sae, skip_first=False, progress=False)
    check_comparable(emb, read, ("model", "sae_sha256", "site"))
    ends = np.cumsum([len(piece) for piece in read.tokens(0)])
    own = read.activations(0, range(emb.d_sae))[ends > len(_CARRIER)]
    return _lift(emb, np.abs(own).max(axis=0, initial=0.0)[None], values)


def _by_examples(
    emb: "SAEEmbedding", examples: Any, values: Any, m: "LiveModel | None", sae: "SAE | None"
) -> np.ndarray:
    """How much stronger each feature is in the examples than in the documents on average."""
    if not hasattr(examples, "token_mass"):
        from sparselens.embeddings.reading import embed

        if m is None or sae is None:
            raise InputError("to read example texts the model and the dictionary are needed: give m= and sae=, or an "
                             "embedding of the examples.")
        examples = embed(list(examples), m, sae, pooling=emb.info["pooling"], role=emb.info["role"],
                         skip_first=emb.info["skip_first"], long="cut", progress=False)
    check_comparable(emb, examples)
    if examples.info["pooling"] != emb.info["pooling"]:
        raise InputError(f"the examples are pooled by {examples.info['pooling']} and the documents by "
                         f"{emb.info['pooling']}: embed both alike.")
    return _lift(emb, abs(examples.matrix).toarray().astype(np.float64), values)


def _lift(emb: "SAEEmbedding", found: Float[np.ndarray, "n d_sae"], values: Any) -> Float[np.ndarray, "d_sae"]:
    """Mean of normalised values of some texts, less the mean over all documents; nothing below 0."""
    matrix = abs(emb.matrix.tocsc().astype(np.float64))
    scale = _percentiles(matrix.data, matrix.indptr, 0.9)
    usual = np.asarray(values.mean(axis=0)).ravel()
    mean = np.divide(found.mean(axis=0), scale, out=np.zeros(emb.d_sae), where=scale > 0)
    lift = mean - usual
    return np.where(lift > 1e-9 * usual, lift, 0.0)  # equal means differ in the last digits

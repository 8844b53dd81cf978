"""Codes of documents put into the form an analysis needs: mean-pooled, without signs, with names for the features."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.descriptions import METHOD, TokenMass, fires_on, sentence
from sparselens.errors import InputError, NotFiniteError

if TYPE_CHECKING:
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding

GIVEN = "given labels"
_SAME = ("model", "sae_sha256", "site", "role", "skip_first")


def check_comparable(a: "SAEEmbedding", b: "SAEEmbedding", keys: Sequence[str] = _SAME) -> None:
    """Refuse two embeddings whose columns do not mean the same.

    Args:
        a, b: two embeddings.
        keys: the entries of `info` that must be equal.

    Raises:
        InputError: another model, dictionary, site or role.
    """
    for key in keys:
        if a.info[key] != b.info[key]:
            raise InputError(f"these embeddings cannot be compared: {key} is {a.info[key]!r:.80} in one and "
                             f"{b.info[key]!r:.80} in the other. Embed both with the same model, dictionary and role.")


def mean_codes(emb: "SAEEmbedding") -> "scipy.sparse.csr_matrix":
    """The mean code of the pooled tokens of each document, CSR float64 `[documents, d_sae]`; 0 without tokens.

    From an embedding that was not made with pooling="mean" it is worked out from the codes of the tokens (float16).
    """
    chosen = emb if emb.info["pooling"] == "mean" else emb.pooled("mean")
    return chosen.matrix.astype(np.float64)


def as_codes(given: Any, name: str) -> "scipy.sparse.csr_matrix":
    """An embedding's mean codes, or a matrix `[n, d]` as it is, as CSR float64.

    Raises:
        InputError: neither an embedding nor a matrix, or one without rows. NotFiniteError: NaN or infinite numbers.
    """
    from scipy.sparse import csr_matrix, issparse

    if hasattr(given, "token_mass"):
        return mean_codes(given)
    array = given.detach().cpu().float().numpy() if hasattr(given, "detach") else given
    if not issparse(array):
        array = np.asarray(array)
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise InputError(f"{name} must be an embedding or a matrix [n, d]; got {type(given).__name__} of shape "
                             f"{list(array.shape)}.")
    codes = csr_matrix(array, dtype=np.float64)
    codes.eliminate_zeros()
    if not codes.shape[0]:
        raise InputError(f"{name} has no rows.")
    if not np.isfinite(codes.data).all():
        raise NotFiniteError(f"{name} holds NaN or infinite numbers.")
    return codes


def without_signs(codes: "scipy.sparse.csr_matrix") -> "scipy.sparse.csr_matrix":
    """Positive and negative parts side by side, `[n, 2 d]`: none is negative, and nothing cancels."""
    from scipy.sparse import hstack

    positive, negative = codes.maximum(0), (-codes).maximum(0)
    out = hstack([positive, negative], format="csr")
    out.eliminate_zeros()
    return out


def named(
    emb: "SAEEmbedding | Sequence[SAEEmbedding] | None",
    features: Sequence[int],
    labels: Mapping[int, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Descriptions of features, and who made each: the labels given, else the tokens each fires on.

    Args:
        emb: where the features fire, in one embedding or in several together; None when only labels are at hand.
        features: which features.
        labels: label by feature; a `FeatureLabels` or a plain dict.
    """
    known = dict(labels or {})
    by = getattr(labels, "labelled_by", GIVEN)
    rest = [f for f in features if f not in known]
    texts = known | dict.fromkeys(rest, "")
    if emb is not None and rest:
        mass = reduce(TokenMass.joined, (e.token_mass for e in (emb if isinstance(emb, Sequence) else [emb])))
        texts |= {f: sentence(top) for f, top in zip(rest, fires_on(mass, rest), strict=True)}
    return [texts[f] for f in features], [by if f in known else METHOD for f in features]


def made_by(by: Sequence[str]) -> str:
    """Who made a column of descriptions, in a line: `given labels for 3; top tokens by ...`."""
    counts = Counter(by)
    rest = METHOD if not counts or METHOD in counts else ""
    return "; ".join([*(f"{one} for {n:,}" for one, n in counts.items() if one != METHOD), *([rest] if rest else [])])

"""What a feature is about, without labels: the tokens it fires on, the tokens it promotes, marked snippets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.pieces import BROKEN, Pieces
from sparselens.embeddings.store import flat, flat_numbers
from sparselens.errors import InputError

if TYPE_CHECKING:
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

METHOD = "top tokens by activation-weighted frequency ratio"
LENS = "logit lens"
TOKENS = 4
_LENGTH = 20  # characters of a token shown
_CONTEXT = 8  # tokens on each side of the peak of a snippet


@dataclass(frozen=True)
class TokenMass:
    """How much of each feature's activation falls on each distinct token.

    Attributes:
        vocabulary: the V distinct pieces of text.
        counts: int64 `[V]` how often each occurs.
        mass: CSR float64 `[d_sae, V]` summed magnitudes of the codes.
    """

    vocabulary: list[str]
    counts: np.ndarray
    mass: "scipy.sparse.csr_matrix"

    def joined(self, other: "TokenMass") -> "TokenMass":
        """Both together."""
        from scipy.sparse import csr_matrix

        index = {piece: i for i, piece in enumerate(self.vocabulary)}
        moved = np.array([index.setdefault(piece, len(index)) for piece in other.vocabulary], dtype=np.int64)
        counts = np.zeros(len(index), dtype=np.int64)
        counts[: len(self.counts)] += self.counts
        counts[moved] += other.counts
        a, b = self.mass.tocoo(), other.mass.tocoo()
        at = (np.r_[a.row, b.row], np.r_[a.col, moved[b.col]])
        mass = csr_matrix((np.r_[a.data, b.data], at), shape=(self.mass.shape[0], len(index)))
        return TokenMass(list(index), counts, mass)


def token_mass(emb: "SAEEmbedding") -> TokenMass:
    """Sum the codes of all tokens of an embedding by feature and token; one block is held at a time."""
    from scipy.sparse import csr_matrix

    index: dict[str, int] = {}
    counts = np.zeros(0, dtype=np.int64)
    parts = [csr_matrix((emb.d_sae, 1))]
    for _, table in emb._tables():
        encoded = flat(table, "pieces")[0].dictionary_encode()
        ids = np.array([index.setdefault(p, len(index)) for p in encoded.dictionary.to_pylist()], dtype=np.int64)
        token = ids[encoded.indices.to_numpy(zero_copy_only=False)]
        counts = np.bincount(token, minlength=len(index)) + np.pad(counts, (0, len(index) - len(counts)))
        feature = flat_numbers(table, "token_feature")[0].astype(np.int64)
        where = np.repeat(token, flat_numbers(table, "token_count")[0])
        value = np.abs(flat_numbers(table, "token_value")[0].astype(np.float64))
        parts.append(csr_matrix((value, (feature, where)), shape=(emb.d_sae, max(len(index), 1))))
        if sum(part.nnz for part in parts[1:]) > parts[0].nnz:  # a sum takes as long as all its parts are large
            parts = [_summed(parts)]
    return TokenMass(list(index), counts, _summed(parts))


def _summed(parts: "list[scipy.sparse.csr_matrix]") -> "scipy.sparse.csr_matrix":
    """The sum of matrices, each as wide as the last or narrower."""
    from scipy.sparse import csr_matrix

    entries = [(part.row, part.col, part.data) for part in (p.tocoo() for p in parts)]
    row, column, value = (np.concatenate(x) for x in zip(*entries, strict=True))
    return csr_matrix((value, (row, column)), shape=parts[-1].shape)


def fires_on(mass: TokenMass, features: Iterable[int], n: int = TOKENS) -> list[list[str]]:
    """The tokens that tell most about where each feature fires, most telling first.

    A token's share of the feature's activation mass is held against its share of all tokens (one occurrence added to
    every token). Tokens are ranked by `share * log(share / share of all tokens)`: the part of the mass a token carries,
    times how much more that is than it would be by chance. Tokens below chance are left out.

    Args:
        mass: sums by feature and token.
        features: which features.
        n: most tokens of each.
    """
    asked = np.fromiter(features, dtype=np.int64)
    row, token, score = telling(mass, asked)
    best = _largest(row, score, n + 1)
    row, token, score = row[best], token[best], score[best]
    order = np.lexsort((_alphabetical(mass.vocabulary)[token], -score, row))
    starts = np.searchsorted(row[order], np.arange(len(asked) + 1))
    out = []
    for start, stop in zip(starts, starts[1:], strict=False):
        pieces = [mass.vocabulary[t] for t in token[order[start : min(stop, start + n + 1)]]]
        out.append([piece for piece in pieces if piece][:n])  # later bytes of a character have an empty piece
    return out


def telling(mass: TokenMass, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much each token tells about where each feature fires, as `fires_on` ranks them; above chance only.

    Args:
        mass: sums by feature and token.
        features: int `[n]`.

    Returns:
        Positions in `features`, tokens and scores, `[entries]` each.
    """
    part = mass.mass[features]
    row = np.repeat(np.arange(len(features)), np.diff(part.indptr))
    share = part.data / np.bincount(row, part.data, minlength=len(features))[row]
    common = (mass.counts + 1) / max(mass.counts.sum() + len(mass.counts), 1)
    score = share * np.log(share / common[part.indices])
    above = score > 0
    return row[above], part.indices[above], score[above]


def _largest(row: np.ndarray, score: np.ndarray, n: int) -> np.ndarray:
    """Which entries are among the n largest of their row, bool; all of equal ones. Rows stand together."""
    first = np.r_[True, np.diff(row) != 0][: len(row)]
    group, left, kept = np.cumsum(first) - 1, score.copy(), np.zeros(len(row), dtype=bool)
    for _ in range(n if len(row) else 0):
        kept |= left == np.maximum.reduceat(left, np.flatnonzero(first))[group]
        left[kept] = -np.inf
    return kept


def _alphabetical(vocabulary: Sequence[str]) -> np.ndarray:
    """The place of each piece in alphabetical order."""
    place = np.empty(len(vocabulary), dtype=np.int64)
    place[sorted(range(len(vocabulary)), key=vocabulary.__getitem__)] = np.arange(len(vocabulary))
    return place


def promotes(features: Sequence[int], m: "LiveModel", sae: "SAE", n: int = TOKENS) -> list[list[str]]:
    """The tokens whose logits the decoder rows of some features raise most (the logit lens).

    Raises:
        InputError: the dictionary does not write into the residual stream.
    """
    if sae.d_in != m.d_model:
        raise InputError(f"the logit lens needs a dictionary of the residual stream (width {m.d_model}); this one has "
                         f"width {sae.d_in}.")
    unembedding, piece = m.unembedding.float(), Pieces(m.tokenizer)
    rows = sae.W_dec.detach()[list(features)].to(unembedding)
    out = []
    for part in rows.split(128):  # 128 rows of logits at once
        best = (part @ unembedding.T).topk(min(8 * n, len(unembedding)), dim=1).indices.tolist()
        # a part of a character is no text to show
        out += [[p for token in row if (p := piece([token])[0]) and BROKEN not in p][:n] for row in best]
    return out


def snippet(pieces: Sequence[str], values: np.ndarray, context: int = _CONTEXT) -> str:
    """A stretch of text around the strongest token, with firing tokens marked «so», neighbours together."""
    peak = int(np.argmax(np.abs(values)))
    start, stop = max(peak - context, 0), min(peak + context + 1, len(pieces))
    out = "… " if start else ""
    for i in range(start, stop):
        on = bool(values[i])
        before, after = on and (i == start or not values[i - 1]), on and (i + 1 == stop or not values[i + 1])
        text = pieces[i].lstrip()
        space = pieces[i][: len(pieces[i]) - len(text)]  # stays outside of the mark
        out += (f"{space}«{text}" if before else pieces[i]) + ("»" if after else "")
    return " ".join(out.split()) + (" …" if stop < len(pieces) else "")


def sentence(fires: Sequence[str], raises: Sequence[str] = ()) -> str:
    """A description in a line: `fires on: ' sir', ' madam' · promotes: …`."""
    parts = [("fires on", fires), ("promotes", raises)]
    return " · ".join(f"{name}: {', '.join(_quoted(t) for t in tokens)}" for name, tokens in parts if tokens)


def _quoted(token: str) -> str:
    return repr(token if len(token) <= _LENGTH else token[:_LENGTH] + "…")


def describe(
    emb: "SAEEmbedding",
    features: int | Sequence[int] | None = None,
    m: "LiveModel | None" = None,
    sae: "SAE | None" = None,
    *,
    n_tokens: int = TOKENS,
    n_snippets: int = 3,
) -> "pandas.DataFrame":
    """Describe features without labels, from the texts at hand.

    Args:
        emb: embedded texts.
        features: which features; by default all that fire.
        m, sae: the model and dictionary, to add the tokens that a feature promotes (the logit lens). Both or neither.
        n_tokens: most tokens of each kind.
        n_snippets: marked snippets of each feature, from the documents where it is strongest.

    Returns:
        A row a feature: `feature`, `description` (a line), `fires_on`, `promotes` and `snippets` (lists of strings),
        and `method`, how the description was made.

    Raises:
        InputError: no such feature, only one of m and sae, or a dictionary that is not of the residual stream.
    """
    import pandas as pd

    if (m is None) != (sae is None):
        raise InputError("give both m and sae for the logit lens, or neither.")
    asked = np.unique(emb.matrix.indices) if features is None else np.atleast_1d(np.asarray(features, dtype=np.int64))
    chosen = [emb._feature(f) for f in asked.tolist()]
    fires = fires_on(emb.token_mass, chosen, n_tokens)
    raised: list[list[str]] = [[] for _ in chosen]
    if m is not None and sae is not None and chosen:
        raised = promotes(chosen, m, sae, n_tokens)
    columns = emb.matrix.tocsc() if n_snippets else None
    return pd.DataFrame({
        "feature": chosen,
        "description": [sentence(f, p) for f, p in zip(fires, raised, strict=True)],
        "fires_on": fires,
        "promotes": raised,
        "snippets": [_snippets(emb, f, columns, n_snippets) for f in chosen],
        "method": METHOD if m is None else f"{METHOD}; {LENS}",
    })


def _snippets(emb: "SAEEmbedding", feature: int, columns: Any, n: int) -> list[str]:
    if columns is None:
        return []
    span = slice(columns.indptr[feature], columns.indptr[feature + 1])
    strongest = np.argsort(-np.abs(columns.data[span]), kind="stable")[:n]
    documents = columns.indices[span][strongest].tolist()
    return [snippet(emb.tokens(d), emb.activations(d, feature)) for d in documents]

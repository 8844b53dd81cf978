"""Documents with a property, found through the features of a query (Jiang, Sun et al., 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sparselens.embeddings.accounting import Cost, name_of
from sparselens.embeddings.codes import named
from sparselens.embeddings.labels import Judge
from sparselens.embeddings.prompts import relevant, verdict
from sparselens.embeddings.query import Encoder, Match, encoded, match, normalised
from sparselens.embeddings.ranking import bm25_scores, fuse_ranks, ranks_of
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE
    from sparselens.views.tokens import TokenView

FUSED = ("bm25", "dense")
_SHOWN, _PARTS = 10, 5


@dataclass(frozen=True, eq=False, repr=False)
class Retrieval:
    """Documents found for a query, made by `retrieve`.

    Attributes:
        query: as shown.
        documents: int64, positions of the documents found, best first.
        scores: float64 `[documents of the embedding]`; higher is better, 0 = nothing matched. With `fuse` these are the
            fused ones.
        parts: by name ("features", and "bm25" or "dense"), the scores before fusion.
        features: a row a feature that was used, most important first: `feature`, `description`, `labelled_by`,
            `similarity` (with the query) and `weight`.
        method: how the features were found.
        values: CSR `[documents, features]`, normalised values of those features.
        emb: the embedding searched.
        cost: of a judge, if one was asked.
    """

    query: str
    documents: np.ndarray
    scores: np.ndarray
    parts: dict[str, np.ndarray]
    features: "pandas.DataFrame"
    method: str
    values: "scipy.sparse.csr_matrix"
    emb: "SAEEmbedding"
    cost: Cost = field(default_factory=Cost)

    def __len__(self) -> int:
        return len(self.documents)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a document found, best first: `document`, `score`, a rank for each part that was fused, its columns."""
        import pandas as pd

        frame = pd.DataFrame({"document": self.documents, "score": self.scores[self.documents]})
        if len(self.parts) > 1:
            for name, scores in self.parts.items():
                frame[f"{name}_rank"] = ranks_of(scores)[self.documents]
        return frame.join(self.emb.documents.iloc[self.documents].reset_index(drop=True))

    def subset(self) -> "SAEEmbedding":
        """The documents found as an embedding, best first."""
        return self.emb.subset(self.documents)

    def explain(self, document: int) -> "pandas.DataFrame":
        """What each feature adds to the score of a document, most first.

        Columns: `feature`, `description`, `labelled_by`, `weight`, `value` (normalised: 1 is the 90th percentile of
        the documents in which it fires) and `contribution`, which sums to the score by features.
        """
        row = self.values[self.emb._position(document)].toarray()[0]
        frame = self.features.drop(columns="similarity").assign(value=row)
        frame["contribution"] = frame["weight"] * frame["value"]
        frame = frame[frame["contribution"] > 0]
        return frame.sort_values("contribution", ascending=False, kind="stable").reset_index(drop=True)

    def highlight(self, document: int, n: int = 5) -> "TokenView":
        """Show a document with the tokens marked on which the `n` features fire that add most to its score.

        Raises:
            InputError: none of the features fires in it.
        """
        chosen = self.explain(document)["feature"][:n].tolist()
        if not chosen:
            raise InputError(f"none of the query's features fires in document {document}.")
        return self.emb.highlight(document, chosen)

    @property
    def notes(self) -> list[str]:
        """What a reader must know: how the features were found, and why nothing was if so."""
        notes = [f"{len(self):,} of {len(self.scores):,} documents, by {len(self.features)} features ({self.method})."]
        if not len(self.features):
            notes.append("Nothing matched the query: no feature that fires here fits it. Give m= and sae= to read the "
                         "query with the model, labels= or encoder=, or give example texts or features as the query.")
        return notes

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = _SHOWN) -> "matplotlib.axes.Axes":
        """Draw what the features add to the score of the first documents; the strongest apart, then the rest."""
        from sparselens.views import score_bars

        shown = self.documents[:top]
        added = self.values[shown].toarray() * self.features["weight"].to_numpy()
        best = np.argsort(-added.sum(axis=0), kind="stable")[:_PARTS]
        rest = added.sum(axis=1, keepdims=True) - added[:, best].sum(axis=1, keepdims=True)
        texts = self.emb.documents["text"].iloc[shown]
        names = [f"{d} · {text}" for d, text in zip(shown, texts, strict=True)]
        return score_bars(names, np.hstack([added[:, best], rest]), ax, "score by feature")

    def __repr__(self) -> str:
        return f"Retrieval({self.query!r:.80}): " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[Any] = [("document", "score", "text", "strongest feature")]
        frame = self.to_frame().head(_SHOWN)
        for document, score, text in zip(frame["document"], frame["score"], frame["text"], strict=True):
            parts = self.explain(int(document))
            first = parts.iloc[0] if len(parts) else None
            why = "" if first is None else f"{first['feature']} · {first['description']}"
            rows.append((int(document), float(score), text, why))
        rows += [(note,) for note in self.notes]
        return report_html(f"Query: {self.query}", rows)


def retrieve(
    emb: "SAEEmbedding",
    query: Any,
    m: "LiveModel | None" = None,
    sae: "SAE | None" = None,
    *,
    k: int = 10,
    n_features: int = 100,
    temperature: float = 0.2,
    labels: Mapping[int, str] | None = None,
    encoder: Encoder | None = None,
    judge: Judge | None = None,
    fuse: str | None = None,
) -> Retrieval:
    """Find documents with a property (Jiang, Sun et al., 2025).

    The features that fit the query best are ranked, the feature of rank r (from 0) of R gets the weight
    `exp(-(r / R) / temperature)`, and a document scores the weighted sum of its features' values, each divided by the
    90th percentile of the values that are not zero.

    How features are matched with a query that is a text:

    - by its words alone: BM25 over the labels, or without labels over the ten tokens each feature fires on. A word that
      stands in no description matches nothing;
    - with `m` and `sae` the query is read, too: a feature counts by how much stronger it fires on the query's own
      tokens than in the documents on average. The two rankings are joined;
    - with `encoder`: the cosine of its vectors of the query and the labels, as in the paper.

    Example texts as a query are read like the documents, and features count by how much stronger they are in the
    examples than in the documents on average. Names of a style ("slang") find little without labels by a language
    model; examples of it do.

    Args:
        emb: embedded texts.
        query: a text; a list of example texts or an embedding of them; or features, most important first.
        m, sae: what the documents were read with. Both or neither.
        k: most documents to return.
        n_features: most features to use.
        temperature: near 0 only the first feature counts, at infinity all count alike.
        labels: labels by feature, such as those of `label_features`.
        encoder: texts -> vectors `[n, d]`, such as the `encode` of a sentence encoder.
        judge: leaves out features whose description it says does not fit the query.
        fuse: join the ranking with another by reciprocal rank: "bm25" over the texts, or "dense" by `encoder`.

    Returns:
        The documents found; empty when nothing matches.

    Raises:
        InputError: an empty query, an argument out of range, `fuse` for a query without words, or no such feature.
    """
    import pandas as pd

    _check(m, sae, k, n_features, temperature, fuse, encoder)
    words = _words(query)
    if words is None and (fuse is not None or judge is not None):
        raise InputError("fuse= and judge= need a query with words: a text or example texts.")
    values, cost = normalised(emb), Cost()
    found = match(emb, query, values, n_features, m, sae, labels, encoder)
    if judge is not None and words is not None:
        found = _judged(found, emb, " / ".join(words), labels, judge, cost)
    rank = np.arange(len(found.features)) / max(len(found.features), 1)
    weight = np.exp(-rank / temperature)
    chosen = values[:, found.features]
    parts = {"features": np.asarray(chosen @ weight).ravel()}
    if fuse == "bm25" and words is not None:
        parts["bm25"] = bm25_scores(emb.documents["text"].tolist(), words).mean(axis=0)
    elif fuse == "dense" and words is not None and encoder is not None:
        parts["dense"] = _by_encoder(encoder, emb.documents["text"].tolist(), words)
    scores = parts["features"] if fuse is None else fuse_ranks([ranks_of(s) for s in parts.values()])
    order = np.argsort(-scores, kind="stable")[:k]
    texts, by = named(emb, found.features.tolist(), labels)
    table = pd.DataFrame({"feature": found.features, "description": texts, "labelled_by": by,
                          "similarity": found.similarity, "weight": weight})
    hits = order[scores[order] > 0]
    return Retrieval(_shown(query, words), hits, scores, parts, table, found.method, chosen, emb, cost)


def _check(
    m: Any, sae: Any, k: int, n_features: int, temperature: float, fuse: str | None, encoder: Encoder | None
) -> None:
    if (m is None) != (sae is None):
        raise InputError("give both m and sae, or neither.")
    if k < 1 or n_features < 1 or not temperature > 0:
        raise InputError(f"k={k}, n_features={n_features} and temperature={temperature}: all must be above 0.")
    if fuse is not None and fuse not in FUSED:
        raise InputError(f"fuse={fuse!r} is unknown; valid are {', '.join(FUSED)} and None.{closest(fuse, FUSED)}")
    if fuse == "dense" and encoder is None:
        raise InputError('fuse="dense" needs encoder=, which turns texts into vectors.')


def _words(query: Any) -> list[str] | None:
    """The texts of a query; None where it consists of features."""
    if isinstance(query, str):
        return [query]
    if hasattr(query, "token_mass"):
        return query.documents["text"].tolist()
    if isinstance(query, (list, tuple)) and query and all(isinstance(item, str) for item in query):
        return list(query)
    return None


def _shown(query: Any, words: list[str] | None) -> str:
    if words is None:
        return f"features {np.atleast_1d(query).tolist()}"[:200]
    return words[0] if len(words) == 1 else f"{len(words)} examples: {words[0][:100]} …"


def _judged(
    found: Match, emb: "SAEEmbedding", query: str, labels: Mapping[int, str] | None, judge: Judge, cost: Cost
) -> Match:
    texts, _ = named(emb, found.features.tolist(), labels)
    said = cost.ask("select", judge, [relevant(query, text) for text in texts])
    kept = np.array([bool(verdict(answer)) for answer in said], dtype=bool)
    method = f"{found.method}; {int(kept.sum())} of {len(kept)} kept by {name_of(judge)}"
    return Match(found.features[kept], found.similarity[kept], method)


def _by_encoder(encoder: Encoder, texts: list[str], words: list[str]) -> Float[np.ndarray, "documents"]:
    """Mean cosine with the query, moved to 0 to 2: every document has a place in a dense ranking."""
    vectors = encoded(encoder, [*words, *texts])
    return 1 + (vectors[len(words) :] @ vectors[: len(words)].T).mean(axis=1)

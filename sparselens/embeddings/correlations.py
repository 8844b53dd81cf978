"""Which features travel together: pairs that fire in the same documents more often than chance has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import check_comparable, made_by, named
from sparselens.embeddings.contrasts import check_aligned
from sparselens.embeddings.duplicates import BY_DECODER, BY_TOKENS, decoder_rows, pair_cosines, token_rows
from sparselens.embeddings.pairs import Pairs, find_pairs, same_token
from sparselens.embeddings.statistics import joint_p_values, q_values
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.sae.sae import SAE

WHICH = ("both", "a", "b")
_MODEL = ("model", "sae_sha256", "site")  # a prompt and its response may be wrapped in different roles
_TRIVIAL = 0.5
_SHOWN, _EXAMPLES = 20, 3


@dataclass(frozen=True, eq=False, repr=False)
class Correlations:
    """Pairs of features that fire in the same documents, made by `correlate`.

    Attributes:
        frame: a row a pair, as `to_frame` gives it.
        emb, other: the documents; `other` is None for pairs within one embedding.
        alpha: the q-value below which a pair counts.
        tests: how many pairs of candidates there were; the q-values count them all.
        trivial: how many pairs were left out because both fire on the same or on adjacent tokens.
        similarity: how the similarity of two features was measured.
        method: how the descriptions were made.
    """

    frame: "pandas.DataFrame"
    emb: "SAEEmbedding"
    other: "SAEEmbedding | None"
    alpha: float
    tests: int
    trivial: int
    similarity: str
    method: str

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a pair, the strongest first.

        Columns: `feature_a`, `feature_b`, `description_a`, `description_b`; `npmi` (normalised pointwise mutual
        information, 0 by chance, 1 never apart); `support` (documents with both); `freq_a`, `freq_b` (shares of
        documents); `co_occurrence` (the larger of P(a|b) and P(b|a)); `similarity` of the two features; `same_token`
        (share of the documents with both in which they peak on the same or adjacent tokens); `p_value` (Fisher's exact
        test, one-sided) and `q_value` (Benjamini-Hochberg over all pairs of candidates).
        """
        return self.frame.copy()

    def significant(self, alpha: float | None = None) -> "pandas.DataFrame":
        """The rows with `q_value` below `alpha`."""
        return self.frame[self.frame["q_value"] < (self.alpha if alpha is None else alpha)].copy()

    def interesting(self, min_npmi: float = 0.6, max_similarity: float = 0.2) -> "pandas.DataFrame":
        """Significant pairs that go together strongly though their features are not alike."""
        found = self.significant()
        return found[(found["npmi"] >= min_npmi) & (found["similarity"] < max_similarity)]

    def documents(self, pair: tuple[int, int], which: str = "both") -> "pandas.DataFrame":
        """The documents behind a pair, the strongest first.

        Args:
            pair: a feature of each side.
            which: documents in which "both" fire, or only "a", or only "b".

        Returns:
            `document`, `value_a`, `value_b`, and the columns of the documents; with two sides `other_text` too.

        Raises:
            InputError: no such feature, or an unknown `which`.
        """
        if which not in WHICH:
            raise InputError(f"which={which!r} is unknown; valid are {', '.join(WHICH)}.{closest(which, WHICH)}")
        sides = (self.emb, self.other or self.emb)
        values, on = zip(*(_column(e, e._feature(f)) for e, f in zip(sides, pair, strict=True)), strict=True)
        rows = {"both": on[0] & on[1], "a": on[0] & ~on[1], "b": on[1] & ~on[0]}[which]
        size = {"both": np.abs(values[0] * values[1]), "a": np.abs(values[0]), "b": np.abs(values[1])}[which]
        chosen = np.flatnonzero(rows)
        chosen = chosen[np.argsort(-size[chosen], kind="stable")]
        frame = self.emb.documents.iloc[chosen].reset_index(drop=True)
        if self.other is not None:
            frame["other_text"] = self.other.documents["text"].to_numpy()[chosen]
        for i, (name, column) in enumerate((("document", chosen), ("value_a", values[0][chosen]),
                                            ("value_b", values[1][chosen]))):
            frame.insert(i, name, column)
        return frame

    @property
    def notes(self) -> list[str]:
        """What a reader must know: sizes, tests, what was left out, how similarity was measured, who described."""
        sides = "" if self.other is None else " in each of two embeddings, row by row"
        notes = [f"{len(self.emb):,} documents{sides}; {self.tests:,} pairs of candidates, {len(self):,} shown; "
                 f"{len(self.significant()):,} of these at q < {self.alpha:g} (Fisher's exact test, one-sided).",
                 f"Similarity of features: {self.similarity}. Descriptions: {self.method}."]
        if self.trivial:
            notes.append(f"{self.trivial:,} pairs left out that fire on the same or adjacent tokens.")
        return notes

    def examples(self, a: int, b: int, k: int = _EXAMPLES) -> dict[str, list[dict[str, Any]]]:
        """The strongest documents with both features of a pair, marked for each.

        Returns:
            `{"a": rows, "b": rows}`, at most k each, of the same documents; a row has `tokens`, `values` (one number a
            token), `title` and `document`.
        """
        documents = self.documents((a, b))["document"][:k].tolist()
        sides = zip("ab", (self.emb, self.other or self.emb), (a, b), strict=True)
        return {side: [{"tokens": emb.tokens(d), "values": emb.activations(d, f), "title": f"text {d}, feature {f}",
                        "document": d} for d in documents] for side, emb, f in sides}

    def explore(self) -> Any:
        """A live network of the pairs: set the threshold, open a pair, read the documents with both features."""
        from sparselens.views import network_view

        labels = {int(f): text for side in "ab"
                  for f, text in zip(self.frame[f"feature_{side}"], self.frame[f"description_{side}"], strict=True)}
        names = None if self.other is None else ("first side", "other side")
        return network_view(self.frame, self.examples, labels=labels, names=names, title="Features that come together",
                            notes=self.notes).explore()

    def plot(
        self, ax: "matplotlib.axes.Axes | None" = None, min_npmi: float = 0.6, max_similarity: float = 0.2
    ) -> "matplotlib.axes.Axes":
        """Draw NPMI against the similarity of the features, the corner of `interesting` boxed. Returns the axes."""
        from sparselens.views import pair_scatter

        columns = (self.frame[name].to_numpy() for name in ("npmi", "similarity", "support"))
        return pair_scatter(*columns, corner=(min_npmi, max_similarity), axis=self.similarity, ax=ax)

    def __repr__(self) -> str:
        return "Correlations: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows: list[list[Any]] = [["pair", "descriptions", "NPMI", "documents", "similarity", "q"]]
        for r in self.frame.head(_SHOWN).itertuples():
            rows.append([f"{r.feature_a} & {r.feature_b}", f"{r.description_a} & {r.description_b}", f"{r.npmi:.3f}",
                         int(r.support), float(r.similarity), f"{r.q_value:.2g}"])
        return report_html(" ".join(self.notes), rows)


def correlate(
    emb: "SAEEmbedding",
    other: "SAEEmbedding | None" = None,
    *,
    min_npmi: float = 0.3,
    min_support: int = 5,
    max_frequency: float = 0.5,
    top: int = 5000,
    alpha: float = 0.05,
    drop_trivial: bool = True,
    paired: str | None = None,
    sae: "SAE | None" = None,
    threshold: float = 0.0,
    min_tokens: int = 1,
    labels: Mapping[int, str] | None = None,
) -> Correlations:
    """Find pairs of features that fire in the same documents more often than chance has it (Jiang, Sun et al., 2025).

    The strength is the normalised pointwise mutual information of firing. Rare pairs reach 1 by accident, so a pair
    needs `min_support` documents with both, and gets a p-value; the paper has neither.

    Args:
        emb: the documents.
        other: the other side of each document, row by row, such as responses to prompts; pairs are then a feature of
            `emb` and one of `other`.
        min_npmi: weakest pair to keep, -1 to 1.
        min_support: documents with both features.
        max_frequency: leave out features that fire in a larger share of documents: mostly syntax.
        top: look at this many features of each side, the most frequent ones. Memory grows with its square.
        alpha: the q-value below which a pair counts.
        drop_trivial: leave out pairs that are strongest on the same or on adjacent tokens in at least half of the
            documents with both. Not asked of two sides.
        paired: a carried column that must agree row by row in both embeddings.
        sae: the dictionary, to measure the similarity of two features by their decoder rows; without it by the tokens
            they fire on.
        threshold: a token counts as firing when its code is larger than this in magnitude.
        min_tokens: tokens of a document that must fire.
        labels: descriptions of features, by number; others are described by the tokens they fire on.

    Raises:
        InputError: a setting out of range, or two embeddings whose rows or features do not belong together.
        FitError: this SAE is not the one the texts were embedded with.
    """
    if not (-1 <= min_npmi <= 1 and 0 < alpha < 1 and 0 < max_frequency <= 1 and min_support >= 1 and top >= 2):
        raise InputError(f"min_npmi={min_npmi}, alpha={alpha}, max_frequency={max_frequency}, "
                         f"min_support={min_support}, top={top}: they must lie in -1 to 1, 0 to 1, 0 to 1, and be at "
                         "least 1 and 2.")
    fires, across = emb.fires(threshold, min_tokens), None
    if other is not None:
        check_comparable(emb, other, _MODEL)
        check_aligned({"the first": emb, "the other": other}, paired)
        across = other.fires(threshold, min_tokens)
    pairs = find_pairs(fires, across, min_support=min_support, min_npmi=min_npmi, max_frequency=max_frequency, top=top)
    near = np.full(len(pairs.a), np.nan) if other is not None else same_token(emb, fires, pairs.a, pairs.b)
    trivial = near >= _TRIVIAL if drop_trivial else np.zeros(len(near), dtype=bool)
    pairs, near = pairs._replace(**{n: getattr(pairs, n)[~trivial] for n in pairs._fields[:-1]}), near[~trivial]
    frame = _frame(emb, other or emb, pairs, near, sae)
    texts, by = [], []
    for side, emb_of in (("feature_a", emb), ("feature_b", other or emb)):
        found, who = named(emb_of, (known := sorted(set(frame[side].tolist()))), labels)
        texts.append(frame[side].map(dict(zip(known, found, strict=True))))
        by += who
    frame.insert(2, "description_a", texts[0])
    frame.insert(3, "description_b", texts[1])
    return Correlations(frame, emb, other, alpha, pairs.tests, int(trivial.sum()), BY_TOKENS if sae is None else
                        BY_DECODER, made_by(by))


def _frame(
    emb: "SAEEmbedding", other: "SAEEmbedding", pairs: Pairs, near: np.ndarray, sae: "SAE | None"
) -> "pandas.DataFrame":
    """The table without descriptions, the strongest pair first."""
    import pandas as pd

    n = len(emb)
    p = joint_p_values(pairs.both, pairs.n_a, pairs.n_b, n)
    frame = pd.DataFrame({
        "feature_a": pairs.a,
        "feature_b": pairs.b,
        "npmi": pairs.npmi,
        "support": pairs.both,
        "freq_a": pairs.n_a / n,
        "freq_b": pairs.n_b / n,
        "co_occurrence": pairs.both / np.minimum(pairs.n_a, pairs.n_b),
        "similarity": _similarity(emb, other, pairs, sae),
        "same_token": near,
        "p_value": p,
        "q_value": q_values(p, pairs.tests),
    })
    order = np.lexsort((pairs.b, pairs.a, p, -pairs.npmi))
    return frame.iloc[order].reset_index(drop=True)


def _similarity(emb: "SAEEmbedding", other: "SAEEmbedding", pairs: Pairs, sae: "SAE | None") -> np.ndarray:
    """How alike the features of each pair are."""
    rows, at = [], []
    index: dict[str, int] = {}
    for side, features in ((emb, pairs.a), (other, pairs.b)):
        known, back = np.unique(features, return_inverse=True)
        rows.append(token_rows(side.token_mass, known, index) if sae is None else decoder_rows(side, sae, known))
        at.append(back)
    if sae is None:
        rows[0].resize(rows[0].shape[0], rows[1].shape[1])  # the second side may have tokens the first has not
    return pair_cosines(rows[0], rows[1], at[0], at[1])


def _column(emb: "SAEEmbedding", feature: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled values of a feature, and where it fires, `[documents]` each."""
    column = emb.matrix[:, [feature]].tocoo()
    values, on = np.zeros(len(emb)), np.zeros(len(emb), dtype=bool)
    values[column.row], on[column.row] = column.data, True
    return values, on

"""Which features tell two sets of texts apart: frequencies, intervals, p- and q-values, and texts to look at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.descriptions import LENS, METHOD, fires_on, promotes, sentence
from sparselens.embeddings.statistics import match_lengths, newcombe, p_values, q_values
from sparselens.errors import InputError
from sparselens.files import write_whole

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

COLUMNS = ["feature", "description", "freq_a", "freq_b", "difference", "ci_low", "ci_high", "p_value", "q_value"]
_SAME = ("model", "sae_sha256", "site", "role", "skip_first")
_SHOWN, _EXAMPLES = 30, 3
_LENGTHS_DIFFER = 1.2


@dataclass(frozen=True, eq=False, repr=False)
class DatasetDiff:
    """The difference of two sets of texts, made by `diff`.

    Attributes:
        frame: a row a feature, as `to_frame` gives it.
        a, b: the two sets that were compared.
        alpha: 1 minus the confidence of the intervals, and the default of `significant`.
        names: what the two sets are called.
        method: how the descriptions were made.
    """

    frame: "pandas.DataFrame"
    a: "SAEEmbedding"
    b: "SAEEmbedding"
    alpha: float
    names: tuple[str, str]
    method: str = METHOD

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each feature that fires anywhere, the largest difference first.

        Columns: `feature`, `description`, `freq_a` and `freq_b` (shares of documents), `difference` (a minus b) with
        its interval `ci_low` to `ci_high`, `p_value`, and `q_value` over all rows (Benjamini-Hochberg).
        """
        return self.frame.copy()

    def significant(self, alpha: float | None = None) -> "pandas.DataFrame":
        """The rows with `q_value` below `alpha`."""
        return self.frame[self.frame["q_value"] < (self.alpha if alpha is None else alpha)].copy()

    @property
    def notes(self) -> list[str]:
        """What a reader must know: sizes, lengths, method, and a warning when lengths differ by more than 20 %."""
        means = [float(side.documents["n_tokens"].mean()) for side in (self.a, self.b)]
        sizes = [f"{len(side):,} texts of {mean:.1f} tokens on average in {name}"
                 for side, mean, name in zip((self.a, self.b), means, self.names, strict=True)]
        found = len(self.significant())
        notes = [f"{'; '.join(sizes)}.", f"{len(self):,} features fire; {found:,} differ at q < {self.alpha:g}.",
                 f"Descriptions: {self.method}."]
        if max(means) > _LENGTHS_DIFFER * min(means):
            notes.append("Warning: the lengths differ by more than 20 %. Longer texts fire more features, so part of "
                         "this is length. Compare with diff(..., match_length=True).")
        return notes

    @cached_property
    def _columns(self) -> "tuple[scipy.sparse.csc_matrix, scipy.sparse.csc_matrix]":
        return self.a.matrix.tocsc(), self.b.matrix.tocsc()

    def examples(self, feature: int, k: int = _EXAMPLES) -> dict[str, list[dict[str, Any]]]:
        """The texts of both sets in which a feature is strongest.

        Returns:
            `{"a": rows, "b": rows}`, at most k each; a row has `tokens`, `values` (one number a token) and `title`.
        """
        out: dict[str, list[dict[str, Any]]] = {}
        for side, emb, matrix in zip("ab", (self.a, self.b), self._columns, strict=True):
            feature = emb._feature(feature)
            span = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
            values, documents = matrix.data[span], matrix.indices[span]
            best = np.argsort(-np.abs(values), kind="stable")[:k]
            out[side] = [{"tokens": emb.tokens(int(d)), "values": emb.activations(int(d), feature),
                          "title": f"text {d}, {emb.info['pooling']} {v:.3g}"}
                         for d, v in zip(documents[best], values[best], strict=True)]
        return out

    def describe(self, m: "LiveModel", sae: "SAE", top: int = 50) -> "DatasetDiff":
        """The same, with the tokens that the first `top` features promote added to their descriptions (logit lens).

        Raises:
            InputError: the dictionary is not of the residual stream.
        """
        frame = self.to_frame()
        raised = promotes(frame["feature"][:top].tolist(), m, sae)
        added = [" · ".join(part for part in (text, sentence((), tokens)) if part)
                 for text, tokens in zip(frame["description"], raised, strict=False)]
        frame["description"] = [*added, *frame["description"][len(added) :]]
        return replace(self, frame=frame, method=f"{METHOD}; {LENS} for the first {len(added)}")

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 20) -> "matplotlib.axes.Axes":
        """Draw the largest differences with their intervals. Returns the axes."""
        from sparselens.views import forest

        return forest(self.frame, ax, top, self.names)

    def explore(self) -> Any:
        """A live widget on the text in which the strongest feature fires most, with the next strongest beside it.

        Raises:
            InputError: no feature fires.
        """
        if not len(self):
            raise InputError("no feature fires in either set: there is nothing to look at.")
        first = self.frame.iloc[0]
        emb, matrix = (self.a, self._columns[0]) if first.freq_a >= first.freq_b else (self.b, self._columns[1])
        column = matrix[:, [int(first.feature)]].tocoo()
        document = int(column.row[np.argmax(np.abs(column.data))])
        return emb.highlight(document, self.frame["feature"][:5].tolist()).explore()

    def save(self, path: str | Path) -> Path:
        """Write the table with its texts as one HTML file that opens without a network. Returns the path."""
        from sparselens.views import diff_page

        path = Path(path)
        if path.suffix.lower() != ".html":
            raise InputError(f"cannot save to {path.name!r}: the name must end in .html.")
        with write_whole(path) as temporary:
            temporary.write_text(diff_page(*self._shown(), **self._words()), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return "DatasetDiff: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import diff_html

        return diff_html(*self._shown(), **self._words())

    def _shown(self) -> tuple["pandas.DataFrame", dict[int, dict[str, list[dict[str, Any]]]]]:
        features = self.frame["feature"][:_SHOWN]
        return self.frame, {int(f): self.examples(int(f)) for f in features}

    def _words(self) -> dict[str, Any]:
        title = f"{self.names[0]} against {self.names[1]}"
        return {"title": title, "notes": self.notes, "names": self.names}


def diff(
    emb_a: "SAEEmbedding",
    emb_b: "SAEEmbedding",
    *,
    alpha: float = 0.05,
    threshold: float = 0.0,
    min_tokens: int = 1,
    match_length: bool = False,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> DatasetDiff:
    """Find the features that occur in more documents of one set than of the other (Jiang, Sun et al., 2025).

    Each feature that fires anywhere gets its share of documents in both sets, their difference with a confidence
    interval (Newcombe's, from two Wilson intervals), a p-value (Fisher's exact test where an expected count is below
    10, else a z-test), and a q-value over all of them (Benjamini-Hochberg). The paper itself tests nothing.

    Args:
        emb_a, emb_b: two embeddings made by the same model and dictionary.
        alpha: 1 minus the confidence of the intervals, and the q-value at which a difference counts.
        threshold: a token counts as firing when its code is larger than this in magnitude.
        min_tokens: tokens of a document that must fire.
        match_length: compare only as many documents of each length (within 10 %) as both sets have, drawn at random.
            Longer documents fire more features, and without this a difference in length is found as one in content.
        seed: of that draw.
        labels: descriptions of features, by number; others are described by the tokens they fire on.
        names: what to call the two sets.

    Raises:
        InputError: the embeddings come from another model, dictionary, site or role, or no lengths match.
    """
    import pandas as pd

    _check(emb_a, emb_b, alpha)
    if match_length:
        lengths = [e.documents["n_tokens"].to_numpy() for e in (emb_a, emb_b)]
        chosen = match_lengths(lengths[0], lengths[1], seed)
        emb_a, emb_b = (e.subset(mask) for e, mask in zip((emb_a, emb_b), chosen, strict=True))
    n_a, n_b = len(emb_a), len(emb_b)
    hits = [np.bincount(e.fires(threshold, min_tokens).indices, minlength=e.d_sae) for e in (emb_a, emb_b)]
    features = np.flatnonzero(hits[0] + hits[1])
    hits_a, hits_b = hits[0][features], hits[1][features]
    low, high = newcombe(hits_a, n_a, hits_b, n_b, alpha)
    p = p_values(hits_a, n_a, hits_b, n_b)
    labels = dict(labels or {})
    described = [f for f in features.tolist() if f not in labels]
    tops = fires_on(emb_a.token_mass.joined(emb_b.token_mass), described)
    texts = labels | {f: sentence(top) for f, top in zip(described, tops, strict=True)}
    frame = pd.DataFrame({
        "feature": features,
        "description": [texts[f] for f in features.tolist()],
        "freq_a": hits_a / n_a,
        "freq_b": hits_b / n_b,
        "difference": hits_a / n_a - hits_b / n_b,
        "ci_low": low,
        "ci_high": high,
        "p_value": p,
        "q_value": q_values(p),
    }, columns=COLUMNS)
    order = np.lexsort((features, frame["p_value"], -frame["difference"].abs()))
    method = f"{METHOD}; given labels for {len(features) - len(described)}" if labels else METHOD
    return DatasetDiff(frame.iloc[order].reset_index(drop=True), emb_a, emb_b, alpha, names, method)


def _check(a: "SAEEmbedding", b: "SAEEmbedding", alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} must lie between 0 and 1.")
    for key in _SAME:
        if a.info[key] != b.info[key]:
            raise InputError(f"these embeddings cannot be compared: {key} is {a.info[key]!r:.80} in one and "
                             f"{b.info[key]!r:.80} in the other. Embed both with the same model, dictionary and role.")

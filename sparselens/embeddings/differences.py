"""Which features tell sets of texts apart: frequencies, intervals, p- and q-values, and texts to look at.

The question and its use on texts are those of Jiang, Sun et al., 2025 (arXiv 2512.10092).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.codes import check_comparable, made_by, named
from sparselens.embeddings.contrasts import arranged, check_aligned, check_way, contrast, how
from sparselens.embeddings.descriptions import LENS, promotes, sentence
from sparselens.embeddings.duplicates import decoder_rows, first_alike
from sparselens.embeddings.levels import LevelDiffs, levels_of
from sparselens.embeddings.statistics import match_lengths
from sparselens.errors import InputError
from sparselens.files import write_whole

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas
    import scipy.sparse

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.embeddings.labels import Labeler
    from sparselens.embeddings.proposals import Proposals
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

_SHOWN, _EXAMPLES = 30, 3
_LENGTHS_DIFFER = 1.2


@dataclass(frozen=True, eq=False, repr=False)
class DatasetDiff:
    """The difference of a set of texts from another, or from several others, made by `diff`.

    Attributes:
        frame: a row a feature, as `to_frame` gives it.
        a: the set that was compared,
        others: with which others, by name.
        alpha: 1 minus the confidence of the intervals, and the default of `significant`.
        name: what the set is called.
        method: how the descriptions were made.
        test: how the p-values were made.
    """

    frame: "pandas.DataFrame"
    a: "SAEEmbedding"
    others: Mapping[str, "SAEEmbedding"]
    alpha: float
    name: str
    method: str
    test: str

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def b(self) -> "SAEEmbedding":
        """The other set, where there is one.

        Raises:
            InputError: there are several.
        """
        if len(self.others) > 1:
            raise InputError(f"compared with {len(self.others)} sets: they are in .others, by name "
                             f"({', '.join(self.others)}).")
        return next(iter(self.others.values()))

    @property
    def names(self) -> tuple[str, str]:
        """What the two sides are called."""
        first, *more = self.others
        return self.name, f"the nearest of {len(self.others)} others" if more else first

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each feature that fires anywhere, the largest difference first.

        Columns: `feature`, `description`, `freq_a` and `freq_b` (shares of documents), `difference` (a minus b) with
        its interval `ci_low` to `ci_high`, `p_value`, and `q_value` over all rows (Benjamini-Hochberg). What was asked
        for comes behind: `relative`, the share of each of several others as `freq[name]`, or `repeats` (see
        `distinct`).
        """
        return self.frame.copy()

    def significant(self, alpha: float | None = None) -> "pandas.DataFrame":
        """The rows with `q_value` below `alpha`."""
        return self.frame[self.frame["q_value"] < (self.alpha if alpha is None else alpha)].copy()

    def top(self, n: int = 20) -> "pandas.DataFrame":
        """The first rows of both directions: half of `n` (rounded up) more frequent in a, half less, in their order."""
        more = self.frame.index[self.frame["difference"] > 0][: n - n // 2]
        less = self.frame.index[self.frame["difference"] < 0][: n // 2]
        return self.frame.loc[sorted([*more, *less])].copy()

    def distinct(
        self, sae: "SAE | None" = None, *, top: int = 500, jaccard: float = 0.8, cosine: float = 0.7
    ) -> "DatasetDiff":
        """The first `top` rows without those that nearly repeat a row above them.

        Args:
            sae: the dictionary, to compare decoder rows too; without it only the documents are compared.
            top: how many rows are looked at; later ones are left out.
            jaccard: a feature repeats another when their sets of documents overlap by more than this share,
            cosine: or when the cosine of their decoder rows is larger.

        Returns:
            The same with fewer rows, and the column `repeats`: the features left out for each. The q-values stay.

        Raises:
            FitError: this SAE is not the one the texts were embedded with.
        """
        from scipy.sparse import vstack

        frame = self.frame.head(top).reset_index(drop=True)
        features = frame["feature"].to_numpy(dtype=np.int64)
        rows = None if sae is None else decoder_rows(self.a, sae, features)
        fires = vstack([e.fires()[:, features] for e in (self.a, *self.others.values())], format="csr")
        kept = first_alike(fires, rows, jaccard, cosine)
        frame["repeats"] = [features[(kept == i) & (np.arange(len(kept)) != i)].tolist() for i in range(len(kept))]
        return replace(self, frame=frame[kept == np.arange(len(kept))].reset_index(drop=True))

    @property
    def notes(self) -> list[str]:
        """What a reader must know: sizes, lengths, empty texts, how it was tested, who described the features."""
        sets = {self.name: self.a, **self.others}
        lengths = {name: e.documents["n_tokens"] for name, e in sets.items()}
        sizes = [f"{len(n):,} texts of {n.mean():.1f} tokens on average in {name}" for name, n in lengths.items()]
        found = len(self.significant())
        notes = [f"{'; '.join(sizes)}.",
                 f"{len(self):,} features compared; {found:,} differ at q < {self.alpha:g} ({self.test}).",
                 f"Descriptions: {self.method}."]
        empty = [f"{int((n == 0).sum()):,} in {name}" for name, n in lengths.items() if (n == 0).any()]
        if empty:
            notes.append(f"Texts without a pooled token: {', '.join(empty)}. They count as texts in which nothing "
                         "fires.")
        means = [float(n.mean()) for n in lengths.values()]
        if max(means) > _LENGTHS_DIFFER * min(means):
            notes.append("Warning: the lengths differ by more than 20 %. Longer texts fire more features, so part of "
                         "this is length. Compare with diff(..., match_length=True).")
        return notes

    @cached_property
    def _columns(self) -> "dict[str, list[tuple[SAEEmbedding, scipy.sparse.csc_matrix]]]":
        return {"a": [(self.a, self.a.matrix.tocsc())], "b": [(e, e.matrix.tocsc()) for e in self.others.values()]}

    def examples(self, feature: int, k: int = _EXAMPLES) -> dict[str, list[dict[str, Any]]]:
        """The texts of both sides in which a feature is strongest.

        Returns:
            `{"a": rows, "b": rows}`, at most k each; a row has `tokens`, `values` (one number a token), `title` and
            `document`, its number in its set; several sets are counted through, one after the other.
        """
        out: dict[str, list[dict[str, Any]]] = {}
        for side, sets in self._columns.items():
            found: list[tuple[float, int, int, Any]] = []
            for (emb, matrix), start in zip(sets, np.cumsum([0, *(len(e) for e, _ in sets)]).tolist(), strict=False):
                feature = emb._feature(feature)
                span = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
                values, documents = matrix.data[span], matrix.indices[span]
                best = np.argsort(-np.abs(values), kind="stable")[:k]
                found += [(float(values[i]), int(documents[i]), start, emb) for i in best]
            found.sort(key=lambda one: -abs(one[0]))
            out[side] = [{"tokens": emb.tokens(d), "values": emb.activations(d, feature), "document": start + d,
                          "title": f"text {start + d}, {emb.info['pooling']} {value:.3g}"}
                         for value, d, start, emb in found[:k]]
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
        return replace(self, frame=frame, method=f"{self.method}; {LENS} for the first {len(added)}")

    def hypotheses(self, labeler: "Labeler | None" = None, n: int = 10) -> "Proposals":
        """State in words how the sets differ; see `sparselens.embeddings.hypotheses`."""
        from sparselens.embeddings.proposals import hypotheses

        return hypotheses(self, labeler, n)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 20) -> "matplotlib.axes.Axes":
        """Draw the largest differences with their intervals. Returns the axes."""
        from sparselens.views import forest

        return forest(self.frame, ax, top, self.names)

    def explore(self) -> Any:
        """A live table: open a feature to read its texts in both sets, mark features, and read the choice in Python.

        The widget has `.feature` (the open one), `.picked` (those marked), `.text` (side and number of the chosen
        text), `.selected` and `.observe`.

        Raises:
            InputError: no feature fires.
        """
        from sparselens.views.diff_view import diff_view

        if not len(self):
            raise InputError("no feature fires in either set: there is nothing to look at.")
        return diff_view(self.frame, self.examples, **self._words()).explore()

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
    emb_b: "SAEEmbedding | Sequence[SAEEmbedding] | Mapping[str, SAEEmbedding] | None" = None,
    *,
    by: str | None = None,
    others: str = "max_freq",
    paired: bool | str = False,
    alpha: float = 0.05,
    threshold: float = 0.0,
    min_tokens: int = 1,
    min_support: int = 1,
    coverage: tuple[float, float] = (0.0, 1.0),
    relative: bool = False,
    match_length: bool = False,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    names: Sequence[str] | None = None,
) -> DatasetDiff | LevelDiffs:
    """Find the features that occur in more documents of one set than of another (Jiang, Sun et al., 2025).

    Each feature that fires anywhere gets its share of documents in both sets, their difference with a confidence
    interval (Newcombe's, from two Wilson intervals), a p-value (Fisher's exact test where an expected count is below
    10, else a z-test), and a q-value over all of them (Benjamini-Hochberg). The paper itself tests nothing.

    Against several sets a feature differs when it is more frequent in `emb_a` than in each of them, or less frequent
    than in each: `difference` is the distance from the nearest of them, 0 in between, and the p-value the largest.

    Args:
        emb_a: an embedding.
        emb_b: another one, or several (a list, or a dict by name), made by the same model and dictionary.
        by: instead of `emb_b`, a carried column: each of its values is compared with all other documents.
        others: with several sets, "max_freq" holds the frequency against that of each other set. "any_aligned" is
            stricter, for answers to the same prompts: against the share of rows in which any other set fires, and
            from below against the share in which all do.
        paired: rows belong together, such as answers to the same prompts: McNemar's exact test and Newcombe's interval
            for paired data. Give the name of a carried column, such as "prompt", to have it checked row by row.
        alpha: 1 minus the confidence of the intervals, and the q-value at which a difference counts.
        threshold: a token counts as firing when its code is larger than this in magnitude.
        min_tokens: tokens of a document that must fire.
        min_support: documents, of all sets together, in which a feature must fire to be tested at all.
        coverage: leave out features whose lower share is below the first or whose higher share is above the second
            (after the tests).
        relative: order by `difference / max(freq_a, freq_b)`, in a column `relative`, instead of by the difference.
        match_length: compare only as many documents of each length (within 10 %) as both sets have, drawn at random.
            Longer documents fire more features, and without this a difference in length is found as one in content.
        seed: of that draw.
        labels: descriptions of features, by number; others are described by the tokens they fire on.
        names: what to call `emb_a` and the other sets.

    Raises:
        InputError: the embeddings come from another model, dictionary, site or role, no lengths match, or rows that
            should belong together do not.
    """
    check_way(others, coverage, min_support, alpha)
    settings: dict[str, Any] = {"others": others, "alpha": alpha, "threshold": threshold, "min_tokens": min_tokens,
                                "min_support": min_support, "coverage": coverage, "relative": relative,
                                "match_length": match_length, "seed": seed, "labels": labels}
    if by is None:
        sets = _as_sets(emb_a, emb_b, names)
        for emb in list(sets.values())[1:]:
            check_comparable(emb_a, emb)
        if paired or others == "any_aligned":
            check_aligned(sets, paired if isinstance(paired, str) else None)
        return compare(sets, paired=bool(paired), **settings)
    if emb_b is not None or paired or others != "max_freq":
        raise InputError(f"by={by!r} compares parts of one embedding: give no second one, and leave out paired and "
                         "others.")
    parts = levels_of(emb_a, by)
    return LevelDiffs(by, {
        level: compare({level: emb_a.subset(mask), "the rest": emb_a.subset(rest)}, described_by=emb_a, **settings)
        for level, (mask, rest) in parts.items()
    })


def compare(
    sets: dict[str, "SAEEmbedding"],
    *,
    others: str = "max_freq",
    alpha: float = 0.05,
    threshold: float = 0.0,
    min_tokens: int = 1,
    min_support: int = 1,
    coverage: tuple[float, float] = (0.0, 1.0),
    relative: bool = False,
    match_length: bool = False,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    paired: bool = False,
    described_by: "SAEEmbedding | None" = None,
) -> DatasetDiff:
    """The first of some sets that may be compared against the others, as `diff` says.

    Args:
        sets: embeddings by name.
        described_by: where the features are described from; all sets by default.
    """
    if match_length:
        if len(sets) > 2 or paired:
            raise InputError("match_length=True draws texts from two sets that do not belong together row by row: "
                             "compare them one by one, and not paired.")
        lengths = [e.documents["n_tokens"].to_numpy() for e in sets.values()]
        chosen = match_lengths(lengths[0], lengths[1], seed)
        sets = {name: e.subset(mask) for (name, e), mask in zip(sets.items(), chosen, strict=True)}
    fires = {name: e.fires(threshold, min_tokens) for name, e in sets.items()}
    first, *rest = sets
    frame = contrast(fires.pop(first), fires, way=others, paired=paired, alpha=alpha, min_support=min_support)
    frame = arranged(frame, coverage, relative)
    texts, by = named(described_by or list(sets.values()), frame["feature"].tolist(), labels)
    frame.insert(1, "description", texts)
    return DatasetDiff(frame, sets[first], {name: sets[name] for name in rest}, alpha, first, made_by(by),
                       how(len(rest), others, paired))


def _as_sets(
    emb_a: "SAEEmbedding",
    emb_b: "SAEEmbedding | Sequence[SAEEmbedding] | Mapping[str, SAEEmbedding] | None",
    names: Sequence[str] | None,
) -> dict[str, "SAEEmbedding"]:
    """All sets by name, `emb_a` first."""
    if emb_b is None:
        raise InputError("give a second embedding (or several), or by=... with a column of the first.")
    if isinstance(emb_b, Mapping):
        called, embs = ["A", *map(str, emb_b)], [emb_a, *emb_b.values()]
    else:
        embs = [emb_a, *emb_b] if isinstance(emb_b, Sequence) else [emb_a, emb_b]
        called = [chr(ord("A") + i) if i < 26 else f"set {i + 1}" for i in range(len(embs))]
    called = list(map(str, called if names is None else names))
    if len(embs) < 2 or len(called) != len(embs) or len(set(called)) < len(called):
        raise InputError(f"{len(embs)} sets need as many different names, and at least two; got {called}.")
    return dict(zip(called, embs, strict=True))

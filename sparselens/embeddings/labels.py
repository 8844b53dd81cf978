"""Labels for features, written by a labeler and scored by a judge, on marked texts (Jiang, Sun et al., 2025)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.embeddings.accounting import Cost, name_of
from sparselens.embeddings.codes import check_comparable, named
from sparselens.embeddings.prompts import MAX_TOKENS, at_marks, label_prompt, marked, read_label, verdict
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding

Labeler = Callable[[list[str]], Sequence[str]]
Judge = Callable[[list[str]], Sequence[Any]]
KEEP = 0.75  # a label of a difference is kept from this score on
_POOL = 3  # texts are drawn from the strongest so many times k
_ROWS = 40  # rows of an aligned comparison: a quarter scores the old label, half make a new one, a quarter scores it


@dataclass(frozen=True, eq=False, repr=False)
class FeatureLabels(Mapping[int, str]):
    """Labels by feature, made by `label_features` or `relabel_features`. Give it wherever `labels=` is asked for.

    Attributes:
        frame: a row a feature, as `to_frame` gives it.
        labelled_by, judged_by: who wrote and who scored them; `judged_by` is None without a judge.
        cost: prompts, tokens and seconds of the stages "label" and "score".
        unclear: answers of the judge that were neither yes nor no; they count as no.
    """

    frame: "pandas.DataFrame"
    labelled_by: str
    judged_by: str | None
    cost: Cost
    unclear: int = 0

    def _known(self) -> dict[int, str]:
        kept = self.frame[self.frame["kept"]] if "kept" in self.frame else self.frame
        return {int(f): label for f, label in zip(kept["feature"], kept["label"], strict=True) if label}

    def __getitem__(self, feature: int) -> str:
        return self._known()[feature]

    def __iter__(self) -> Iterator[int]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def to_frame(self) -> "pandas.DataFrame":
        """A row a feature: `feature`, `label`, `explanation`, `score` and who made it.

        `score` is the judge's accuracy, half of it over texts in which the feature fires, half over texts in which it
        does not: 0.5 is chance. It is NaN without a judge or without texts to score on.
        """
        return self.frame.copy()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = 20) -> "matplotlib.axes.Axes":
        """Draw the scores of the first `top` labels. Returns the axes."""
        from sparselens.views import score_bars

        shown = self.frame[:top]
        names = [f"{f} · {label}" for f, label in zip(shown["feature"], shown["label"], strict=True)]
        return score_bars(names, shown["score"], ax, "accuracy of the judge", reference=0.5)

    def __repr__(self) -> str:
        by = f", scored by {self.judged_by}" if self.judged_by else ""
        return f"FeatureLabels({len(self)} of {len(self.frame)} features, labelled by {self.labelled_by}{by})"

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows = [("feature", "label", "score")]
        rows += [(r.feature, r.label, r.score) for r in self.frame.head(30).itertuples()]
        return report_html(repr(self), rows)


class Sample(NamedTuple):
    """Marked texts of one feature: those a label is made from, and those it is scored on."""

    positives: list[str]
    negatives: list[str]
    test_positives: list[str]
    test_negatives: list[str]


def label_features(
    emb: "SAEEmbedding",
    features: int | Sequence[int],
    labeler: Labeler,
    judge: Judge | None = None,
    *,
    against: "SAEEmbedding | None" = None,
    k: int = 10,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> FeatureLabels:
    """Have features labelled from `k` texts in which they fire, marked << so >>, and `k` in which they do not.

    The texts in which a feature fires are drawn at random from the strongest. With a judge each label is scored on
    other texts than it was made from, k of each kind again; a feature that fires in fewer than 2 k texts has half of
    them for each.

    Args:
        emb: embedded texts.
        features: which features.
        labeler: prompts -> answers, such as a `ChatAPI` or a `LocalLabeler`.
        judge: questions -> "YES"/"NO" or 1/0.
        against: where the texts come from in which a feature does not fire; `emb` itself by default.
        k: texts of each kind.
        max_tokens: each text is cut to so many tokens around the strongest.
        seed: of the draw.

    Raises:
        InputError: no such feature, a feature that fires nowhere, or a labeler or judge that returns another number of
            answers than it was asked for.
    """
    import pandas as pd

    other = emb if against is None else against
    check_comparable(emb, other)
    chosen = [emb._feature(int(f)) for f in np.atleast_1d(features).tolist()]
    if k < 1 or not chosen:
        raise InputError(f"give at least one feature, and k of at least 1 (k={k}).")
    random = np.random.default_rng(seed)
    columns = emb.matrix.tocsc(), other.matrix.tocsc()
    samples = [_sample(emb, other, columns, f, k, max_tokens, random) for f in chosen]
    cost = Cost.of(emb, *(() if against is None else (against,)))
    answers = cost.ask("label", labeler, [label_prompt(s.positives, s.negatives) for s in samples])
    read = [read_label(answer) for answer in answers]
    scores, unclear = _scores(cost, judge, [label for label, _ in read], samples)
    frame = pd.DataFrame({
        "feature": chosen,
        "label": [label for label, _ in read],
        "explanation": [explanation for _, explanation in read],
        "score": scores,
        "n_scored": [len(s.test_positives) + len(s.test_negatives) if judge else 0 for s in samples],
        "labelled_by": name_of(labeler),
        "judged_by": name_of(judge) if judge else None,
    })
    return FeatureLabels(frame, name_of(labeler), name_of(judge) if judge else None, cost, unclear)


def _sample(
    emb: "SAEEmbedding", other: "SAEEmbedding", columns: Any, feature: int, k: int, limit: int,
    random: np.random.Generator,
) -> Sample:
    matrix, others = columns
    span = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
    fires, values = matrix.indices[span], np.abs(matrix.data[span])
    if not len(fires):
        raise InputError(f"feature {feature} fires in none of these texts, so there is nothing to label it from.")
    pool = fires[np.argsort(-values, kind="stable")][: 2 * _POOL * k]
    positives = random.permutation(pool)[: 2 * k]
    n = min(k, -(-len(positives) // 2))  # with one text only, it makes the label and none is left to score it
    silent = np.setdiff1d(np.arange(len(other)), others.indices[others.indptr[feature] : others.indptr[feature + 1]])
    negatives = random.permutation(silent)[: 2 * k]
    half = min(k, -(-len(negatives) // 2))
    on = [marked(emb.tokens(int(d)), emb.activations(int(d), feature), limit) for d in positives]
    off = [marked(other.tokens(int(d)), other.activations(int(d), feature), limit) for d in negatives]
    return Sample(on[:n], off[:half], on[n:], off[half:])


def _scores(
    cost: Cost, judge: Judge | None, labels: Sequence[str], samples: Sequence[Sample]
) -> tuple[list[float], int]:
    """Accuracy of the judge for each label, the mean over both kinds of texts, and how many answers were unclear."""
    if judge is None:
        return [float("nan")] * len(labels), 0
    questions, owner, truth = [], [], []
    for i, (label, sample) in enumerate(zip(labels, samples, strict=True)):
        for kind, texts in ((True, sample.test_positives), (False, sample.test_negatives)):
            if label:
                questions += [at_marks(label, text) for text in texts]
                owner += [i] * len(texts)
                truth += [kind] * len(texts)
    said = [verdict(answer) for answer in cost.ask("score", judge, questions)]
    right, at, kinds = np.array([bool(s) for s in said]) == np.array(truth), np.array(owner), np.array(truth)
    out = []
    for i in range(len(labels)):
        parts = [right[(at == i) & (kinds == kind)] for kind in (True, False)] if len(at) else [right, right]
        out.append(float(np.mean([part.mean() for part in parts])) if all(map(len, parts)) else float("nan"))
    return out, said.count(None)


def relabel_features(
    target: "SAEEmbedding",
    others: "SAEEmbedding | Sequence[SAEEmbedding]",
    features: int | Sequence[int],
    labeler: Labeler,
    judge: Judge,
    *,
    labels: Mapping[int, str] | None = None,
    keep: float = KEEP,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> FeatureLabels:
    """Label features anew for a comparison of row-aligned sets, and keep the old or the new label, whichever fits.

    Of the 40 rows on which the feature is strongest in the target beyond all others, the first 10 score the old label,
    the next 20 make a new one and the last 10 score that, each against the same row of another set. With fewer rows the
    shares are the same. The better label is kept if its score reaches `keep`; else the feature is dropped.

    Args:
        target, others: embeddings with the same rows in the same order, such as answers to the same prompts.
        features: which features.
        labeler, judge: see `label_features`.
        labels: the old labels, by feature; the tokens a feature fires on where none is given.
        keep: least score.
        max_tokens: each text is cut to so many tokens around the strongest.
        seed: of the choice of the other set.

    Returns:
        Labels with the columns `old_label`, `old_score`, `new_label`, `new_score` and `kept`. As a mapping it holds
        the kept ones.

    Raises:
        InputError: sets that are not row-aligned, or not of the same model and dictionary.
    """
    import pandas as pd

    rest = list(others) if isinstance(others, Sequence) else [others]
    for other in rest:
        check_comparable(target, other)
        if len(other) != len(target):
            raise InputError(f"the target has {len(target)} rows and another set {len(other)}: relabelling compares "
                             "row with row, such as answers to the same prompts.")
    if not rest:
        raise InputError("give at least one other set.")
    chosen = [target._feature(int(f)) for f in np.atleast_1d(features).tolist()]
    random = np.random.default_rng(seed)
    pairs = [_pairs(target, rest, f, max_tokens, random) for f in chosen]
    old, by = named(target, chosen, labels)
    cost = Cost.of(target, *rest)
    first, middle, last = (slice(a, b) for a, b in ((0, 1), (1, 3), (3, 4)))
    old_scores, unclear = _scores(cost, judge, old, [_part(p, first) for p in pairs])
    sources = [_part(p, middle) for p in pairs]
    asked = [i for i, s in enumerate(sources) if s.test_positives]
    answers = cost.ask("label", labeler, [label_prompt(sources[i].test_positives, sources[i].test_negatives)
                                          for i in asked])
    read = dict(zip(asked, map(read_label, answers), strict=True))
    new = [read.get(i, ("", ""))[0] for i in range(len(chosen))]
    new_scores, more = _scores(cost, judge, new, [_part(p, last) for p in pairs])
    both = np.nan_to_num(np.array([old_scores, new_scores]).reshape(2, -1), nan=-1.0)
    takes_new = both[1] > both[0]
    frame = pd.DataFrame({
        "feature": chosen,
        "label": np.where(takes_new, new, old),
        "explanation": [read.get(i, ("", ""))[1] if takes_new[i] else "" for i in range(len(chosen))],
        "score": np.where(takes_new, new_scores, old_scores),
        "old_label": old, "old_score": old_scores, "new_label": new, "new_score": new_scores,
        "kept": both.max(axis=0) >= keep,
        "labelled_by": np.where(takes_new, name_of(labeler), by),
        "judged_by": name_of(judge),
    })
    return FeatureLabels(frame, name_of(labeler), name_of(judge), cost, unclear + more)


def _pairs(
    target: "SAEEmbedding", others: Sequence["SAEEmbedding"], feature: int, limit: int, random: np.random.Generator
) -> list[tuple[str, str]]:
    """Marked texts of the rows where the target leads most, each with the same row of a set where it is weakest."""
    mine = np.abs(target.matrix[:, [feature]].toarray()[:, 0])
    theirs = np.stack([np.abs(other.matrix[:, [feature]].toarray()[:, 0]) for other in others])
    lead = mine - theirs.max(axis=0)
    out = []
    for row in np.argsort(-lead, kind="stable")[:_ROWS].tolist():
        if lead[row] <= 0:
            break
        weakest = int(random.choice(np.flatnonzero(theirs[:, row] == theirs[:, row].min())))
        one, two = (marked(e.tokens(row), e.activations(row, feature), limit) for e in (target, others[weakest]))
        out.append((one, two))
    return out


def _part(pairs: list[tuple[str, str]], quarters: slice) -> Sample:
    """Some quarters of the rows, as texts to score on."""
    n = len(pairs)
    part = pairs[n * quarters.start // 4 : n * quarters.stop // 4]
    return Sample([], [], [a for a, _ in part], [b for _, b in part])

"""Hypotheses held against the texts themselves by a judge that is not told where a text comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from sparselens.embeddings.accounting import VERIFY, Cost, name_of
from sparselens.embeddings.labels import Judge
from sparselens.embeddings.prompts import MAX_TOKENS, holds, verdict
from sparselens.embeddings.statistics import newcombe, p_values, q_values
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.embedding import SAEEmbedding

VALID = 0.01  # a verified difference counts from here on


@dataclass(frozen=True, eq=False, repr=False)
class VerifiedHypotheses:
    """What a judge found, made by `verify_hypotheses`.

    Attributes:
        frame: a row a hypothesis, as `to_frame` gives it.
        answers: by set, bool `[hypotheses, documents]`.
        coverage: by set, the share of rows in which at least one of its hypotheses holds for that set only; None if the
            sets are not row-aligned.
        judged_by: who judged.
        unclear: answers that were neither yes nor no; they count as no.
        cost: of the stage "verify".
    """

    frame: "pandas.DataFrame"
    answers: dict[str, np.ndarray]
    coverage: dict[str, float] | None
    judged_by: str
    unclear: int
    cost: Cost

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def rate(self) -> float:
        """Share of the hypotheses whose verified difference is above 1 %."""
        return float(self.frame["valid"].mean()) if len(self) else float("nan")

    @property
    def mean_difference(self) -> float:
        """Mean of the verified differences."""
        return float(self.frame["difference"].mean()) if len(self) else float("nan")

    def to_frame(self) -> "pandas.DataFrame":
        """A row a hypothesis: `hypothesis`, `dataset`, the share of texts of each set in which it holds as
        `freq[name]`, `difference` (of its set from the largest other) with its interval `ci_low` to `ci_high`,
        `p_value` (the largest against any other set), `q_value`, `valid` (difference above 1 %), `claimed` and
        `judged_by`.
        """
        return self.frame.copy()

    def documents(self, hypothesis: int, name: str) -> np.ndarray:
        """Positions of the texts of a set for which a hypothesis holds."""
        if name not in self.answers:
            raise InputError(f"there is no set {name!r}; there are {', '.join(self.answers)}."
                             f"{closest(name, self.answers)}")
        if not 0 <= hypothesis < len(self):
            raise InputError(f"there is no hypothesis {hypothesis}: there are {len(self)}, counted from 0.")
        return np.flatnonzero(self.answers[name][hypothesis])

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        notes = [f"{int(self.frame['valid'].sum())} of {len(self)} hypotheses valid (verified difference above "
                 f"{VALID:.0%}), mean verified difference {self.mean_difference:+.3f}, judged by {self.judged_by}."]
        if self.coverage:
            parts = ", ".join(f"{share:.2f} of {name}" for name, share in self.coverage.items())
            notes.append(f"Rows with a hypothesis that holds for one set only: {parts}.")
        if self.unclear:
            notes.append(f"{self.unclear:,} answers were neither yes nor no and count as no.")
        return [*notes, f"{self.cost!r}."]

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the verified differences with their intervals. Returns the axes."""
        from sparselens.views import score_bars

        names = [f"{row.dataset}: {row.hypothesis}" for row in self.frame.itertuples()]
        return score_bars(names, self.frame["difference"], ax, "verified difference in the share of texts",
                          intervals=self.frame[["ci_low", "ci_high"]])

    def __repr__(self) -> str:
        return "VerifiedHypotheses: " + " ".join(self.notes)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        shares = [column for column in self.frame.columns if column.startswith("freq[")]
        columns = ["dataset", "hypothesis", *shares, "difference", "q_value", "valid"]
        rows = [("more in", *columns[1:]), *self.frame[columns].itertuples(index=False)]
        return report_html(" ".join(self.notes), rows)


def verify_hypotheses(
    statements: Any,
    sets: "Mapping[str, SAEEmbedding]",
    judge: Judge,
    *,
    target: str | None = None,
    aligned: bool = False,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> VerifiedHypotheses:
    """Ask a judge whether each hypothesis holds for each text of each set (Jiang, Sun et al., 2025).

    The judge sees one hypothesis and one text, not the set, and the questions come in random order. The verified
    difference is the share of texts of the hypothesis's own set in which it holds, less the largest share in another.
    Use texts that the hypotheses were not made from. There are as many questions as hypotheses times texts.

    Args:
        statements: hypotheses: strings, or what `hypotheses` or `hypothesize` returned.
        sets: name -> texts, two at least.
        judge: questions -> "YES"/"NO" or 1/0.
        target: the set that the hypotheses are about, where they do not say so; the first by default.
        aligned: rows belong together, such as answers to the same prompts: tell the coverage.
        max_tokens: each text is cut to so many tokens.
        seed: of the order.

    Raises:
        InputError: no hypothesis, fewer than two sets, an unknown set, or sets of different lengths with `aligned`.
    """
    import pandas as pd

    said, about, claimed = _statements(statements, sets, target)
    names = list(sets)
    if aligned and len({len(emb) for emb in sets.values()}) > 1:
        raise InputError("aligned=True needs sets with the same rows: "
                         + ", ".join(f"{name} has {len(emb)}" for name, emb in sets.items()) + ".")
    texts = {name: ["".join(emb.tokens(d)[:max_tokens]) for d in range(len(emb))] for name, emb in sets.items()}
    cost = Cost.of(*sets.values())
    answers, unclear = _asked(said, texts, judge, cost, seed)
    shares = np.array([answers[name].mean(axis=1) for name in names])
    rows = []
    for i, (statement, name) in enumerate(zip(said, about, strict=True)):
        own = names.index(name)
        rest = [j for j in range(len(names)) if j != own]
        nearest = max(rest, key=lambda j: shares[j, i])
        counts = [np.array([int(answers[other][i].sum())]) for other in names]
        sizes = [len(texts[other]) for other in names]
        low, high = newcombe(counts[own], sizes[own], counts[nearest], sizes[nearest])
        p = max(float(p_values(counts[own], sizes[own], counts[j], sizes[j])[0]) for j in rest)
        difference = shares[own, i] - shares[nearest, i]
        rows.append({"hypothesis": statement, "dataset": name,
                     **{f"freq[{other}]": shares[j, i] for j, other in enumerate(names)}, "difference": difference,
                     "ci_low": float(low[0]), "ci_high": float(high[0]), "p_value": p, "valid": difference > VALID,
                     "claimed": claimed[i], "judged_by": name_of(judge)})
    frame = pd.DataFrame(rows)
    frame.insert(frame.columns.get_loc("p_value") + 1, "q_value", q_values(frame["p_value"].to_numpy()))
    return VerifiedHypotheses(frame, answers, _coverage(answers, about) if aligned else None, name_of(judge), unclear,
                              cost)


def _statements(
    given: Any, sets: "Mapping[str, SAEEmbedding]", target: str | None
) -> tuple[list[str], list[str], list[float]]:
    """Sentences, the set each is about, and the difference each claims."""
    if len(sets) < 2:
        raise InputError("give at least two sets of texts, as {name: embedding}.")
    if target is not None and target not in sets:
        raise InputError(f"target={target!r} is none of the sets {', '.join(sets)}.{closest(target, sets)}")
    said = list(given.statements if hasattr(given, "statements") else [given] if isinstance(given, str) else given)
    if not said or not all(isinstance(s, str) and s.strip() for s in said):
        raise InputError("give at least one hypothesis; each is a sentence.")
    about, claimed = [target or next(iter(sets))] * len(said), [float("nan")] * len(said)
    frame = getattr(given, "frame", None)
    if frame is not None and "dataset" in frame:
        about, claimed = frame["dataset"].tolist(), frame["difference"].tolist()
        unknown = sorted(set(about) - set(sets))
        if unknown:
            raise InputError(f"the hypotheses are about {unknown[0]!r}, which is none of the sets {', '.join(sets)}. "
                             "Name the sets as in the comparison.")
    return said, about, claimed


def _asked(
    said: Sequence[str], texts: dict[str, list[str]], judge: Judge, cost: Cost, seed: int
) -> tuple[dict[str, Bool[np.ndarray, "hypotheses documents"]], int]:
    """The judge's answers by set, and how many were unclear."""
    questions = [holds(statement, text) for part in texts.values() for statement in said for text in part]
    order = np.random.default_rng(seed).permutation(len(questions))
    found = [verdict(answer) for answer in cost.ask(VERIFY, judge, [questions[i] for i in order])]
    flat = np.zeros(len(questions), dtype=bool)
    flat[order] = [bool(one) for one in found]
    sizes = [len(said) * len(part) for part in texts.values()]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: part.reshape(len(said), -1) for name, part in zip(texts, parts, strict=True)}, found.count(None)


def _coverage(answers: dict[str, np.ndarray], about: Sequence[str]) -> dict[str, float]:
    out = {}
    for name in dict.fromkeys(about):
        own = [i for i, one in enumerate(about) if one == name]
        elsewhere = np.any([answers[other][own] for other in answers if other != name], axis=0)
        out[name] = float((answers[name][own] & ~elsewhere).any(axis=0).mean())
    return out

"""N2G: which words make a feature fire, as patterns of tokens, and how well the patterns tell it on other steps.

Foote et al., "Neuron to Graph" (2023), in the form of Yang et al. (2026, arXiv 2603.03031): the shortest end of a step
that keeps half of the feature's value, and in it a "*" for each token that can be hidden without losing half of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.attach import fitting_sites
from sparselens.errors import InputError
from sparselens.reasoning.results import Shown
from sparselens.reasoning.states import pooled
from sparselens.reasoning.step_data import StepDataset
from sparselens.sae.latents import to_csr

if TYPE_CHECKING:
    import pandas

    from sparselens.models.live import LiveModel

Pattern = tuple[int | None, ...]  # token ids; None is "*", exactly one token
Encode = Callable[[list[list[int]], int], Any]


@dataclass(frozen=True)
class PatternScores(Shown):
    """How well patterns tell where features fire, over all pairs of a held-out step and a feature.

    Attributes:
        precision, recall, f1: micro-averaged. F1 is 0 where nothing matches.
        share: share of pairs in which the feature fires: the precision of saying always yes.
        always: F1 of saying always yes.
        by_feature: feature -> (precision, recall, F1, share).
        n_steps: held-out steps.
    """

    precision: float
    recall: float
    f1: float
    share: float
    always: float
    by_feature: dict[int, tuple[float, float, float, float]]
    n_steps: int

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a feature: `feature`, `precision`, `recall`, `f1`, `share`."""
        import pandas as pd

        rows = [(feature, *found) for feature, found in self.by_feature.items()]
        return pd.DataFrame(rows, columns=["feature", "precision", "recall", "f1", "share"])

    def __repr__(self) -> str:
        return (f"PatternScores(F1 {self.f1:.3f}, precision {self.precision:.3f}, recall {self.recall:.3f}; always yes "
                f"{self.always:.3f}; {len(self.by_feature)} features, {self.n_steps:,} steps)")


@dataclass(frozen=True, eq=False)
class Patterns(Shown):
    """Patterns of some features; made by `n2g`.

    Attributes:
        patterns: feature -> its patterns, from its strongest step down.
        encode: gives codes `[sequences, d]` of token ids.
        tokenizer: to write patterns as text.
    """

    patterns: dict[int, list[Pattern]]
    encode: Encode
    tokenizer: Any

    def __repr__(self) -> str:
        return f"Patterns({sum(map(len, self.patterns.values()))} patterns of {len(self.patterns)} features)"

    def text(self, pattern: Pattern) -> str:
        """A pattern as text, with " * " for any one token."""
        return "".join(" * " if token is None else self.tokenizer.decode([token]) for token in pattern).strip()

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a pattern: `feature`, `pattern`, `tokens` (those that are not "*")."""
        import pandas as pd

        rows = [(feature, self.text(p), sum(t is not None for t in p)) for feature, own in self.patterns.items()
                for p in own]
        return pd.DataFrame(rows, columns=["feature", "pattern", "tokens"])

    def predict(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Whether any pattern of each feature matches anywhere, bool `[sequences, features]`."""
        return np.array([[any(matches(p, ids) for p in own) for own in self.patterns.values()] for ids in sequences],
                        dtype=bool).reshape(len(sequences), len(self.patterns))

    def evaluate(self, data: Any) -> PatternScores:
        """Hold the patterns against the features' codes on other steps.

        Args:
            data: as for `n2g`, but steps that the patterns were not made from.
        """
        sequences, encode = _sequences(data, self.tokenizer), self._on(data)
        said = self.predict(sequences)
        features = list(self.patterns)
        truth = _codes(encode, sequences)[:, features].toarray() != 0
        by = {f: (*_f1(said[:, i], truth[:, i]), float(truth[:, i].mean())) for i, f in enumerate(features)}
        share = float(truth.mean())
        return PatternScores(*_f1(said, truth), share, 2 * share / (1 + share), by, len(sequences))

    def _on(self, data: Any) -> Encode:
        """The encoder with the contexts of other steps."""
        return self.encode.on(data) if isinstance(self.encode, _OfSteps) else self.encode


def n2g(
    source: Any,
    data: Any,
    m: Any = None,
    *,
    features: int | Sequence[int] = 50,
    ratio: float = 0.5,
    most: int = 20,
    steps: int = 40,
) -> Patterns:
    """Find the patterns that make features fire.

    Stars at both ends of a pattern are left out, so that it matches wherever its words are.

    Args:
        source: a `StepSAE`; a token SAE (its codes are pooled over the step by maximum); or a function from lists of
            token ids, and the number of the step that they are variants of, to codes `[lists, d]`.
        data: a `StepDataset`; or steps as texts or lists of token ids.
        m: the live model of a token SAE.
        features: which; a number takes those with the largest summed magnitude.
        ratio: share of the value that has to remain.
        most: distinct patterns of a feature.
        steps: steps of a feature that are looked at, the strongest first. Each costs about two passes a token.

    Raises:
        InputError: no steps, an encoder without a model, or a ratio outside 0 to 1.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"ratio={ratio} must lie above 0 and be at most 1.")
    encode, tokenizer = _encoder(source, data, m)
    sequences = _sequences(data, tokenizer)
    codes = _codes(encode, sequences)
    if isinstance(features, int):
        strength = np.asarray(abs(codes).sum(axis=0)).ravel()
        order = np.argsort(-strength, kind="stable")[:features]
        chosen = order[strength[order] > 0].tolist()
    else:
        chosen = list(features)
    hidden = _hidden(tokenizer)
    found = {}
    for feature in chosen:
        column = codes[:, [feature]].toarray()[:, 0]
        active = [i for i in np.argsort(-np.abs(column), kind="stable")[:steps].tolist() if column[i]]
        own: dict[Pattern, None] = {}
        for i in active:
            own[_pattern(encode, sequences[i], i, int(feature), float(column[i]), ratio, hidden)] = None
            if len(own) == most:
                break
        own.pop((), None)
        found[int(feature)] = list(own)
    return Patterns(found, encode, tokenizer)


def _pattern(
    encode: Encode, ids: list[int], origin: int, feature: int, value: float, ratio: float, hidden: int
) -> Pattern:
    """The shortest end that keeps its value, with stars for the tokens that do not matter."""
    ends = [ids[-n:] for n in range(1, len(ids) + 1)]
    kept = _values(encode, ends, origin, feature) / value
    enough = np.flatnonzero(kept >= ratio)
    end = ends[enough[0]] if len(enough) else ids
    without = [[*end[:i], hidden, *end[i + 1 :]] for i in range(len(end))]
    needed = _values(encode, without, origin, feature) / value < ratio
    pattern = [token if need else None for token, need in zip(end, needed, strict=True)]
    while pattern and pattern[0] is None:
        pattern.pop(0)
    while pattern and pattern[-1] is None:
        pattern.pop()
    return tuple(pattern)


def matches(pattern: Pattern, ids: Sequence[int]) -> bool:
    """Whether a pattern occurs anywhere in a sequence; "*" is exactly one token."""
    spots = [(i, token) for i, token in enumerate(pattern) if token is not None]
    return any(all(ids[at + i] == token for i, token in spots) for at in range(len(ids) - len(pattern) + 1))


def _values(encode: Encode, sequences: list[list[int]], origin: int, feature: int) -> np.ndarray:
    return _csr(encode(sequences, origin))[:, [feature]].toarray()[:, 0].astype(np.float64)


def _codes(encode: Encode, sequences: list[list[int]]) -> Any:
    """Codes of all steps, CSR `[steps, d]`."""
    from scipy.sparse import vstack

    if isinstance(encode, _OfSteps):
        return encode.all()
    if isinstance(encode, _OfTokens):
        return _csr(encode(sequences, -1))
    return vstack([_csr(encode([ids], i)) for i, ids in enumerate(sequences)], format="csr")


def _csr(codes: Any) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(codes.detach().cpu().numpy() if hasattr(codes, "detach") else codes)


def _f1(said: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    both = float((said & truth).sum())
    precision, recall = both / max(float(said.sum()), 1.0), both / max(float(truth.sum()), 1.0)
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0


def _sequences(data: Any, tokenizer: Any) -> list[list[int]]:
    """Token ids of each step."""
    given = data.steps if isinstance(data, StepDataset) else [data] if isinstance(data, str) else list(data)
    if not len(given):
        raise InputError("there are no steps to find patterns in.")
    out = [tokenizer(one, add_special_tokens=False)["input_ids"] if isinstance(one, str) else list(map(int, one))
           for one in given]
    empty = next((i for i, ids in enumerate(out) if not ids), None)
    if empty is not None:
        raise InputError(f"step {empty} has no tokens: leave it out.")
    return out


def _hidden(tokenizer: Any) -> int:
    """The token that stands for a hidden one: padding, as in the paper, or the end of text."""
    return next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)


def _encoder(source: Any, data: Any, m: Any) -> tuple[Encode, Any]:
    from sparselens.reasoning.ssae import StepSAE
    from sparselens.sae.sae import SAE

    if isinstance(source, StepSAE):
        if not isinstance(data, StepDataset):
            raise InputError("a StepSAE reads steps with their contexts: give a StepDataset.")
        return _OfSteps(source, data), source.model.tokenizer
    if m is None:
        raise InputError("pass the live model, m=..., whose tokens these are.")
    return (_OfTokens(source, m) if isinstance(source, SAE) else source), m.tokenizer


class _OfTokens:
    """Codes of a token SAE, pooled over each sequence by maximum."""

    def __init__(self, sae: Any, m: "LiveModel"):
        self.sae, self.m = sae, m
        self.site = fitting_sites(sae, m, None)[0]

    @torch.no_grad()
    def __call__(self, sequences: list[list[int]], _origin: int) -> Any:
        parts = []
        for batch in self.m.stream(sequences, self.site):
            x = batch.values.float()
            inside = self.sae.applies(x)
            codes = to_csr(self.sae.encode(x[inside])).tocoo()
            parts.append((batch.doc.numpy()[inside.cpu().numpy()][codes.row], codes.col, codes.data))
        row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return pooled(row, column, value, (len(sequences), self.sae.d_sae), "max")


class _OfSteps:
    """Codes of a step-level SAE, in the contexts of the steps."""

    def __init__(self, ssae: Any, data: StepDataset):
        self.ssae, self.data = ssae, data

    def on(self, data: Any) -> "_OfSteps":
        if not isinstance(data, StepDataset):
            raise InputError("a StepSAE reads steps with their contexts: give a StepDataset.")
        return _OfSteps(self.ssae, data)

    def all(self) -> Any:
        return _csr(self.ssae.transform(self.data).z)

    def __call__(self, sequences: list[list[int]], origin: int) -> Any:
        context = self.data.contexts[origin]
        return self.ssae.transform(StepDataset([context] * len(sequences), sequences, self.data.end)).z

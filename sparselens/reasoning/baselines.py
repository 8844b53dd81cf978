"""What every table of step probes is held against: figures of the text alone, its words, and nothing at all."""

import re
from collections import Counter
from typing import Any

import numpy as np

from sparselens.reasoning.traces import Traces

_WORD = re.compile(r"\d+|\w+|[^\w\s]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_FEWEST = 3  # times a word must occur to have a column of its own


def words(text: str) -> list[str]:
    """Words, numbers and signs of a text, in lower case."""
    return _WORD.findall(text.lower())


def step_statistics(traces: Traces, train: np.ndarray) -> np.ndarray:
    """Figures of each step's text, float32 `[n_steps, 8]`: characters (log), words, numbers, place in the chain,
    mean log-probability and entropy of its words under their frequencies in training steps, characters of the question
    (log), and whether its calculator notes are right (0.5: none).

    Args:
        traces: the chains.
        train: rows of the training steps.
    """
    from sparselens.reasoning.arithmetic import check_arithmetic

    texts = [text for trace in traces for text in trace.steps.texts]
    split = [words(text) for text in texts]
    seen = Counter(word for row in train for word in split[row])
    total = sum(seen.values()) + len(seen) + 1
    at = [(number, trace.question) for trace in traces for number in range(len(trace))]
    rows = []
    for text, own, (number, question) in zip(texts, split, at, strict=True):
        log_p = np.log([(seen[word] + 1) / total for word in own] or [1.0])
        note = check_arithmetic(text)
        rows.append((np.log1p(len(text)), len(own), len(_NUMBER.findall(text)), number, log_p.mean(),
                     -(np.exp(log_p) * log_p).sum(), np.log1p(len(question)), 0.5 if note is None else float(note)))
    return np.array(rows, dtype=np.float32)


def context_statistics(traces: Traces) -> np.ndarray:
    """Figures of what stands before each step, float32 `[n_steps, 6]`: its place, characters of the question, and
    characters, words and numbers of the step before, and mean characters of all steps before."""
    rows = []
    for trace in traces:
        texts = trace.steps.texts
        for number in range(len(texts)):
            before = texts[number - 1] if number else ""
            mean = np.mean([len(text) for text in texts[:number]]) if number else 0.0
            numbers = len(_NUMBER.findall(before))
            rows.append((number, len(trace.question), len(before), len(words(before)), numbers, mean))
    return np.array(rows, dtype=np.float32)


def word_counts(texts: list[str], train: np.ndarray) -> Any:
    """log(1 + count) of words that occur at least three times in training rows, CSR float32 `[rows, words]`."""
    from scipy.sparse import csr_matrix

    split = [words(text) for text in texts]
    seen = Counter(word for row in train for word in split[row])
    column = {word: i for i, word in enumerate(sorted(w for w, n in seen.items() if n >= _FEWEST))}
    entries = [(row, column[w], n) for row, own in enumerate(split) for w, n in Counter(own).items() if w in column]
    row, place, count = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return csr_matrix((np.log1p(count).astype(np.float32), (row, place)), shape=(len(texts), max(len(column), 1)))

"""A model on this machine as a labeler or judge."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from sparselens.embeddings.accounting import Usage
from sparselens.errors import FitError

if TYPE_CHECKING:
    from sparselens.models.live import LiveModel

_WORDS = {True: ("YES", "Yes", "yes"), False: ("NO", "No", "no")}
_BATCH_TOKENS = 1024


class LocalLabeler:
    """Lets a live model answer prompts, the likeliest token each time. A chat model gets them as a user's turn.

    Small models write poor labels: look at the scores.

    Args:
        m: a live model with a tokenizer.
        max_new_tokens: longest answer.
    """

    def __init__(self, m: "LiveModel", max_new_tokens: int = 80):
        self.m, self.max_new_tokens = m, max_new_tokens
        self.usage = Usage()

    @property
    def name(self) -> str:
        """What tables say about who answered."""
        return self.m.name

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """An answer to each prompt.

        Raises:
            InputError: a prompt longer than the model reads.
        """
        if not prompts:
            return []
        answers = self.m.generate([_turn(self.m, p) for p in prompts], self.max_new_tokens, batch_tokens=_BATCH_TOKENS)
        self.usage.calls += len(prompts)
        self.usage.prompt_tokens += sum(len(row.ids) for row in _rows(self.m, prompts))
        self.usage.completion_tokens += sum(map(len, self.m.tokenizer(list(answers), verbose=False)["input_ids"]))
        return list(answers)


class LocalJudge:
    """Lets a live model answer yes or no, by the log-probability of the first token of its answer.

    Args:
        m: a live model with a tokenizer.
        threshold: yes from this log-odds on. A small model leans to one side whatever it is asked: take the threshold
            from `scores` on texts whose answer you know.

    Raises:
        FitError: the tokenizer begins "YES" and "NO" with the same token.
    """

    def __init__(self, m: "LiveModel", threshold: float = 0.0):
        self.m, self.threshold = m, threshold
        self.usage = Usage()
        first = {side: {_first_token(m, f"{space}{word}") for word in words for space in ("", " ")}
                 for side, words in _WORDS.items()}
        self._yes, self._no = (sorted(first[side] - first[not side]) for side in (True, False))
        if not self._yes or not self._no:
            raise FitError(f"the tokenizer of {m.name} begins YES and NO with the same token, so the first token of an "
                           "answer does not tell them apart.")

    @property
    def name(self) -> str:
        """What tables say about who answered."""
        return f"{self.m.name} (yes/no)"

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        """1 or 0 for each question."""
        return (self.scores(prompts) >= self.threshold).astype(int).tolist()

    def scores(self, prompts: Sequence[str]) -> Float[np.ndarray, "n"]:
        """Log-odds of yes against no for each question.

        Raises:
            InputError: a question longer than the model reads.
        """
        out = np.zeros(len(prompts))
        rows = sorted(_rows(self.m, prompts), key=lambda row: len(row.ids))
        while rows:
            n = max(1, _BATCH_TOKENS // len(rows[min(len(rows), 16) - 1].ids))
            part, rows = rows[: min(n, 16)], rows[min(n, 16) :]
            last = self.m.logits(self.m.reader.pad(part, "left"))[:, -1].float()
            odds = torch.logsumexp(last[:, self._yes], 1) - torch.logsumexp(last[:, self._no], 1)
            out[[row.doc for row in part]] = odds.cpu().numpy()
            self.usage.calls += len(part)
            self.usage.prompt_tokens += sum(len(row.ids) for row in part)
        return out


def _turn(m: "LiveModel", prompt: str) -> Any:
    """A prompt as the model reads it. Special tokens that a text spells out lose their meaning."""
    prompt = str(prompt)
    for token in m.tokenizer.all_special_tokens:
        prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
    return [{"role": "user", "content": prompt}] if m.tokenizer.chat_template else prompt


def _rows(m: "LiveModel", prompts: Sequence[str]) -> list[Any]:
    turns = [_turn(m, prompt) for prompt in prompts]
    return m.reader.rows(turns, 0, role=None, max_length=None, long="error", empty="error", generation=True)


def _first_token(m: "LiveModel", word: str) -> int:
    return m.tokenizer(word, add_special_tokens=False)["input_ids"][0]

"""Rows of tokens in which something was said that is asked for later."""

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.errors import InputError

RECALL_KEYS = 8
RECALL_VALUES = 5
_FILLERS = 8
_QUESTIONS = RECALL_KEYS * RECALL_VALUES  # first question token; facts come before
_ANSWERS = _QUESTIONS + RECALL_KEYS
RECALL_MASK = _ANSWERS + RECALL_VALUES + _FILLERS  # the last token; `recall_rows` never writes it
RECALL_VOCAB = RECALL_MASK + 1


def recall_rows(
    n: int, *, facts: int = 48, pairs: int = 8, queries: int = 8, gap: int = 0, interleaved: bool = False, seed: int = 0
) -> tuple[Int[Tensor, "n pos"], int]:
    """Rows to look things up in: facts at random places among filler, then questions, then their answers.

    Tokens: 40 facts ("key k has value v", `5 k + v`), 8 questions ("which value has k?"), 5 answers, 8 fillers, and a
    mask that is not used here. A key has another value in each row, so the answer can only be read off the row.

    Args:
        n: rows.
        facts: tokens of the part that holds the facts.
        pairs: keys that have a value, at most 8.
        queries: keys asked for, each once; at most `pairs`.
        gap: filler tokens after the facts.
        interleaved: each question is followed by its answer, for causal models; else all answers come after all
            questions.
        seed: of everything.

    Returns:
        ids `[n, pos]`, and the number of tokens before the first answer (interleaved: before the first question).

    Raises:
        InputError: more pairs than keys or room, or more queries than pairs.
    """
    most = min(RECALL_KEYS, facts)
    if not 0 < queries <= pairs <= most:
        raise InputError(f"pairs={pairs} and queries={queries}: at least one query, no more queries than pairs, and at "
                         f"most {most} pairs ({RECALL_KEYS} keys, {facts} tokens for facts).")
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices: int, count: int) -> Tensor:
        """`count` different numbers below `choices` in each row."""
        return torch.rand(n, choices, generator=generator).argsort(1)[:, :count]

    keys = drawn(RECALL_KEYS, pairs)
    values = torch.randint(RECALL_VALUES, (n, pairs), generator=generator)
    body = torch.randint(_ANSWERS + RECALL_VALUES, RECALL_MASK, (n, facts + gap), generator=generator)
    body.scatter_(1, drawn(facts, pairs), RECALL_VALUES * keys + values)
    asked = drawn(pairs, queries)
    questions, answers = _QUESTIONS + keys.gather(1, asked), _ANSWERS + values.gather(1, asked)
    if interleaved:
        return torch.cat([body, torch.stack([questions, answers], -1).flatten(1)], 1), facts + gap
    return torch.cat([body, questions, answers], 1), facts + gap + queries

"""Rows of tokens in which something was said that is asked for later."""

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.errors import InputError

RECALL_KEYS = 24
RECALL_FILLERS = 12
RECALL_MASK = 2 * RECALL_KEYS + RECALL_FILLERS  # the last token; `recall_rows` never writes it
RECALL_VOCAB = RECALL_MASK + 1


def recall_rows(
    n: int, *, pairs: int = 20, facts: int = 96, gap: int = 0, queries: int = 16, interleaved: bool = False,
    seed: int = 0,
) -> tuple[Int[Tensor, "n pos"], int]:
    """Rows to look things up in: keys, each followed by its value, among filler; then keys to answer with their values.

    Tokens: 24 keys, 24 values, 12 fillers, and a mask that is not used here. A key has another value in each row, so
    the answer can only be read off the row.

    Args:
        n: rows.
        pairs: keys with a value, at most 24.
        facts: tokens of the part that holds them.
        gap: filler tokens after it.
        queries: keys asked for, each once; at most `pairs`.
        interleaved: each asked key is followed by its value, for causal models; else all values come after all keys.
        seed: of everything.

    Returns:
        ids `[n, pos]`, and the number of tokens before the first answer (interleaved: before the first query).

    Raises:
        InputError: more pairs than keys or room, or more queries than pairs.
    """
    if not 0 < queries <= pairs <= min(RECALL_KEYS, facts // 2):
        raise InputError(f"pairs={pairs} and queries={queries}: at least one query, no more queries than pairs, and at "
                         f"most {min(RECALL_KEYS, facts // 2)} pairs ({RECALL_KEYS} keys; two tokens each in {facts}).")
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices: int, count: int) -> Tensor:
        """`count` different numbers below `choices` in each row."""
        return torch.rand(n, choices, generator=generator).argsort(1)[:, :count]

    keys = drawn(RECALL_KEYS, pairs)
    values = torch.randint(RECALL_KEYS, 2 * RECALL_KEYS, (n, pairs), generator=generator)
    body = torch.randint(2 * RECALL_KEYS, RECALL_MASK, (n, facts + gap), generator=generator)
    places = 2 * drawn(facts // 2, pairs)
    body.scatter_(1, places, keys).scatter_(1, places + 1, values)
    asked = drawn(pairs, queries)
    asked_keys, answers = keys.gather(1, asked), values.gather(1, asked)
    if interleaved:
        return torch.cat([body, torch.stack([asked_keys, answers], -1).flatten(1)], 1), facts + gap
    return torch.cat([body, asked_keys, answers], 1), facts + gap + queries

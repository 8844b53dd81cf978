"""Steps as tokens: context, separator, step and end, padded into batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparselens.errors import InputError, closest

_WINDOW = 32  # batches sorted by length together: little padding, still shuffled
LONG = ("error", "cut")
Ids = list[int]


@dataclass(frozen=True)
class StepBatch:
    """Steps padded on the right to one length: `[context, separator, step, end]`.

    Attributes:
        ids: token ids. The separator is no token of the vocabulary: its slot holds 0, and its embedding is put there.
        sep: `[b]` position of the separator, which is the length of the context.
        length: `[b]` real positions, separator and end counted.
        rows: `[b]` which steps of the dataset these are.
    """

    ids: Int[Tensor, "b pos"]
    sep: Int[Tensor, "b"]
    length: Int[Tensor, "b"]
    rows: Int[Tensor, "b"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> Bool[Tensor, "b pos"]:
        """Real positions."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.length[:, None]

    @property
    def targets(self) -> Bool[Tensor, "b pos"]:
        """Positions of the step's tokens and of the end: the only ones that the loss counts."""
        return self.mask & (torch.arange(self.ids.shape[1], device=self.ids.device) > self.sep[:, None])

    def to(self, device: Any) -> "StepBatch":
        return StepBatch(*(getattr(self, name).to(device) for name in ("ids", "sep", "length", "rows")))

    def without_context(self) -> "StepBatch":
        """The same steps with an empty context."""
        at = (torch.arange(self.ids.shape[1], device=self.ids.device) + self.sep[:, None]).clamp(
            max=self.ids.shape[1] - 1)
        length = self.length - self.sep
        return StepBatch(self.ids.gather(1, at)[:, : int(length.max())], torch.zeros_like(self.sep), length, self.rows)


class StepDataset:
    """Steps of chains of thought, each with its context, as token ids.

    Args:
        contexts: token ids of what stands before each step; may be empty.
        steps: token ids of each step, the end token left out.
        end: id of the token that ends a step.
        problems: which problem each step belongs to; each its own by default.
        cut: how many steps were cut because they were too long.

    Raises:
        InputError: no steps, an empty step, or unequal numbers.
    """

    def __init__(self, contexts: Sequence[Ids], steps: Sequence[Ids], end: int, problems: Sequence[Any] | None = None,
                 cut: int = 0):
        if not len(steps) or len(contexts) != len(steps):
            raise InputError(f"a dataset of steps needs one context for each step, got {len(contexts)} and "
                             f"{len(steps)}.")
        empty = next((i for i, step in enumerate(steps) if not len(step)), None)
        if empty is not None:
            raise InputError(f"step {empty} has no tokens: leave it out.")
        self.contexts, self.steps, self.end, self.cut = list(contexts), list(steps), end, cut
        self.problems = list(range(len(steps))) if problems is None else list(problems)
        self.lengths = np.array([len(c) + len(s) + 2 for c, s in zip(contexts, steps, strict=True)])

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]], tokenizer: Any, *, max_context: int = 256,
                   max_step: int = 256, long: str = "error", problems: Sequence[Any] | None = None) -> "StepDataset":
        """Tokenise (context, step) pairs.

        Args:
            pairs: what stands before the step (question and earlier steps), and the step.
            tokenizer: of the model.
            max_context: last tokens of the context that are kept.
            max_step: most tokens of a step.
            long: "error", or "cut" a longer step to its first `max_step` tokens; `cut` counts them.
            problems: which problem each pair belongs to.

        Raises:
            InputError: no pairs, an empty or a too long step, or a tokenizer without an end token.
        """
        if long not in LONG:
            raise InputError(f"long={long!r} is unknown; valid are {', '.join(LONG)}.{closest(str(long), LONG)}")
        if tokenizer is None or tokenizer.eos_token_id is None:
            raise InputError("a tokenizer with an end token (eos) is needed, which marks where a step ends.")
        given = [(str(context), str(step)) for context, step in pairs]
        if not given:
            raise InputError("got no steps: give at least one (context, step) pair.")
        contexts, steps = (_tokens(tokenizer, texts) for texts in zip(*given, strict=True))
        too_long = [i for i, step in enumerate(steps) if len(step) > max_step]
        if too_long and long == "error":
            i = too_long[0]
            raise InputError(f"step {i} has {len(steps[i]):,} tokens, more than the {max_step:,} allowed "
                             f"({len(too_long)} such). Raise max_step, split finer, or pass long='cut' to read its "
                             "beginning.")
        contexts = [c[-max_context:] if max_context else [] for c in contexts]
        return cls(contexts, [s[:max_step] for s in steps], tokenizer.eos_token_id, problems, len(too_long))

    @classmethod
    def from_traces(cls, traces: Iterable[Any], tokenizer: Any, **settings: Any) -> "StepDataset":
        """Tokenise every step of `Traces`, in order. Settings as for `from_pairs`."""
        pairs = [(t.context(i), text, t.problem) for t in traces for i, text in enumerate(t.steps.texts)]
        problems = [problem for *_, problem in pairs]
        return cls.from_pairs([(context, step) for context, step, _ in pairs], tokenizer, problems=problems, **settings)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        cut = f", {self.cut} cut" if self.cut else ""
        return f"StepDataset({len(self):,} steps, {int(self.lengths.sum()):,} tokens{cut})"

    def batch(self, rows: Sequence[int]) -> StepBatch:
        """The steps of some rows as one batch."""
        filled = [[*self.contexts[r], 0, *self.steps[r], self.end] for r in rows]
        ids = torch.zeros(len(rows), max(map(len, filled)), dtype=torch.long)
        for n, row in enumerate(filled):
            ids[n, : len(row)] = torch.tensor(row)
        sep = torch.tensor([len(self.contexts[r]) for r in rows])
        return StepBatch(ids, sep, torch.tensor([len(row) for row in filled]), torch.tensor([int(r) for r in rows]))

    def batches(self, batch_size: int) -> Iterator[StepBatch]:
        """All steps once, sorted by length."""
        order = np.argsort(self.lengths, kind="stable")
        for at in range(0, len(order), batch_size):
            yield self.batch(order[at : at + batch_size].tolist())

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """Rows of the batches of one epoch: shuffled, of like length within a batch. A last small batch is left out."""
        draw = np.random.default_rng((seed, epoch))
        order = draw.permutation(len(self))
        window = batch_size * _WINDOW
        parts = [order[at : at + window] for at in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        size = min(batch_size, len(order))
        groups = [order[at : at + size].tolist() for at in range(0, len(order) - size + 1, size)]
        return [groups[i] for i in draw.permutation(len(groups))]


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

"""A chain of thought cut into steps, each with its exact place in the text.

Rules: Yang et al., "Step-Level Sparse Autoencoder" (2026, arXiv 2603.03031), as their code has them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import pandas

HOW = ("lines", "math", "code")
CONNECTORS = ("Therefore", "Thus", "Hence", "So", "Since", "Then", "Also", "Moreover", "Consequently")

_BLOCK = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]", re.DOTALL)
_HEAD = re.compile(rf"#|\*\*|[-*•]\s|\(?(?:\d{{1,3}}|[A-Za-z]|[ivx]+)[.)]\s|Step\s+\d|(?:{'|'.join(CONNECTORS)})\b")
_SENTENCE = re.compile(r"[.?!]\s+(?=\S)|[。！？]")
_ENUMERATOR = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]+)[.)]")
_ONLY_CONNECTOR = re.compile(rf"(?:{'|'.join(CONNECTORS)})[\s,.:;]*")
Span = tuple[int, int]


class Step(NamedTuple):
    """One step: its text, and the characters `[start, end)` of the chain that it is."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Steps(Sequence[Step]):
    """The steps of one chain of thought, in order, without overlap; made by `split_steps`.

    Attributes:
        source: the whole chain.
        spans: characters `[start, end)` of each step; `source[start:end]` is its text.
    """

    source: str
    spans: list[Span]

    @property
    def texts(self) -> list[str]:
        """The text of each step."""
        return [self.source[start:end] for start, end in self.spans]

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self.spans[index]
        return Step(self.source[start:end], start, end)

    def __iter__(self) -> Iterator[Step]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Steps({len(self)} steps, {len(self.source):,} characters)"

    def align(self, tokenizer: Any, before: str = "") -> "StepTokens":
        """Tokens of `before + source`, and the step each belongs to.

        Args:
            tokenizer: a fast transformers tokenizer.
            before: what stands in front of the chain, such as the question; its tokens belong to no step.

        Raises:
            InputError: a tokenizer that gives no offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{type(tokenizer).__name__} gives no offsets, so tokens cannot be put to steps: use a "
                             "fast tokenizer.")
        # half a surrogate pair is no character: it is read as "?", which keeps all offsets
        text = (before + self.source).encode("utf-8", "replace").decode("utf-8")
        coded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        shifted = [(start + len(before), end + len(before)) for start, end in self.spans]
        offsets = coded["offset_mapping"]
        return StepTokens(coded["input_ids"], step_of_tokens(text, shifted, offsets), offsets)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step: `step`, `start`, `end`, `text`."""
        import pandas as pd

        rows = [(i, step.start, step.end, step.text) for i, step in enumerate(self)]
        return pd.DataFrame(rows, columns=["step", "start", "end", "text"])


class StepTokens(NamedTuple):
    """Token ids of a text; for each the number of its step, -1 for none (int64 `[tokens]`), and its characters."""

    ids: list[int]
    step: np.ndarray
    offsets: list[Span]

    def range(self, step: int) -> tuple[int, int]:
        """First token of a step and the one after its last. An empty range if other steps' tokens cover it."""
        own = np.flatnonzero(self.step == step)
        return (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)


def step_of_tokens(text: str, spans: Sequence[Span], offsets: Sequence[Span]) -> np.ndarray:
    """The step of each token, -1 for none: the one that holds the token's last character that is not a space.

    Many tokenizers put the space, or the end of a line, before a word into the word's token.

    Args:
        text: the text that was tokenised.
        spans: characters of each step in it, in order.
        offsets: characters of each token.
    """
    starts = np.array([start for start, _ in spans])
    out = np.full(len(offsets), -1, dtype=np.int64)
    for token, (start, end) in enumerate(offsets):
        if end <= start:  # special tokens that are written nowhere
            continue
        last = start + len(text[start:end].rstrip()) - 1
        last = last if last >= start else end - 1
        step = int(np.searchsorted(starts, last, side="right")) - 1
        if step >= 0 and last < spans[step][1]:
            out[token] = step
    return out


def split_steps(text: Any, how: str | Callable[[str], Sequence[Any]] = "lines", *, merge_last: bool = True) -> Steps:
    r"""Cut a chain of thought into steps.

    - "lines": a step a line, blank lines left out; the last line (the answer, as "#### 18") joins the one before it
      if `merge_last`. A text of one line is cut after each sentence (". ").
    - "math": `$$...$$` and `\[...\]` stay whole; lines are joined until a heading, a list item or a connector word
      (Therefore, Thus, ...) begins one, then cut after `.`, `?` and `!` before a capital (and after 。！？). A piece
      joins the one before it that ends with ":" or is only a connector.
    - "code": a step a line that is not blank, with its indentation.
    - a function: gets the text, returns pieces of it in order, or `(start, end)` pairs.

    No text is changed or dropped but white space between steps (a function may leave out more).

    Args:
        text: the chain, without the question. A blank one has no steps.
        how: the rule.
        merge_last: for "lines", as in the paper; False keeps the last line as a step of its own.

    Raises:
        InputError: an unknown rule, no string, or a function whose pieces are not in the text in order.
    """
    if not isinstance(text, str):
        raise InputError(f"a chain of thought is a string, not a {type(text).__name__} ({text!r:.60}).")
    if callable(how):
        return Steps(text, _placed(text, how(text)))
    if how not in HOW:
        raise InputError(f"how={how!r} is unknown; valid are {', '.join(HOW)} or a function.{closest(str(how), HOW)}")
    if how == "code":
        return Steps(text, [(start, start + len(text[start:end].rstrip())) for start, end in _lines(text)])
    spans = _by_line(text, merge_last) if how == "lines" else _by_sentence(text)
    return Steps(text, spans)


def _trim(text: str, start: int, end: int) -> Span:
    """The span without white space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())


def _lines(text: str, whole: Sequence[Span] = ()) -> list[Span]:
    """Lines that are not blank; line ends inside the spans `whole` do not count."""
    ends = [m.start() for m in re.finditer("\n", text) if not any(a <= m.start() < b for a, b in whole)]
    bounds = zip([0, *(end + 1 for end in ends)], [*ends, len(text)], strict=True)
    return [(start, end) for start, end in bounds if text[start:end].strip()]


def _by_line(text: str, merge_last: bool) -> list[Span]:
    spans = [_trim(text, *line) for line in _lines(text)]
    if len(spans) == 1:
        start, end = spans[0]
        cuts = [m.end() for m in re.finditer(r"\. +|。", text[start:end])]
        bounds = zip([0, *cuts], [*cuts, end - start], strict=True)
        return [_trim(text, start + a, start + b) for a, b in bounds if text[start + a : start + b].strip()]
    return [*spans[:-2], (spans[-2][0], spans[-1][1])] if merge_last and len(spans) > 1 else spans


def _by_sentence(text: str) -> list[Span]:
    blocks = [m.span() for m in _BLOCK.finditer(text)]
    paragraphs: list[Span] = []
    for line in _lines(text, blocks):
        start, end = _trim(text, *line)
        if paragraphs and not _HEAD.match(text, start):
            paragraphs[-1] = (paragraphs[-1][0], end)
        else:
            paragraphs.append((start, end))
    pieces = [piece for paragraph in paragraphs for piece in _sentences(text, paragraph, blocks)]
    out: list[Span] = []
    for start, end in pieces:
        before = text[slice(*out[-1])] if out else ""
        if before.endswith(":") or _ONLY_CONNECTOR.fullmatch(before):
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def _sentences(text: str, paragraph: Span, blocks: Sequence[Span]) -> list[Span]:
    first, end = paragraph
    start, out = first, []
    for found in _SENTENCE.finditer(text, first, end):
        at = found.end()
        stop = text[found.start()]
        if any(a <= found.start() < b for a, b in blocks) or at >= end:
            continue
        line = max(start, text.rfind("\n", 0, found.start()) + 1)
        numbered = _ENUMERATOR.fullmatch(text[line : found.start() + 1].strip())
        if stop in "。！？" or (text[at].isupper() and not numbered):
            out.append(_trim(text, start, at))
            start = at
    return [*out, _trim(text, start, end)]


def _placed(text: str, pieces: Sequence[Any]) -> list[Span]:
    """Where the pieces lie that a function gave: strings in order, or pairs."""
    out: list[Span] = []
    at = 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            start = text.find(piece, at)
            end = start + len(piece)
        else:
            start, end = int(piece[0]), int(piece[1])
        if start < at or end > len(text) or end <= start:
            raise InputError(f"step {number}, {piece!r:.60}, is not in the text after the steps before it: give pieces "
                             "of the text in order, as they stand in it, or (start, end) pairs. None may be empty.")
        out.append((start, end))
        at = end
    return out

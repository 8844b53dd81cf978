"""Texts become rows of tokens, rows become batches: chat templates, masks, long texts, padding, order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparselens.errors import InputError, closest

WINDOW = 1024  # texts sorted by length together: wide enough to pad little, small enough to stream
LONG = ("error", "cut", "chunk")
SPANS = ("all", "prompt", "answer")


class Row(NamedTuple):
    """Tokens of one text, or of one chunk of a long one."""

    ids: list[int]
    content: list[bool]
    doc: int
    start: int


@dataclass(frozen=True)
class Batch:
    """Rows of tokens padded to one length, `[b, pos]`.

    Attributes:
        ids: token ids; padding holds the pad token.
        mask: real tokens.
        content: real tokens that are neither special tokens nor part of a chat template.
        first: the first real token of each row. It is an attention sink: its residual norm can be a hundred times
            the median.
        doc: `[b]` which text a row came from.
        start: `[b]` offset of the row within its text, in tokens (above 0 for later chunks).
    """

    ids: Int[Tensor, "b pos"]
    mask: Bool[Tensor, "b pos"]
    content: Bool[Tensor, "b pos"]
    first: Bool[Tensor, "b pos"]
    doc: Int[Tensor, "b"]
    start: Int[Tensor, "b"]

    @property
    def positions(self) -> Int[Tensor, "b pos"]:
        """Position of each token within its row; padding on the left counts for nothing."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def to(self, device: Any) -> "Batch":
        return Batch(*(getattr(self, f).to(device) for f in ("ids", "mask", "content", "first", "doc", "start")))


def is_chat(text: Any) -> bool:
    return isinstance(text, list) and bool(text) and isinstance(text[0], dict)


def in_span(message: dict, span: str) -> bool:
    """Whether a message of a chat belongs to "all", the "answer" (what the assistant says) or the "prompt" (others)."""
    return span == "all" or (message.get("role") == "assistant") == (span == "answer")


def as_texts(texts: Any) -> Iterable[Any]:
    """One text, one chat, a list, a Series, a tensor of ids or an iterator of them, as an iterable of texts.

    Raises:
        InputError: an empty list, or something that is no text.
    """
    if isinstance(texts, str) or is_chat(texts):
        return [texts]
    if isinstance(texts, Tensor):
        texts = texts.tolist() if texts.dim() == 2 else [texts.tolist()]
    elif isinstance(texts, dict) or not isinstance(texts, Iterable):
        raise InputError(f"expected a text, a chat or a list of them, got {type(texts).__name__}.")
    elif hasattr(texts, "tolist"):  # numpy array or pandas Series
        texts = texts.tolist()
    if isinstance(texts, Sequence) and not len(texts):
        raise InputError("got an empty list of texts: give at least one.")
    return texts


class Reader:
    """Turns texts into rows with one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer, or None if only token ids will be given.
        limit: longest row the model can read, in tokens.
    """

    def __init__(self, tokenizer: Any, limit: int):
        self.tokenizer = tokenizer
        self.limit = limit
        self.special = set(tokenizer.all_special_ids) if tokenizer is not None else set()

    def rows(
        self,
        texts: Sequence[Any],
        first_doc: int,
        *,
        role: str | None,
        max_length: int | None,
        long: str,
        empty: str,
        span: str = "all",
        generation: bool = False,
    ) -> list[Row]:
        """Rows of a window of texts.

        Raises:
            InputError: something that is no text, an empty text, or one longer than `max_length` with long="error";
                or a span of what is no chat.
        """
        for name, value, valid in (("long", long, LONG), ("span", span, SPANS)):
            if value not in valid:
                raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(valid)}.{closest(value, valid)}")
        limit = min(max_length or self.limit, self.limit)
        rows: list[Row] = []
        for doc, (ids, content) in enumerate(self._encode(texts, first_doc, role, span, generation), first_doc):
            if not ids:
                if empty == "error":
                    raise InputError(f"text {doc} is empty: it has no tokens. Remove it or give it content.")
                continue
            if len(ids) > limit and long == "error":
                raise InputError(
                    f"text {doc} has {len(ids):,} tokens, more than the {limit:,} allowed here. Pass "
                    'long="cut" to read its beginning or long="chunk" to read it in pieces'
                    + (f" (the model reads up to {self.limit:,})." if limit < self.limit else ".")
                )
            ends = range(limit, limit + 1) if long == "cut" else range(limit, len(ids) + limit, limit)
            rows += [Row(ids[e - limit : e], content[e - limit : e], doc, e - limit) for e in ends]
        return rows

    def _encode(
        self, texts: Sequence[Any], first_doc: int, role: str | None, span: str, generation: bool
    ) -> Iterator[tuple[list[int], list[bool]]]:
        rendered: list[tuple[str, list[tuple[int, int]] | None] | list[int]] = []
        for doc, text in enumerate(texts, first_doc):
            if isinstance(text, str):
                if role is None:
                    if span != "all":
                        raise InputError(f"text {doc} is a plain text, so it has no {span}: give chats, or span='all'.")
                    rendered.append((text, None))
                    continue
                text = [{"role": role, "content": text}]
            if is_chat(text):
                rendered.append(self._render(text, doc, span, generation))
            elif isinstance(text, list) and all(isinstance(i, int) for i in text):
                rendered.append(text)
            else:
                raise InputError(
                    f"text {doc} is a {type(text).__name__} ({text!r:.60}), not a string. "
                    "Drop such rows or turn them into text first."
                )
        strings = [r for r in rendered if isinstance(r, tuple)]
        encoded = iter(self._tokenize([s for s, _ in strings], [spans is None for _, spans in strings]))
        for item in rendered:
            if isinstance(item, list):
                yield item, [i not in self.special for i in item]
            else:
                ids, offsets = next(encoded)
                yield ids, self._content(ids, offsets, item[1])

    def _tokenize(self, texts: list[str], plain: list[bool]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return []
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: pass one to sl.wrap(model, tokenizer), or give token ids.")
        if not self.tokenizer.is_fast:
            raise InputError(
                "a fast tokenizer is needed (offsets tell content from template); "
                f"{type(self.tokenizer).__name__} is not one."
            )
        out: list = [None] * len(texts)
        for add in (True, False):  # a chat template writes its own special tokens
            chosen = [i for i, p in enumerate(plain) if p == add]
            if chosen:
                enc = self.tokenizer(
                    # half a surrogate pair is no character: it is read as "?", which keeps all offsets
                    [texts[i].encode("utf-8", "replace").decode("utf-8") for i in chosen],
                    add_special_tokens=add,
                    return_offsets_mapping=True,
                    verbose=False,
                )
                for i, ids, offsets in zip(chosen, enc["input_ids"], enc["offset_mapping"], strict=True):
                    out[i] = (ids, offsets)
        return out

    def _content(
        self, ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]] | None
    ) -> list[bool]:
        if spans is None:
            return [i not in self.special for i in ids]
        return [
            i not in self.special and any(s < b and a < e for a, b in spans)
            for i, (s, e) in zip(ids, offsets, strict=True)
        ]

    def _render(self, chat: list[dict], doc: int, span: str, generation: bool) -> tuple[str, list[tuple[int, int]]]:
        """A chat through the model's template, and where the given contents of a span lie in it."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise InputError("this model's tokenizer has no chat template; give plain texts and leave role=None.")
        bad = next((m for m in chat if not isinstance(m.get("content"), str)), None)
        if bad is not None:
            raise InputError(f"text {doc}: a chat message needs a string under 'content', got {bad!r:.80}.")
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation)
        spans, at = [], 0
        for message in chat:
            content = message["content"]
            found = text.find(content, at)
            if found < 0:  # many templates strip what they are given
                content = content.strip()
                found = text.find(content, at)
            if found < 0:
                raise InputError(
                    f"text {doc}: the chat template rewrites the content {content!r:.60}, so its tokens "
                    "cannot be told from the template's. Render the chat yourself and pass plain text."
                )
            if in_span(message, span):
                spans.append((found, found + len(content)))
            at = found + len(content)
        return text, [s for s in spans if s[1] > s[0]]

    def batches(
        self,
        texts: Any,
        *,
        batch_tokens: int,
        role: str | None,
        max_length: int | None,
        long: str,
        padding_side: str,
        empty: str = "error",
        span: str = "all",
        sort: bool = True,
        generation: bool = False,
    ) -> Iterator[Batch]:
        """Stream batches of at most `batch_tokens` tokens, padding included (a longer row goes alone)."""
        if padding_side not in ("left", "right"):
            raise InputError(f"padding_side={padding_side!r}: valid are 'left' and 'right'.")
        source, doc = iter(as_texts(texts)), 0
        while window := list(islice(source, WINDOW)):
            rows = self.rows(
                window, doc, role=role, max_length=max_length, long=long, empty=empty, span=span, generation=generation
            )
            doc += len(window)
            if sort:
                rows.sort(key=lambda r: len(r.ids))
            for group in grouped(rows, batch_tokens):
                yield self.pad(group, padding_side)
        if not doc:
            raise InputError("got no texts: give at least one.")

    def pad(self, rows: list[Row], side: str) -> Batch:
        """Pad rows to one length on one side."""
        width = max(len(r.ids) for r in rows)
        pad = 0
        if self.tokenizer is not None:
            pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask, content, first = (torch.zeros(len(rows), width, dtype=torch.bool) for _ in range(3))
        for n, row in enumerate(rows):
            begin = width - len(row.ids) if side == "left" else 0
            span = slice(begin, begin + len(row.ids))
            ids[n, span] = torch.tensor(row.ids)
            mask[n, span] = True
            content[n, span] = torch.tensor(row.content)
            first[n, begin] = True
        doc, start = (torch.tensor([getattr(r, f) for r in rows]) for f in ("doc", "start"))
        return Batch(ids, mask, content, first, doc, start)


def grouped(rows: list[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows whose padded size stays within `batch_tokens`.

    Half of that is enough for full speed, so a batch also ends before a row that would pad the others by a tenth.
    """
    group: list[Row] = []
    width = 0
    for row in rows:
        wider = max(width, len(row.ids))
        pads = 2 * width * len(group) >= batch_tokens and wider > 1.1 * width
        if group and (pads or wider * (len(group) + 1) > batch_tokens):
            yield group
            group, wider = [], len(row.ids)
        group.append(row)
        width = wider
    if group:
        yield group

"""The texts to embed: checked, counted off into blocks, and known by a fingerprint."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError, closest
from sparselens.models.batches import as_texts, is_chat

if TYPE_CHECKING:
    import pandas

BLOCK_DOCUMENTS = 256
BLOCK_CHARACTERS = 200_000  # about 50,000 tokens: bounds a block of long documents too
OWN_COLUMNS = ("text", "n_tokens")


@dataclass(frozen=True)
class Documents:
    """Texts with what was known about them.

    Attributes:
        texts: a string or a chat (list of messages) each.
        columns: the other columns of the frame they came in, or None.
    """

    texts: list[Any]
    columns: "pandas.DataFrame | None"

    def shown(self, index: int) -> str:
        """A text as one string; the messages of a chat are joined by empty lines."""
        text = self.texts[index]
        return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)

    def blocks(self) -> list[range]:
        """Consecutive documents, at most 256 or about 200,000 characters, whichever is fewer (but at least one)."""
        out, start, characters = [], 0, 0
        for i in range(len(self.texts)):
            size = len(self.shown(i))
            if i > start and (i - start == BLOCK_DOCUMENTS or characters + size > BLOCK_CHARACTERS):
                out.append(range(start, i))
                start, characters = i, 0
            characters += size
        out.append(range(start, len(self.texts)))
        return out

    def fingerprint(self) -> str:
        """A sha256 over all texts, in order."""
        digest = hashlib.sha256()
        for text in self.texts:
            # JSON keeps lone halves of surrogate pairs, which UTF-8 cannot write
            digest.update(json.dumps(text).encode() + b"\n")
        return digest.hexdigest()


def as_documents(texts: Any, text_column: str = "text") -> Documents:
    """Check the input of `embed`.

    Args:
        texts: a string, a chat, a list of either, a Series of strings, or a frame.
        text_column: the column of a frame that holds the texts.

    Raises:
        InputError: no texts, no such column, a row that is no text (its index and type are named), or nothing but
            empty strings.
    """
    columns = None
    if hasattr(texts, "columns") and hasattr(texts, "iloc"):
        columns = _carried(texts, text_column)
        texts = texts[text_column]
    # a dataset column is an iterable without length: it is read once, here
    found = list(as_texts(texts))
    if not found:
        raise InputError("got no texts: give at least one.")
    for i, text in enumerate(found):
        _check(text, i)
    if not any(found):
        raise InputError(f"all {len(found)} texts are empty: there is nothing to embed.")
    return Documents(found, columns)


def _carried(frame: "pandas.DataFrame", text_column: str) -> "pandas.DataFrame":
    if text_column not in frame.columns:
        names = [str(c) for c in frame.columns]
        raise InputError(f"the frame has no column {text_column!r}; its columns are {', '.join(names)}. Pass "
                         f"text_column=...{closest(text_column, names)}")
    columns = frame.drop(columns=text_column).reset_index(drop=True)
    columns.columns = [str(c) for c in columns.columns]
    taken = [c for c in columns.columns if c in OWN_COLUMNS]
    if taken:
        raise InputError(f"the column {taken[0]!r} would clash with the embedding's own: rename it or drop it.")
    if columns.columns.has_duplicates:
        raise InputError("two columns of the frame have the same name: rename one.")
    return columns


def _check(text: Any, index: int) -> None:
    if isinstance(text, str):
        return
    if not is_chat(text):
        raise InputError(f"row {index} is a {type(text).__name__} ({text!r:.60}), not a string or a chat. Drop such "
                         "rows (in pandas: frame.dropna(subset=[...])) or turn them into text first.")
    bad = next((m for m in text if not isinstance(m, dict) or not isinstance(m.get("content"), str)), None)
    if bad is not None:
        raise InputError(f"row {index} is a chat whose message {bad!r:.80} has no string under 'content'.")

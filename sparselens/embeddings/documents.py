"""The texts to embed: taken from what people keep texts in, checked, put into blocks, and known by a fingerprint."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparselens.errors import InputError, closest
from sparselens.models.batches import as_texts, in_span, is_chat

if TYPE_CHECKING:
    import pyarrow

BLOCK_DOCUMENTS = 256
BLOCK_CHARACTERS = 200_000  # about 50,000 tokens: bounds a block of long documents too
OWN_COLUMNS = ("text", "n_tokens", "source", "chunk")
T = TypeVar("T")


@dataclass(frozen=True)
class Documents:
    """Texts with what was known about them.

    Attributes:
        texts: a string or a chat (list of messages) each.
        columns: the other columns of the frame or records they came in, or None.
    """

    texts: list[Any]
    columns: "pyarrow.Table | None" = None

    def __len__(self) -> int:
        return len(self.texts)

    def blocks(self) -> list["Documents"]:
        """Consecutive documents, at most 256 or about 200,000 characters, whichever is fewer (but at least one)."""
        out, start = [], 0
        for texts in grouped(self.texts, len_shown):
            columns = None if self.columns is None else self.columns.slice(start, len(texts))
            out.append(Documents(texts, columns))
            start += len(texts)
        return out

    def fingerprint(self, *more: Any) -> str:
        """A sha256 over all texts, in order. Other digests, of which these texts are a part, are updated too."""
        digest = hashlib.sha256()
        for text in self.texts:
            # JSON keeps lone halves of surrogate pairs, which UTF-8 cannot write
            line = json.dumps(text).encode() + b"\n"
            for each in (digest, *more):
                each.update(line)
        return digest.hexdigest()


def shown(text: Any, span: str = "all") -> str:
    """A text as one string; the messages of a chat that belong to `span` are joined by empty lines."""
    if isinstance(text, str):
        return text
    return "\n\n".join(message["content"] for message in text if in_span(message, span))


def len_shown(text: Any) -> int:
    return len(shown(text))


def grouped(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items in lists of at most 256, or of a summed size of 200,000 (but at least one)."""
    group: list[T] = []
    total = 0
    for item in items:
        more = size(item)
        if group and (len(group) == BLOCK_DOCUMENTS or total + more > BLOCK_CHARACTERS):
            yield group
            group, total = [], 0
        group.append(item)
        total += more
    if group:
        yield group


def is_stream(texts: Any) -> bool:
    """Whether texts are read one after the other: a generator, a Hugging Face dataset, a Ray dataset."""
    if hasattr(texts, "iter_rows"):
        return True
    known = isinstance(texts, str | Path | Sequence | Mapping) or hasattr(texts, "tolist") or hasattr(texts, "iloc")
    return isinstance(texts, Iterable) and not known


def as_documents(texts: Any, text_column: str = "text") -> Documents:
    """Check the input of `embed`, all of it.

    Args:
        texts: a text, a chat, a list of either, a Series, a frame, a list of records, the path of a file, or a stream.
        text_column: the column of a frame, record or file that holds the texts.

    Raises:
        InputError: no texts, no such column, a row that is no text (its index and type are named), or nothing but
            empty strings.
    """
    columns = None
    if isinstance(texts, Path):
        texts = _file(texts, text_column)
    if hasattr(texts, "columns") and hasattr(texts, "iloc"):
        columns = _carried(texts, text_column)
        found = texts[text_column].tolist()
        _some(found)
    elif is_stream(texts) or _are_records(texts, text_column):
        parts = list(stream_documents(texts, text_column))
        _some(parts)
        found = [text for part in parts for text in part.texts]
        columns = _joined(parts)
    else:
        found = list(as_texts(texts))
    found = [_checked(text, i) for i, text in enumerate(found)]
    if not any(found):
        raise InputError(f"all {len(found)} texts are empty: there is nothing to embed.")
    return Documents(found, columns)


def stream_documents(texts: Any, text_column: str = "text") -> Iterator[Documents]:
    """Blocks of a stream, one held at a time.

    Args:
        texts: an iterable of texts, of chats or of records (dicts).
        text_column: the key of a record that holds the text; the other keys are carried along.

    Raises:
        InputError: a row that is no text, or records of which one has no such key; when it is reached.
    """
    rows = texts.iter_rows() if hasattr(texts, "iter_rows") else texts
    done = 0
    for group in grouped(_rows(rows, text_column), lambda row: len_shown(row[0])):
        records = [record for _, record in group if record is not None]
        if records and len(records) < len(group):
            raise InputError(f"rows {done} to {done + len(group) - 1} are partly records and partly bare texts: give "
                             "one or the other.")
        yield Documents([text for text, _ in group], _table(records, done) if records else None)
        done += len(group)


def _rows(rows: Iterable[Any], text_column: str) -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """Each row as its checked text and, of a record, the rest."""
    for i, row in enumerate(rows):
        record = None
        if isinstance(row, Mapping):
            if text_column not in row:
                names = [str(name) for name in row]
                raise InputError(f"row {i} has no {text_column!r}; it has {', '.join(names)}. Pass text_column=..."
                                 f"{closest(text_column, names)}")
            record = {str(name): value for name, value in row.items() if name != text_column}
            row = row[text_column]
        yield _checked(row, i), record


def _are_records(texts: Any, text_column: str) -> bool:
    """Whether a list holds records; one whose dicts have a "content" is a chat."""
    first = texts[0] if isinstance(texts, list) and texts else None
    return isinstance(first, Mapping) and text_column in first and "content" not in first


def _file(path: Path, text_column: str) -> Any:
    from sparselens.datasets import read_texts

    return read_texts(path, text_column)


def _some(found: list[Any]) -> None:
    if not found:
        raise InputError("got no texts (the input is empty): give at least one.")


def _carried(frame: Any, text_column: str) -> "pyarrow.Table | None":
    import pyarrow as pa

    if text_column not in frame.columns:
        names = [str(c) for c in frame.columns]
        raise InputError(f"the frame has no column {text_column!r}; its columns are {', '.join(names)}. Pass "
                         f"text_column=...{closest(text_column, names)}")
    columns = frame.drop(columns=text_column).reset_index(drop=True)
    columns.columns = [str(c) for c in columns.columns]
    if columns.columns.has_duplicates:
        raise InputError("two columns of the frame have the same name: rename one.")
    try:
        return _own(pa.Table.from_pandas(columns, preserve_index=False))
    except pa.ArrowException as error:
        raise InputError(f"a carried column cannot be stored: {error}. Convert it or drop it first.") from error


def _table(records: list[dict[str, Any]], first: int) -> "pyarrow.Table | None":
    import pyarrow as pa

    names = list(dict.fromkeys(name for record in records for name in record))
    try:
        return _own(pa.table({name: pa.array([r.get(name) for r in records]) for name in names}))
    except pa.ArrowException as error:
        raise InputError(f"rows {first} to {first + len(records) - 1} hold a value that cannot be stored: {error}. "
                         "Convert it or leave it out.") from error


def _own(columns: "pyarrow.Table") -> "pyarrow.Table | None":
    """The carried columns, unless one has a name that the embedding needs itself."""
    taken = [name for name in columns.column_names if name in OWN_COLUMNS]
    if taken:
        raise InputError(f"the column {taken[0]!r} would clash with the embedding's own: rename it or drop it.")
    return columns if columns.num_columns else None


def _joined(parts: list[Documents]) -> "pyarrow.Table | None":
    """The carried columns of all parts; what one does not have is null there."""
    import pyarrow as pa

    tables = [part.columns for part in parts]
    name = next((table.column_names[0] for table in tables if table is not None), None)
    if name is None:
        return None
    blank = [pa.table({name: pa.nulls(len(part))}) for part in parts]
    filled = [b if table is None else table for table, b in zip(tables, blank, strict=True)]
    return pa.concat_tables(filled, promote_options="permissive")


def _checked(text: Any, index: int) -> Any:
    """A string or a chat, or `InputError`."""
    if isinstance(text, str):
        return text
    if hasattr(text, "tolist") and not isinstance(text, float):  # Parquet gives lists as arrays
        text = text.tolist()
    if not is_chat(text):
        raise InputError(f"row {index} is a {type(text).__name__} ({text!r:.60}), not a string or a chat. Drop such "
                         "rows (in pandas: frame.dropna(subset=[...])) or turn them into text first.")
    bad = next((m for m in text if not isinstance(m, dict) or not isinstance(m.get("content"), str)), None)
    if bad is not None:
        raise InputError(f"row {index} is a chat whose message {bad!r:.80} has no string under 'content'.")
    return text

"""Blocks of embedded documents as Arrow tables, in memory or memory-mapped from a file each."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.embeddings.pool import Entries, Pooled
from sparselens.errors import FileFormatError
from sparselens.files import write_whole

if TYPE_CHECKING:
    import pyarrow

_CARRIED = "column."  # before the name of a carried column
_TEXTS, _PANDAS = b"texts_sha256", b"pandas"
_NEEDED = {"text", "n_tokens", "n_read", "feature", "value", "pieces", "token_count", "token_feature", "token_value"}
_HALF = np.float16
_HALF_MAX, _HALF_MIN = 65504.0, 2.0**-24


class Tokens(NamedTuple):
    """The tokens of one document, with their active codes.

    Attributes:
        pieces: the text, token by token (T of them).
        active: int32 `[T]` number of active features of each token.
        feature: `[n]` the active features, token after token.
        value: float16 `[n]` their values.
    """

    pieces: list[str]
    active: np.ndarray
    feature: np.ndarray
    value: np.ndarray


def index_type(n: int) -> type[np.integer]:
    """The smaller of two types that counts up to `n`."""
    return np.uint16 if n <= 2**16 else np.int32


def to_half(values: np.ndarray) -> np.ndarray:
    """Values as float16, held to its range: none becomes infinite, and none that is active becomes zero."""
    half = values.clip(-_HALF_MAX, _HALF_MAX).astype(_HALF)
    lost = np.flatnonzero((half == 0) & (values != 0))
    half[lost] = np.copysign(_HALF_MIN, values[lost])
    return half


def block_table(
    texts: Sequence[str],
    pieces: Sequence[list[str]],
    n_tokens: np.ndarray,
    entries: Entries,
    pooled: Pooled,
    d_sae: int,
    n_read: np.ndarray | None = None,
    origin: tuple[np.ndarray, np.ndarray] | None = None,
) -> "pyarrow.Table":
    """One block of documents as an Arrow table, a row a document.

    Args:
        texts: what is shown of each document.
        pieces: the text of each of its tokens.
        n_tokens: int `[documents]` how many of them were pooled.
        entries: the active codes; `token` counts all tokens of the block, in the order of `pieces`.
        pooled: the pooled codes.
        d_sae: number of latents.
        n_read: int `[documents]` tokens that went through the model; `n_tokens` if None.
        origin: where documents are chunks of texts: the `source` text of each and its number there, `chunk`.
    """
    import pyarrow as pa

    index = index_type(d_sae)
    lengths = np.array([len(p) for p in pieces], dtype=np.int64)
    count = np.bincount(entries.token, minlength=int(lengths.sum())).astype(np.int32)

    def rows(values: np.ndarray, per_document: np.ndarray) -> Any:
        offsets = np.r_[0, np.cumsum(per_document)]
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))

    fired = np.bincount(entries.document, minlength=len(texts))
    kept = np.bincount(pooled.document, minlength=len(texts))
    columns = {
        # half a surrogate pair cannot be written as UTF-8
        "text": pa.array([_clean(t) for t in texts], pa.large_string()),
        "n_tokens": pa.array(n_tokens.astype(np.int32)),
        "n_read": pa.array((n_tokens if n_read is None else n_read).astype(np.int32)),
        "feature": rows(pooled.feature.astype(index), kept),
        "value": rows(pooled.value.astype(np.float32), kept),
        "pieces": pa.array([[_clean(p) for p in row] for row in pieces], pa.large_list(pa.large_string())),
        "token_count": rows(count, lengths),
        "token_feature": rows(entries.feature.astype(index), fired),
        "token_value": rows(to_half(entries.value), fired),
    }
    if origin is not None:
        columns |= {"source": pa.array(origin[0].astype(np.int64)), "chunk": pa.array(origin[1].astype(np.int32))}
    return pa.table(columns)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def with_columns(table: "pyarrow.Table", columns: "pyarrow.Table | None", texts_sha256: str) -> "pyarrow.Table":
    """A block with the columns carried along with its texts, and the fingerprint of the texts.

    Args:
        table: from `block_table`, or a block that has other columns.
        columns: a row for each text; None drops what is there.
        texts_sha256: see `Documents.fingerprint`.
    """
    import pyarrow.compute as pc

    table = table.drop_columns([name for name in table.column_names if name.startswith(_CARRIED)])
    facts = {_TEXTS: texts_sha256.encode()}
    if columns is not None:
        if "source" in table.column_names:
            columns = columns.take(pc.subtract(table["source"], table["source"][0]))
        facts |= _types(columns)
        for name in columns.column_names:
            table = table.append_column(_CARRIED + name, columns[name])
    return table.replace_schema_metadata(facts)


def carried(table: "pyarrow.Table") -> "pyarrow.Table":
    """The columns carried along with the texts of a block, under their own names."""
    names = [name for name in table.column_names if name.startswith(_CARRIED)]
    bare = table.select(names).rename_columns([n[len(_CARRIED) :] for n in names])
    return bare.replace_schema_metadata(_types(table))


def _types(table: "pyarrow.Table") -> dict[bytes, bytes]:
    """What pandas noted about its own types."""
    return {key: value for key, value in (table.schema.metadata or {}).items() if key == _PANDAS}


def texts_sha256(table: "pyarrow.Table") -> str:
    """The fingerprint of the texts of a block."""
    return (table.schema.metadata or {}).get(_TEXTS, b"").decode()


def entries_of(table: "pyarrow.Table") -> Entries:
    """The codes of all tokens of a block; values float32, from the float16 that is stored."""
    count, lengths = flat_numbers(table, "token_count")
    token = np.repeat(np.arange(len(count)), count)
    document = np.repeat(np.repeat(np.arange(len(lengths)), lengths), count)
    feature, value = (flat_numbers(table, name)[0] for name in ("token_feature", "token_value"))
    return Entries(document, token, feature.astype(np.int64), value.astype(np.float32))


def write_table(table: "pyarrow.Table", path: Path) -> None:
    """Write an uncompressed Arrow file, which can be memory-mapped. It appears whole or not at all."""
    import pyarrow as pa

    with write_whole(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())  # a power cut after the renaming must not leave an empty file


def read_table(path: Path) -> "pyarrow.Table":
    """Open an Arrow file memory-mapped.

    Raises:
        FileFormatError: the file is damaged, or holds something else.
    """
    import pyarrow as pa

    again = "Delete that one file and embed again with the same inputs: the other blocks are kept."
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # a wrong offset would be read beyond the end of the file
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is no UTF-8
        raise FileFormatError(f"{path} is damaged ({str(error).splitlines()[0]}). {again}") from error
    if missing := _NEEDED - set(table.column_names):
        raise FileFormatError(f"{path} is no block of an embedding: it has no {min(missing)!r}. {again}")
    return table


class Blocks:
    """Blocks of documents, in memory or on disk, read a document at a time.

    Args:
        parts: Arrow tables, or paths of Arrow files; a file is opened when it is read.
        starts: index of the first document of each, and the number of all documents at the end.
        seconds: how long it took to make them.
    """

    def __init__(self, parts: Sequence[Any], starts: Sequence[int], seconds: float = 0.0):
        self.parts, self.starts, self.seconds = list(parts), np.asarray(starts, dtype=np.int64), seconds
        self._open = lru_cache(maxsize=8)(read_table)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self, block: int) -> "pyarrow.Table":
        """The Arrow table of one block."""
        part = self.parts[block]
        return self._open(part) if isinstance(part, Path) else part

    def rows(self, documents: np.ndarray) -> Iterator[tuple[np.ndarray, "pyarrow.Table"]]:
        """Tables with the rows of `documents`, block after block, and where in `documents` each row comes from."""
        blocks = np.searchsorted(self.starts, documents, side="right") - 1
        for block in np.unique(blocks):
            where = np.flatnonzero(blocks == block)
            inside = documents[where] - self.starts[block]
            table = self.table(int(block))
            whole = len(inside) == len(table) and bool((inside == np.arange(len(table))).all())
            yield where, table if whole else table.take(inside)

    def document(self, index: int) -> Tokens:
        """The tokens and codes of one document."""
        block = int(np.searchsorted(self.starts, index, side="right") - 1)
        row = index - int(self.starts[block])
        table = self.table(block)

        def cell(name: str) -> Any:
            return table.column(name)[row].values

        names = ("token_count", "token_feature", "token_value")
        return Tokens(cell("pieces").to_pylist(), *(cell(name).to_numpy(zero_copy_only=False) for name in names))


def flat(table: "pyarrow.Table", name: str) -> tuple[Any, np.ndarray]:
    """A list column as one flat Arrow array, and the length of each row's list `[documents]`."""
    import pyarrow.compute as pc

    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return array.flatten(), pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)


def flat_numbers(table: "pyarrow.Table", name: str) -> tuple[np.ndarray, np.ndarray]:
    """`flat` with the values as a numpy array."""
    values, lengths = flat(table, name)
    return values.to_numpy(zero_copy_only=False), lengths

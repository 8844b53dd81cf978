"""Embedded documents on disk: a folder with a manifest and one memory-mapped Arrow file per block of documents."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.embeddings.pool import Entries, Pooled
from sparselens.errors import FileFormatError, InputError
from sparselens.files import read_json, write_json, write_whole

if TYPE_CHECKING:
    import pandas
    import pyarrow

FORMAT = 1
MANIFEST = "manifest.json"
COLUMNS = "columns.arrow"
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
) -> "pyarrow.Table":
    """One block of documents as an Arrow table, a row a document.

    Args:
        texts: what is shown of each document.
        pieces: the text of each of its tokens.
        n_tokens: int `[documents]` how many of them were pooled.
        entries: the active codes; `token` counts all tokens of the block, in the order of `pieces`.
        pooled: the pooled codes.
        d_sae: number of latents.
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
    return pa.table({
        # half a surrogate pair cannot be written as UTF-8
        "text": pa.array([_clean(t) for t in texts], pa.large_string()),
        "n_tokens": pa.array(n_tokens.astype(np.int32)),
        "feature": rows(pooled.feature.astype(index), kept),
        "value": rows(pooled.value.astype(np.float32), kept),
        "pieces": pa.array([[_clean(p) for p in row] for row in pieces], pa.large_list(pa.large_string())),
        "token_count": rows(count, lengths),
        "token_feature": rows(entries.feature.astype(index), fired),
        "token_value": rows(to_half(entries.value), fired),
    })


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def write_table(table: "pyarrow.Table", path: Path) -> None:
    """Write an uncompressed Arrow file, which can be memory-mapped. It appears whole or not at all."""
    import pyarrow as pa

    with (
        write_whole(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_table(path: Path) -> "pyarrow.Table":
    """Open an Arrow file memory-mapped.

    Raises:
        FileFormatError: the file is damaged.
    """
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise FileFormatError(f"{path} is damaged ({error}). Delete that one file and embed again with the same "
                              "inputs: the other blocks are kept.") from error


class Folder:
    """A folder of embedded documents.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    def block(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.arrow"

    def open(self, manifest: dict[str, Any]) -> None:
        """Begin, or go on after an interruption.

        Raises:
            InputError: the folder holds an embedding of other texts or with other settings, or other files.
        """
        import shutil

        if (self.path / MANIFEST).exists():
            self._same(read_json(self.path / MANIFEST), manifest)
            for left in self.path.glob(".block-*.tmp"):  # of a run that was killed while writing
                shutil.rmtree(left, ignore_errors=True)
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} holds other files and no {MANIFEST}: give a new or empty folder as out=.")
        else:
            write_json(self.path / MANIFEST, manifest)

    def _same(self, there: dict[str, Any], now: dict[str, Any]) -> None:
        differ = [key for key in now if there.get(key) != now[key]]
        if differ:
            said = "; ".join(f"{key}: {there.get(key)!r:.70} there, {now[key]!r:.70} now" for key in differ)
            raise InputError(f"{self.path} holds an embedding of other inputs ({said}). Give another folder as out=, "
                             "or delete this one.")

    def manifest(self) -> dict[str, Any]:
        """What was embedded, and how.

        Raises:
            InputError: no embedding is there. FileFormatError: it is unfinished, or of another version.
        """
        if not (self.path / MANIFEST).exists():
            raise InputError(f"{self.path} holds no embedding (there is no {MANIFEST}).")
        manifest = read_json(self.path / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise FileFormatError(f"{self.path} has format {manifest.get('format')!r}; this version reads {FORMAT}.")
        n_blocks = len(manifest["blocks"])
        done = sum(self.block(i).exists() for i in range(n_blocks))
        if done < n_blocks:
            raise FileFormatError(f"{self.path} is unfinished: {done} of {n_blocks} blocks are there. Call sl.embed "
                                  "again with the same inputs; it goes on where it stopped.")
        return manifest

    def write_columns(self, columns: "pandas.DataFrame | None") -> None:
        """Keep the carried columns.

        Raises:
            InputError: a column holds what Arrow has no type for.
        """
        import pyarrow as pa

        if columns is None or not len(columns.columns):
            (self.path / COLUMNS).unlink(missing_ok=True)
            return
        try:
            table = pa.Table.from_pandas(columns, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise InputError(f"a carried column cannot be stored: {error}. Convert it or drop it first.") from error
        write_table(table, self.path / COLUMNS)

    def columns(self) -> "pandas.DataFrame | None":
        return read_table(self.path / COLUMNS).to_pandas() if (self.path / COLUMNS).exists() else None


class Blocks:
    """Blocks of documents, in memory or on disk, read a document at a time.

    Args:
        parts: Arrow tables, or paths of Arrow files; a file is opened when it is read.
        starts: index of the first document of each, and the number of all documents at the end.
    """

    def __init__(self, parts: Sequence[Any], starts: Sequence[int]):
        self.parts, self.starts = list(parts), np.asarray(starts, dtype=np.int64)
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

"""A folder of embedded documents: a manifest, one Arrow file per block, and what it cost."""

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.embeddings.store import Blocks, carried, read_table, texts_sha256, with_columns, write_table
from sparselens.errors import FileFormatError, InputError
from sparselens.files import read_json, write_json

if TYPE_CHECKING:
    import pyarrow

FORMAT = 2
MANIFEST, COST = "manifest.json", "cost.json"
_OWN = (".block-", f".{MANIFEST}.", f".{COST}.")


def part_of(fingerprint: str | None, n_documents: int = 0, blocks: list[int] | None = None) -> dict[str, Any]:
    """What a manifest says of one call's texts: `blocks` are the documents of each file, None while unfinished."""
    return {"texts_sha256": fingerprint, "n_texts": n_documents, "blocks": blocks}


class Memory:
    """Embedded documents that stay in memory; used like a `Folder`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._tables: dict[int, pyarrow.Table] = {}

    def open(self, settings: dict[str, Any], fingerprint: str | None, append: bool = False) -> None:
        self._now = settings | {"format": FORMAT}

    def has(self, index: int, fingerprint: str, columns: "pyarrow.Table | None") -> bool:
        return False

    def put(
        self, index: int, table: "pyarrow.Table", columns: "pyarrow.Table | None", fingerprint: str, seconds: float
    ) -> None:
        self._tables[index] = with_columns(table, columns, fingerprint)
        self.seconds += seconds

    def finish(self, fingerprint: str, n_texts: int, n_blocks: int) -> None:
        self._now["parts"] = [part_of(fingerprint, n_texts, [len(self._tables[i]) for i in range(n_blocks)])]

    def result(self) -> tuple[Blocks, dict[str, Any]]:
        """The blocks in order, and what they are."""
        tables = [self._tables[i] for i in range(len(self._tables))]
        starts = [0, *accumulate(len(table) for table in tables)]
        return Blocks(tables, starts, self.seconds), self._now


class Folder:
    """A folder of embedded documents, open for one call of `embed` or for reading.

    Args:
        path: the folder.

    Attributes:
        first_block, first_text: where the texts of this call begin; above 0 when they are appended.
        seconds: time spent on all blocks, also by earlier calls.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.first_block = self.first_text = self._at = 0
        self.seconds = 0.0
        self._rows: dict[int, int] = {}  # documents in the blocks of this call

    def block(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.arrow"

    def open(self, settings: dict[str, Any], fingerprint: str | None, append: bool = False) -> None:
        """Begin, go on after an interruption, or add texts behind those that are there.

        Args:
            settings: what is embedded and how.
            fingerprint: of the texts; None for a stream, which is checked block by block.
            append: add to the folder; texts that were appended before are not added again.

        Raises:
            InputError: the folder holds an embedding of other texts or with other settings, or other files.
        """
        import shutil

        for left in self.path.glob(".*.tmp"):  # of a run that was killed while writing
            if left.name.startswith(_OWN):
                shutil.rmtree(left, ignore_errors=True)
        if not (self.path / MANIFEST).exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise InputError(f"{self.path} holds other files and no {MANIFEST}: give a new or empty folder as "
                                 "out=.")
            self._now = settings | {"format": FORMAT, "parts": [part_of(fingerprint)]}
            write_json(self.path / MANIFEST, self._now)
            return
        self._now = self._manifest()
        self._same(settings)
        self.seconds = self._spent()
        self._choose(fingerprint, append)

    def _same(self, settings: dict[str, Any]) -> None:
        differ = [key for key in settings if self._now.get(key) != settings[key]]
        if differ:
            said = "; ".join(f"{k}: {self._now.get(k)!r:.70} there, {settings[k]!r:.70} now" for k in differ)
            raise InputError(f"{self.path} holds an embedding of other inputs ({said}). Give another folder as out=, "
                             "or delete this one.")

    def _choose(self, fingerprint: str | None, append: bool) -> None:
        """Find the part that the texts belong to, or begin one."""
        parts = self._now["parts"]
        known = [part["texts_sha256"] for part in parts]
        if fingerprint in known:
            self._at = known.index(fingerprint)
        elif fingerprint is None or known[0] is None:  # a stream: its blocks will tell
            self._at = 0
        elif not append:
            raise InputError(f"{self.path} holds an embedding of other inputs (texts_sha256: {known[0][:12]}… there, "
                             f"{fingerprint[:12]}… now). Give another folder as out=, add to this one with "
                             "append=True, or delete it.")
        elif parts[-1]["blocks"] is None:
            raise InputError(f"{self.path} is unfinished, so nothing can be appended yet. Embed the texts it was made "
                             "for again; that goes on where it stopped.")
        else:
            self._at = len(parts)
            parts.append(part_of(fingerprint))
            write_json(self.path / MANIFEST, self._now)
        if not append and len(parts) > 1:
            raise InputError(f"{self.path} holds appended texts as well: open it with SAEEmbedding.load, or pass "
                             "append=True.")
        self.first_block = sum(len(part["blocks"]) for part in parts[: self._at])
        self.first_text = sum(part["n_texts"] for part in parts[: self._at])

    def has(self, index: int, fingerprint: str, columns: "pyarrow.Table | None") -> bool:
        """Whether a block of this call is there; the columns carried along are brought up to date.

        Raises:
            InputError: it was made from other texts. FileFormatError: it is damaged.
        """
        path = self.block(self.first_block + index)
        if not path.exists():
            return False
        table = read_table(path)
        if texts_sha256(table) != fingerprint:
            raise InputError(f"{path} was made from other texts than these. Give another folder as out=, or delete "
                             "this one.")
        renewed = with_columns(table, columns, fingerprint)
        if not carried(renewed).equals(carried(table)):
            write_table(renewed, path)
        self._rows[index] = len(table)
        return True

    def put(
        self, index: int, table: "pyarrow.Table", columns: "pyarrow.Table | None", fingerprint: str, seconds: float
    ) -> None:
        """Keep a block of this call, with the columns carried along, and note what it cost."""
        table = with_columns(_moved(table, self.first_text), columns, fingerprint)
        write_table(table, self.block(self.first_block + index))
        self._rows[index] = len(table)
        self.seconds += seconds
        write_json(self.path / COST, {"seconds": self.seconds})

    def finish(self, fingerprint: str, n_texts: int, n_blocks: int) -> None:
        """Say in the manifest that this call's texts are complete.

        Raises:
            InputError: the folder holds more texts than that.
        """
        before = self._now["parts"][self._at]
        if before["blocks"] is not None and len(before["blocks"]) > n_blocks:
            raise InputError(f"{self.path} holds an embedding of {before['n_texts']:,} texts, and these are only the "
                             f"first {n_texts:,}. Give another folder as out=.")
        part = part_of(fingerprint, n_texts, [self._rows[i] for i in range(n_blocks)])
        if before != part:
            self._now["parts"][self._at] = part
            write_json(self.path / MANIFEST, self._now)

    def manifest(self) -> dict[str, Any]:
        """What was embedded, and how.

        Raises:
            InputError: no embedding is there. FileFormatError: it is unfinished, or of another version.
        """
        if not (self.path / MANIFEST).exists():
            raise InputError(f"{self.path} holds no embedding (there is no {MANIFEST}).")
        manifest = self._manifest()
        if any(part["blocks"] is None for part in manifest["parts"]):
            done = len(list(self.path.glob("block-*.arrow")))
            raise FileFormatError(f"{self.path} is unfinished: {done} blocks are there. Call sl.embed again with the "
                                  "same inputs; it goes on where it stopped.")
        missing = [i for i in range(len(rows_of(manifest))) if not self.block(i).exists()]
        if missing:
            raise FileFormatError(f"{self.path} is damaged: {self.block(missing[0]).name} is gone. Call sl.embed again "
                                  "with the same inputs; it makes what is missing.")
        self.seconds = self._spent()
        return manifest

    def _manifest(self) -> dict[str, Any]:
        manifest = read_json(self.path / MANIFEST)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise FileFormatError(f"{self.path} has format {found!r}; this version reads {FORMAT}.")
        if not isinstance(manifest.get("parts"), list) or not manifest["parts"]:
            raise FileFormatError(f"{self.path / MANIFEST} is damaged: it says nothing of the texts.")
        return manifest

    def _spent(self) -> float:
        return float(read_json(self.path / COST)["seconds"]) if (self.path / COST).exists() else 0.0


def rows_of(manifest: dict[str, Any]) -> list[int]:
    """Documents in each block file of a finished folder."""
    return [n for part in manifest["parts"] for n in part["blocks"]]


def _moved(table: "pyarrow.Table", by: int) -> "pyarrow.Table":
    """A block of chunks whose texts are counted on from the texts before."""
    import pyarrow.compute as pc

    if not by or "source" not in table.column_names:
        return table
    return table.set_column(table.column_names.index("source"), "source", pc.add(table["source"], by))

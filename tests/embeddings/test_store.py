"""The Arrow store: what goes in comes out, and what is damaged is named."""

import errno

import numpy as np
import pandas as pd
import pytest

from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.pool import Entries, Pooled
from sparselens.embeddings.store import Blocks, Folder, block_table, read_table, to_half, write_table
from sparselens.errors import FileFormatError, InputError, StorageError


def table(d_sae=10):
    entries = Entries(np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([3, 9, 3]), np.array([1.5, -2.0, 1e-9], "f4"))
    pooled = Pooled(np.array([0, 0, 2]), np.array([3, 9, 3]), np.array([1.5, -2.0, 1e-9], dtype="f4"))
    return block_table(["ab", "", "c\ud83d"], [["a", "b"], [], ["c"]], np.array([2, 0, 1]), entries, pooled, d_sae)


@pytest.mark.parametrize("d_sae", [10, 100_000])
def test_round_trip(tmp_path, d_sae):
    write_table(table(d_sae), tmp_path / "b.arrow")
    for part in (table(d_sae), tmp_path / "b.arrow"):
        blocks = Blocks([part], [0, 3])
        first, second, third = (blocks.document(i) for i in range(3))
        assert first.pieces == ["a", "b"]
        assert first.active.tolist() == [1, 1]
        assert first.feature.tolist() == [3, 9]
        assert first.value.tolist() == [1.5, -2.0]
        assert second.pieces == []
        assert third.value[0] > 0  # active stays active
    assert read_table(tmp_path / "b.arrow").equals(table(d_sae))


def test_half_precision_keeps_what_is_active_and_finite():
    values = np.array([0.0, 1e-12, -1e-12, 1e6, -1e6, 1.0], dtype=np.float32)
    half = to_half(values)
    assert np.isfinite(half).all()
    assert ((half != 0) == (values != 0)).all()
    assert (np.sign(half) == np.sign(values)).all()
    assert half[-1] == 1


def test_rows_come_back_in_any_order_across_blocks():
    blocks = Blocks([table(), table()], [0, 3, 6])
    found = {}
    for where, part in blocks.rows(np.array([5, 0, 2, 0])):
        for at, text in zip(where, part.column("text").to_pylist(), strict=True):
            found[int(at)] = text
    assert found == {0: "c?", 1: "ab", 2: "c?", 3: "ab"}


def test_a_damaged_block_is_named(tmp_path):
    path = tmp_path / "block-00000.arrow"
    write_table(table(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileFormatError, match="block-00000.arrow is damaged"):
        read_table(path)
    path.write_bytes(b"")
    with pytest.raises(FileFormatError, match="damaged"):
        read_table(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    import pyarrow as pa

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", full)
    with pytest.raises(StorageError, match="No space left"):
        write_table(table(), tmp_path / "b.arrow")
    assert list(tmp_path.iterdir()) == []


def test_folders_refuse_what_is_not_theirs(tmp_path):
    manifest = {"format": 1, "pooling": "max", "blocks": [3]}
    folder = Folder(tmp_path / "new")
    with pytest.raises(InputError, match="holds no embedding"):
        SAEEmbedding.load(folder.path)
    folder.open(manifest)
    folder.open(manifest)
    with pytest.raises(InputError, match="pooling: 'max' there, 'mean' now"):
        folder.open(manifest | {"pooling": "mean"})
    with pytest.raises(FileFormatError, match="0 of 1 blocks"):
        folder.manifest()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        Folder(tmp_path / "other").open(manifest)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (folder.path / "manifest.json").write_text('{"format": 99, "blocks": []}')
    with pytest.raises(FileFormatError, match="format 99"):
        folder.manifest()


def test_columns_that_cannot_be_kept_are_named(tmp_path):
    folder = Folder(tmp_path)
    folder.write_columns(pd.DataFrame({"n": [1, 2], "when": pd.to_datetime(["2020-01-01", None]), "c": ["x", None]}))
    back = folder.columns()
    assert back["n"].tolist() == [1, 2]
    assert back["when"].isna().tolist() == [False, True]
    with pytest.raises(InputError, match="odd"):
        folder.write_columns(pd.DataFrame({"odd": [1, "a"]}))
    folder.write_columns(None)
    assert folder.columns() is None

"""The Arrow store: what goes in comes out, and what is damaged is named."""

import errno

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.folder import Folder
from sparselens.embeddings.pool import Entries, Pooled
from sparselens.embeddings.store import (
    Blocks,
    block_table,
    carried,
    entries_of,
    read_table,
    texts_sha256,
    to_half,
    with_columns,
    write_table,
)
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
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", full)
    with pytest.raises(StorageError, match="No space left"):
        write_table(table(), tmp_path / "b.arrow")
    assert list(tmp_path.iterdir()) == []


SETTINGS = {"pooling": "max", "d_sae": 10}
PRINT, OTHER = "a" * 64, "b" * 64


def filled(path, prints=(PRINT,)):
    """A folder with one block of three documents for each call."""
    for each in prints:
        folder = Folder(path)
        folder.open(SETTINGS, each, append=each != prints[0])
        assert not folder.has(0, each, None)
        folder.put(0, table(), None, each, 1.5)
        folder.finish(each, 3, 1)
    return Folder(path)


def test_folders_refuse_what_is_not_theirs(tmp_path):
    folder = Folder(tmp_path / "new")
    with pytest.raises(InputError, match="holds no embedding"):
        SAEEmbedding.load(folder.path)
    folder.open(SETTINGS, PRINT)
    folder.open(SETTINGS, PRINT)
    with pytest.raises(InputError, match="pooling: 'max' there, 'mean' now"):
        folder.open(SETTINGS | {"pooling": "mean"}, PRINT)
    with pytest.raises(InputError, match="texts_sha256: aaaaaaaaaaaa.*append=True"):
        folder.open(SETTINGS, OTHER)
    with pytest.raises(InputError, match="nothing can be appended yet"):
        folder.open(SETTINGS, OTHER, append=True)
    with pytest.raises(FileFormatError, match="unfinished: 0 blocks"):
        folder.manifest()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        Folder(tmp_path / "other").open(SETTINGS, PRINT)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_calls_are_told_apart(tmp_path):
    folder = filled(tmp_path / "f", [PRINT, OTHER])
    assert [part["texts_sha256"] for part in folder.manifest()["parts"]] == [PRINT, OTHER]
    assert folder.seconds == 3.0
    again = Folder(folder.path)
    again.open(SETTINGS, OTHER, append=True)  # appended before: nothing is added
    assert (again.first_block, again.first_text) == (1, 3)
    assert again.has(0, OTHER, None)
    again.finish(OTHER, 3, 1)
    assert len(SAEEmbedding.load(folder.path)) == 6
    with pytest.raises(InputError, match="holds appended texts"):
        Folder(folder.path).open(SETTINGS, PRINT)


def test_a_stream_is_known_by_its_blocks(tmp_path):
    folder = filled(tmp_path / "f")
    stream = Folder(folder.path)
    stream.open(SETTINGS, None)
    with pytest.raises(InputError, match="other texts than these"):
        stream.has(0, OTHER, None)
    with pytest.raises(InputError, match="of 3 texts, and these are only the first 0"):
        stream.finish(OTHER, 0, 0)
    assert stream.has(0, PRINT, None)
    stream.put(1, table(), None, OTHER, 1.0)  # a stream that goes on where the other ended
    stream.finish("c" * 64, 6, 2)
    assert Folder(folder.path).manifest()["parts"] == [{"texts_sha256": "c" * 64, "n_texts": 6, "blocks": [3, 3]}]


def test_damaged_folders_are_named(tmp_path):
    folder = filled(tmp_path / "f")
    block, manifest = folder.block(0), folder.path / "manifest.json"
    good, said = block.read_bytes(), manifest.read_text()
    for damage in (good[: len(good) // 2], good[:-200], b"", b"\0" * len(good)):
        block.write_bytes(damage)
        with pytest.raises(FileFormatError, match="block-00000.arrow is damaged"):
            SAEEmbedding.load(folder.path).matrix  # noqa: B018
        fresh = Folder(folder.path)
        fresh.open(SETTINGS, PRINT)
        with pytest.raises(FileFormatError, match="Delete that one file"):
            fresh.has(0, PRINT, None)
    for at in range(good.rindex(b"ARROW1") // 3, len(good), 61):  # flipped bytes: an error or other numbers, no crash
        block.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            emb = SAEEmbedding.load(folder.path)
            assert emb.matrix.shape[0] == len(emb.documents)
        except FileFormatError:
            pass
    write_table(table().drop_columns(["pieces"]), block)
    with pytest.raises(FileFormatError, match="it has no 'pieces'"):
        SAEEmbedding.load(folder.path).matrix  # noqa: B018
    block.unlink()
    with pytest.raises(FileFormatError, match="block-00000.arrow is gone"):
        SAEEmbedding.load(folder.path)
    for text, says in (('{"format": 99}', "format 99"), ("[]", "format None"), ('{"format": 2}', "says nothing"),
                       (said[:40], "not valid JSON")):
        manifest.write_text(text)
        with pytest.raises(FileFormatError, match=says):
            SAEEmbedding.load(folder.path)


def test_columns_travel_with_their_texts():
    frame = pd.DataFrame({"n": pd.array([1, None, 3], dtype="Int64"), "c": pd.Categorical(["x", "y", "x"])})
    columns = pa.Table.from_pandas(frame)
    held = with_columns(table(), columns, PRINT)
    assert texts_sha256(held) == PRINT
    pd.testing.assert_frame_equal(carried(held).to_pandas(), frame)
    renewed = with_columns(held, columns.select(["c"]), PRINT)
    assert carried(renewed).column_names == ["c"]
    assert with_columns(renewed, None, PRINT).equals(with_columns(table(), None, PRINT))


def test_columns_of_texts_follow_their_chunks():
    origin = (np.array([7, 7, 8]), np.array([0, 1, 0]))
    entries = Entries(*(np.zeros(0, dtype=int) for _ in range(3)), np.zeros(0, dtype=np.float32))
    blank = Pooled(*(np.zeros(0, dtype=int) for _ in range(2)), np.zeros(0, dtype=np.float32))
    split = block_table(["a", "b", "c"], [[], [], []], np.zeros(3, int), entries, blank, 10, origin=origin)
    held = with_columns(split, pa.table({"n": [70, 80]}), PRINT)
    assert carried(held).to_pydict() == {"n": [70, 70, 80]}


def test_entries_come_back():
    got = entries_of(table())
    assert [got.document.tolist(), got.token.tolist(), got.feature.tolist()] == [[0, 0, 2], [0, 1, 2], [3, 9, 3]]
    assert got.value[:2].tolist() == [1.5, -2.0]

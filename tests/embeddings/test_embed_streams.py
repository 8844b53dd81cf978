"""Streams that are not held, folders that grow, and runs that are killed."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from sparselens.embeddings import SAEEmbedding
from sparselens.errors import FileFormatError, InputError
from tests import tiny
from tests.embeddings.test_reading import TEXTS, embed, files, make_sae, run_python

MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 7)]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 8)


def records():
    return ({"text": text, "n": i, "odd": None if i % 2 else str(i)} for i, text in enumerate(MANY))


def test_a_stream_writes_the_same_bytes_as_a_list(m, tmp_path):
    embed(MANY, m, make_sae(), tmp_path / "list")
    stream = embed(iter(MANY), m, make_sae(), tmp_path / "stream")
    assert files(tmp_path / "list") == files(tmp_path / "stream")
    embed(MANY, m, make_sae(), tmp_path / "stream")  # the same texts, whichever way they come
    embed((t for t in MANY), m, make_sae(), tmp_path / "list")
    assert files(tmp_path / "list") == files(tmp_path / "stream")
    assert len(stream) == len(MANY)
    held = embed(iter(MANY), m, make_sae())  # without a folder all is held
    assert (held.matrix != stream.matrix).nnz == 0


def test_a_stream_of_records_carries_its_columns(m, tmp_path):
    emb = embed(records(), m, make_sae(), tmp_path)
    assert emb.documents.n.tolist() == list(range(len(MANY)))
    assert emb.documents.odd[2] == "2"
    assert emb.documents.odd.isna().tolist() == [i % 2 == 1 for i in range(len(MANY))]
    assert emb.subset(emb.documents.n > 60).documents.n.min() == 61


def test_a_hugging_face_stream(m, tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"body": MANY, "n": list(range(len(MANY)))})
    for name, given in (("whole", whole), ("stream", whole.to_iterable_dataset(num_shards=2))):
        emb = embed(given, m, make_sae(), tmp_path / name, text_column="body")
        assert emb.documents.n.tolist() == list(range(len(MANY)))
    embed(MANY, m, make_sae(), tmp_path / "list")
    assert (SAEEmbedding.load(tmp_path / "stream").matrix != SAEEmbedding.load(tmp_path / "list").matrix).nnz == 0


def test_an_endless_stream_is_embedded_as_it_comes(m, tmp_path):
    class Enough(Exception):
        pass

    def texts():
        for i in itertools.count():
            blocks = len(list(tmp_path.glob("out/block-*.arrow")))
            assert blocks >= i // 8 - 1  # no more than a block ahead
            if i == 40:
                raise Enough
            yield MANY[i]

    with pytest.raises(Enough):
        embed(texts(), m, make_sae(), tmp_path / "out")
    with pytest.raises(FileFormatError, match="unfinished: 4 blocks"):
        SAEEmbedding.load(tmp_path / "out")
    resumed = embed(iter(MANY), m, make_sae(), tmp_path / "out")
    assert (resumed.matrix != embed(MANY, m, make_sae()).matrix).nnz == 0
    assert resumed.documents.text.tolist() == MANY


def test_what_is_wrong_in_a_stream(m, tmp_path):
    with pytest.raises(InputError, match="the stream is empty"):
        embed(iter([]), m, make_sae(), tmp_path / "out")
    with pytest.raises(InputError, match="row 1 is a NoneType"):
        embed(iter(["a mat", None]), m, make_sae(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="row 20 is a bytes"):
        embed(iter([*MANY[:20], b"x"]), m, make_sae(), tmp_path / "out")
    with pytest.raises(InputError, match="made from other texts"):
        embed(iter(MANY[1:]), m, make_sae(), tmp_path / "out")
    assert len(embed(iter(MANY[:32]), m, make_sae(), tmp_path / "out")) == 32
    with pytest.raises(InputError, match="of 32 texts, and these are only the first 16"):
        embed(iter(MANY[:16]), m, make_sae(), tmp_path / "out")
    assert len(embed(iter(MANY), m, make_sae(), tmp_path / "out")) == len(MANY)  # it has grown


# --- folders that grow -------------------------------------------------------------------------------------------


def test_appended_texts_come_behind(m, tmp_path):
    first, more, last = MANY[:20], MANY[20:33], MANY[33:]
    for part in (first, more, last, more, first):  # the last two are there already
        emb = embed(part, m, make_sae(), tmp_path / "out", append=True)
    assert emb.documents.text.tolist() == MANY
    alone = [embed(part, m, make_sae()).matrix.toarray() for part in (first, more, last)]
    np.testing.assert_array_equal(emb.matrix.toarray(), np.concatenate(alone))
    assert [part["n_texts"] for part in emb.info["parts"]] == [20, 13, 37]
    assert emb.cost().documents == len(MANY)


def test_appended_columns_and_chunks_go_on(m, tmp_path):
    settings = {"long": "split", "max_length": 20}
    one = embed(pd.DataFrame({"text": MANY[:9], "n": range(9)}), m, make_sae(), tmp_path, **settings)
    both = embed(pd.DataFrame({"text": MANY[9:20], "c": "x"}), m, make_sae(), tmp_path, append=True, **settings)
    assert len(both) > len(one)
    assert both.documents.source.drop_duplicates().tolist() == list(range(20))
    assert both.documents.n.isna().tolist() == (both.documents.source > 8).tolist()
    assert both.documents.c.isna().tolist() == (both.documents.source <= 8).tolist()


def test_appending_checks_what_is_there(m, tmp_path):
    with pytest.raises(InputError, match="name it with out="):
        embed(MANY, m, make_sae(), append=True)
    embed(MANY[:9], m, make_sae(), tmp_path / "out")
    for changed, says in (({"pooling": "mean"}, "pooling"), ({"role": "user"}, "role")):
        with pytest.raises(InputError, match=says):
            embed(MANY[9:], m, make_sae(), tmp_path / "out", append=True, **changed)
    with pytest.raises(InputError, match="sae_sha256"):
        embed(MANY[9:], m, make_sae(seed=1), tmp_path / "out", append=True)
    with pytest.raises(InputError, match="model_mark"):
        embed(MANY[9:], tiny.live("llama", seed=5), make_sae(), tmp_path / "out", append=True)
    embed(MANY[9:], m, make_sae(), tmp_path / "out", append=True)
    with pytest.raises(InputError, match="holds appended texts"):
        embed(MANY[:9], m, make_sae(), tmp_path / "out")


def test_changed_columns_are_renewed_without_reading_again(m, tmp_path, monkeypatch):
    frame = pd.DataFrame({"text": MANY, "n": range(len(MANY))})
    embed(frame, m, make_sae(), tmp_path / "out")
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(type(m), "stream", lambda *a, **k: pytest.fail("the texts were read again"))
    embed(frame, m, make_sae(), tmp_path / "out")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == stamps
    again = embed(frame.assign(n=1, c="new"), m, make_sae(), tmp_path / "out")
    assert again.documents.columns.tolist() == ["text", "n_tokens", "n", "c"]
    assert again.documents.n.tolist() == [1] * len(MANY)
    assert embed(MANY, m, make_sae(), tmp_path / "out").documents.columns.tolist() == ["text", "n_tokens"]


# --- killed runs -------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from sparselens.embeddings import documents, folder
from tests import tiny
from tests.embeddings.test_embed_streams import MANY, embed, make_sae

documents.BLOCK_DOCUMENTS = 8
write = folder.write_table

def write_table(table, path):
    time.sleep(float(sys.argv[2]))
    write(table, path)

folder.write_table = write_table
texts = iter(MANY) if sys.argv[3] == "stream" else MANY
embed(texts, tiny.live("llama"), make_sae(), sys.argv[1], append=sys.argv[3] == "append")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stream", "append"])
def test_killed_at_any_time_no_text_is_lost_or_twice(m, tmp_path, how):
    out = tmp_path / "out"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    if how == "append":
        embed(TEXTS, m, make_sae(), out)
    first = len(list(out.glob("block-*.arrow")))
    for blocks in (2, 5):  # killed twice, each time further on
        with subprocess.Popen([sys.executable, "-c", SLOW, str(out), "0.05", how], env=env) as run:
            deadline = time.monotonic() + 60
            while len(list(out.glob("block-*.arrow"))) < first + blocks and time.monotonic() < deadline:
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        with pytest.raises(FileFormatError, match="unfinished"):
            SAEEmbedding.load(out)
    emb = embed(iter(MANY) if how == "stream" else MANY, m, make_sae(), out, append=how == "append")
    assert emb.documents.text.tolist() == [*(TEXTS if how == "append" else []), *MANY]
    straight = embed(MANY, m, make_sae())
    assert (emb.matrix[-len(MANY) :] != straight.matrix).nnz == 0
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


MEMORY = """
import re, sys
import sparselens as sl
from tests import tiny

def peak():  # of this process alone: getrusage would count its parent before the exec
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

words = ("the cat sat on a mat and then he ate the thing in the garden " * 2).split()
m, sae = tiny.live("llama"), sl.SAE("topk", d_in=32, d_sae=64, k=2, site="blocks.0.hook_resid_post")
for n in (600, 3600):
    texts = ({"text": " ".join(words[i % 7 : 9 + i % 11]), "ballast": str(i) * 10_000} for i in range(n))
    emb = sl.embed(texts, m, sae, f"{sys.argv[1]}/{n}", progress=False)
    print(len(emb), peak())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.slow
def test_a_stream_is_not_held(tmp_path):
    done = run_python(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (float(line.split()[1]) for line in done.stdout.splitlines())
    assert sum(p.stat().st_size for p in (tmp_path / "3600").iterdir()) / 2**20 > 0.15 * first
    assert second <= 1.1 * first  # held, the records alone would break the limit

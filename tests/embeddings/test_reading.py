"""`embed` on a tiny real transformer: against plain loops, in any order, interrupted, and with hostile input."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import sparselens as sl
from sparselens.embeddings import SAEEmbedding
from sparselens.embeddings.pool import POOLINGS
from sparselens.errors import FitError, InputError, NotFiniteError
from tests import tiny

SITE = "blocks.1.hook_resid_post"
TEXTS = [
    "the cat sat on a mat", "", "in the beginning there was a word", "a", "héé 😀 漢字 \u202e\u200b a\x00b",
    "<script>alert('x')</script>", "said <|im_end|> in the middle", "   ", "then he ate the thing " * 6, "\n\n",
]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def make_sae(architecture="topk", **settings):
    k = {"k": 4} if architecture == "topk" else {}
    return sl.SAE(architecture, d_in=32, d_sae=64, site=SITE, **k, **settings)


def embed(*args, **settings):
    return sl.embed(*args, progress=False, **settings)


def by_hand(m, sae, text, pooling, role=None):
    """One text, alone, with loops."""
    shown = text if role is None else [[{"role": role, "content": text}]]
    out = np.zeros(sae.d_sae)
    try:
        got = m.capture(shown, SITE)
    except InputError:  # an empty text
        return out, 0
    rows = []
    for i in range(got.tokens.shape[1]):
        x = got[SITE][0, i]
        if got.content[0, i] and not got.first[0, i] and sae.applies(x):
            z = sae.encode(x[None])
            rows.append((z if torch.is_tensor(z) else z.dense())[0].detach().double().numpy())
    for f in range(sae.d_sae):
        column = [row[f] for row in rows]
        fired = [v for v in column if v]
        if fired:
            out[f] = {"max": max(fired), "mean": sum(column) / len(column), "sum": sum(column), "binarize": 1.0,
                      "count": len(fired)}[pooling]
    return out, len(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_against_plain_loops(m, pooling):
    sae = make_sae()
    emb = embed(TEXTS, m, sae, pooling=pooling, batch_tokens=100)
    for i, text in enumerate(TEXTS):
        expected, n = by_hand(m, sae, text, pooling)
        np.testing.assert_allclose(emb.matrix[i].toarray()[0], expected, atol=1e-4)
        assert emb.documents.n_tokens[i] == n
    assert emb.documents.text.tolist() == TEXTS


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_role_and_domain_against_plain_loops(m, architecture):
    x = m.capture(TEXTS[0], SITE)
    limit = float(x[SITE][x.mask].norm(dim=-1).median())
    sae = make_sae(architecture, max_norm=limit)
    emb = embed(TEXTS[:4], m, sae, role="assistant")
    for i, text in enumerate(TEXTS[:4]):
        expected, n = by_hand(m, sae, text, "max", role="assistant")
        np.testing.assert_allclose(emb.matrix[i].toarray()[0], expected, atol=1e-4)
        assert emb.documents.n_tokens[i] == n
    assert 0 < emb.documents.n_tokens[0] < len(emb.tokens(0))


def test_batch_size_order_and_company_change_nothing(m):
    sae = make_sae()
    whole = embed(TEXTS, m, sae)
    for batch_tokens in (1, 37, 5000):
        other = embed(TEXTS, m, sae, batch_tokens=batch_tokens)
        assert abs(whole.matrix - other.matrix).max() < 1e-4
    back = embed(TEXTS[::-1], m, sae, batch_tokens=64)
    assert abs(whole.matrix - back.matrix[::-1]).max() < 1e-4
    longer = embed(["an unrelated text that goes on and on " * 5, *TEXTS], m, sae)
    assert abs(whole.matrix - longer.matrix[1:]).max() < 1e-4


def test_blocks_change_nothing(m, monkeypatch):
    whole = embed(TEXTS, m, make_sae())
    monkeypatch.setattr("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 3)
    parts = embed(TEXTS, m, make_sae())
    assert parts.info["parts"][0]["blocks"] == [3, 3, 3, 1]
    assert abs(whole.matrix - parts.matrix).max() < 1e-4
    assert [parts.tokens(i) for i in range(len(TEXTS))] == [whole.tokens(i) for i in range(len(TEXTS))]
    assert parts.features.top_tokens.tolist() == whole.features.top_tokens.tolist()


def test_tokens_give_the_text_and_values_belong_to_them(m):
    sae = make_sae()
    emb = embed(TEXTS, m, sae)
    for i, text in enumerate(TEXTS):
        assert "".join(emb.tokens(i)) == text.replace("<|im_end|>", "")  # a special token is no content
    values = emb.activations(0, list(range(64)))
    x = m.capture(TEXTS[0], SITE)[SITE][0]
    expected = sae.encode(x).dense().detach().numpy()
    expected[0] = 0  # the first token is an attention sink
    np.testing.assert_allclose(values, expected, rtol=1e-3)
    np.testing.assert_allclose(values.max(0), emb.matrix[0].toarray()[0], rtol=1e-3)


def test_first_token_can_be_kept(m):
    kept = embed(TEXTS, m, make_sae(), skip_first=False)
    assert (kept.documents.n_tokens - embed(TEXTS, m, make_sae()).documents.n_tokens).tolist() == [
        0 if not text else 1 for text in TEXTS]


def test_chats_show_their_contents_only(m):
    chat = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "a mat, he said"}]
    emb = embed([chat, chat[:1]], m, make_sae())
    assert emb.documents.text.tolist() == ["the cat?\n\na mat, he said", "the cat?"]
    assert "".join(emb.tokens(0)) == "the cat?\n\na mat, he said"
    assert emb.documents.n_tokens[0] == len(emb.tokens(0))  # no first token: a template precedes it


def test_long_texts(m):
    long = "the cat and a mat in " * 100
    with pytest.raises(InputError, match="text 300 has"):
        embed(["a b"] * 300 + [long], m, make_sae())
    cut = embed([long], m, make_sae(), long="cut", max_length=50)
    assert len(cut.tokens(0)) == 50
    chunks = embed([long], m, make_sae(), long="chunk", max_length=50, batch_tokens=60)
    assert "".join(chunks.tokens(0)) == long
    n = len(chunks.tokens(0))
    assert chunks.documents.n_tokens[0] == n - -(-n // 50)  # each chunk has a first token


def test_texts_without_tokens_become_zero_rows_and_are_counted(m):
    emb = embed(["", "the cat", "a"], m, make_sae())
    assert emb.matrix.getnnz(axis=1).tolist() == [0, emb.matrix[1].nnz, 0]
    assert emb.documents.n_tokens.tolist()[::2] == [0, 0]
    assert "2 (empty" in emb._repr_html_()
    alone = embed(["a"], m, make_sae())
    assert alone.matrix.shape == (1, 64)
    assert alone.matrix.nnz == 0


def test_frames_and_series(m):
    frame = pd.DataFrame({"body": TEXTS[:3], "stars": [1, 2, 3]}, index=list("xyz"))
    emb = embed(frame, m, make_sae(), text_column="body")
    assert emb.documents.columns.tolist() == ["text", "n_tokens", "stars"]
    assert emb.subset([2, 0]).documents.stars.tolist() == [3, 1]
    assert (emb.matrix != embed(frame.body, m, make_sae()).matrix).nnz == 0


def test_misfits_are_refused_before_anything_is_written(m, tmp_path):
    out = tmp_path / "out"
    no_site = sl.SAE("topk", d_in=32, d_sae=64, k=4)
    elsewhere = make_sae(model_name="another-model")
    wide = sl.SAE("topk", d_in=16, d_sae=64, k=4, site=SITE)
    for sae, says in ((no_site, "hook_name"), (elsewhere, "another-model"), (wide, "d_in")):
        with pytest.raises(FitError, match=says):
            embed(TEXTS, m, sae, out)
    for texts, settings, says in (([], {}, "empty list"), (["a", 3], {}, "row 1"), (["", ""], {}, "all 2 texts"),
                                  (TEXTS, {"pooling": "avg"}, "pooling"), (TEXTS, {"long": "cutt"}, "Closest: cut"),
                                  (["a " * 900], {}, "text 0 has")):
        with pytest.raises(InputError, match=says):
            embed(texts, m, make_sae(), out, **settings)
    assert not out.exists()
    assert len(embed(TEXTS, m, elsewhere, force=True)) == len(TEXTS)


@pytest.mark.parametrize("limit", [None, 100.0])
def test_nan_names_the_text_and_writes_no_block(tmp_path, limit):
    broken = tiny.live("llama", seed=3)
    token = broken.tokenizer("Q")["input_ids"][0]
    with torch.no_grad():
        broken.native.model.embed_tokens.weight[token] = float("nan")
    clean = broken.run("the cat").logits
    with pytest.raises(NotFiniteError, match="text 2 gives NaN"):
        embed(["the cat", "a mat", "a Q is not", "he"], broken, make_sae(max_norm=limit), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json"]
    assert torch.equal(broken.run("the cat").logits, clean)


def files(folder):
    """All that is written, but for how long it took."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "cost.json"}


def test_with_a_folder_and_without_are_the_same(m, tmp_path):
    inside = embed(TEXTS, m, make_sae())
    outside = embed(TEXTS, m, make_sae(), tmp_path / "deep" / "out")
    for emb in (outside, SAEEmbedding.load(tmp_path / "deep" / "out")):
        assert (inside.matrix != emb.matrix).nnz == 0
        assert emb.info == json.loads(json.dumps(inside.info))
        pd.testing.assert_frame_equal(inside.documents, emb.documents)
        assert emb.tokens(4) == inside.tokens(4)


def test_other_settings_in_the_same_folder_are_refused(m, tmp_path):
    embed(TEXTS, m, make_sae(), tmp_path / "out")
    before = files(tmp_path / "out")
    for changed in ({"pooling": "mean"}, {"role": "user"}, {"skip_first": False}):
        with pytest.raises(InputError, match=next(iter(changed))):
            embed(TEXTS, m, make_sae(), tmp_path / "out", **changed)
    with pytest.raises(InputError, match="append=True"):
        embed(TEXTS[::-1], m, make_sae(), tmp_path / "out")
    with pytest.raises(InputError, match="sae_sha256"):
        embed(TEXTS, m, make_sae(seed=1), tmp_path / "out")
    with pytest.raises(InputError, match="model_mark"):
        embed(TEXTS, tiny.live("llama", seed=5), make_sae(), tmp_path / "out")
    embed(TEXTS, m, make_sae(), tmp_path / "out", batch_tokens=50)  # how it is computed is no setting
    assert files(tmp_path / "out") == before


KILLED = """
import os, signal, sys
from sparselens.embeddings import documents, folder
from sparselens.files import write_whole
from tests.embeddings.test_reading import TEXTS, embed, make_sae
from tests import tiny

documents.BLOCK_DOCUMENTS = 2
write = folder.write_table

def write_table(table, path):
    if path.name == "block-00002.arrow":
        with write_whole(path) as temporary:
            temporary.write_bytes(b"half a block")
            os.kill(os.getpid(), signal.SIGKILL)
    write(table, path)

folder.write_table = write_table
embed(TEXTS, tiny.live("llama"), make_sae(), sys.argv[1])
"""


def run_python(code, *args):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True, text=True)


def test_killed_and_resumed_gives_the_same_bytes(m, tmp_path, monkeypatch):
    done = run_python(KILLED, tmp_path / "out")
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".arrow")
    assert left == ["block-00000.arrow", "block-00001.arrow"]
    stamps = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left}

    monkeypatch.setattr("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 2)
    resumed = embed(TEXTS, m, make_sae(), tmp_path / "out")
    straight = embed(TEXTS, m, make_sae(), tmp_path / "straight")
    assert files(tmp_path / "out") == files(tmp_path / "straight")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left} == stamps
    assert (resumed.matrix != straight.matrix).nnz == 0


def test_an_interrupt_leaves_the_model_clean_and_the_folder_resumable(m, tmp_path, monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 2)
    clean = m.run(TEXTS[0]).logits
    sae, calls = make_sae(), 0
    encode = type(sae).encode

    def interrupted(self, x):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(type(sae), "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(TEXTS, m, sae, tmp_path / "out")
    assert torch.equal(m.run(TEXTS[0]).logits, clean)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    again = embed(TEXTS, m, sae, tmp_path / "out")
    assert (again.matrix != embed(TEXTS, m, sae).matrix).nnz == 0


MEMORY = """
import re, sys
import sparselens as sl
from tests import tiny

def peak():  # of this process alone: getrusage would count its parent before the exec
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

words = ("the cat sat on a mat and then he ate the thing in the garden " * 2).split()
texts = [" ".join(words[i % 7 : 14 + i % 11]) + f" {i}" for i in range(4000)]
m, sae = tiny.live("llama"), sl.SAE("topk", d_in=32, d_sae=512, k=128, site="blocks.0.hook_resid_post")
for n in (1000, 4000):
    emb = sl.embed(texts[:n], m, sae, f"{sys.argv[1]}/{n}", progress=False)
    print(len(emb), peak())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_documents(tmp_path):
    done = run_python(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (float(line.split()[1]) for line in done.stdout.splitlines())
    size = sum(p.stat().st_size for p in (tmp_path / "4000").iterdir()) / 2**20
    assert size > 0.17 * first  # held in memory, the result alone would break the limit
    assert second <= 1.15 * first

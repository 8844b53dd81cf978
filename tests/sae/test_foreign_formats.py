"""Files of other libraries: the oracle is what they wrote and computed (`foreign/`, made by the scripts there)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparselens.errors import FileFormatError, InputError
from sparselens.sae import SAE, to_dense
from tests.sae.test_sae import random_sae

FOREIGN = Path(__file__).parent / "foreign"
DICTIONARY_LEARNING = sorted(p.parent for p in FOREIGN.glob("dictionary_learning/*/ae.pt"))
SPARSIFY = sorted(p.parent for p in FOREIGN.glob("sparsify/*/*/sae.safetensors"))


def label(path):
    return path.relative_to(FOREIGN).parts[1]


def codes_and_output(sae, x):
    z = sae.encode(x)
    return to_dense(z), sae.decode(z, sae.measure(x))


def check(folder):
    sae, expected = SAE.load(folder), load_file(folder / "expected.safetensors")
    codes, out = codes_and_output(sae, expected["x"])
    torch.testing.assert_close(codes, expected["codes"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out, expected["out"], rtol=1e-6, atol=1e-6)
    return sae


def test_the_golden_files_are_there():
    assert (len(DICTIONARY_LEARNING), len(SPARSIFY)) == (8, 7)


@pytest.mark.parametrize("folder", DICTIONARY_LEARNING, ids=label)
def test_dictionary_learning(folder):
    sae = check(folder)
    assert (sae.site, sae.model_name) == ("blocks.1.hook_resid_post", "toy")
    assert sae.metadata["context_size"] == 128
    assert sae.provenance["config"]["trainer"]["dict_class"] in folder.name


@pytest.mark.parametrize("folder", SPARSIFY, ids=label)
def test_sparsify(folder):
    sae = check(folder)
    if "transcoder" in folder.parent.name:
        assert (sae.reads, sae.writes) == (("blocks.1.hook_resid_pre",), ("blocks.1.hook_resid_post",))
    else:
        assert sae.site == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("folder", DICTIONARY_LEARNING, ids=label)
def test_written_as_dictionary_learning_and_read_again(folder, tmp_path):
    sae = SAE.load(folder)
    back = SAE.load(sae.save(tmp_path / "out", format="dictionary_learning"))
    assert back.provenance["config"]["trainer"]["dict_class"].replace("Matryoshka", "") in folder.name
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in sae.state_dict().items())
    assert (back.site, back.model_name) == (sae.site, sae.model_name)


@pytest.mark.parametrize("folder", SPARSIFY, ids=label)
def test_written_as_sparsify_and_read_again(folder, tmp_path):
    sae = SAE.load(folder)
    back = SAE.load(sae.save(tmp_path / folder.parent.name / "layers.1", format="sparsify"))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in sae.state_dict().items())


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "topk", "batchtopk"])
@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "sparsify", "circuit_tracer"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("norm", ["none", "scale"])
def test_conversions_keep_codes_and_reconstructions(architecture, format, subtract, norm, tmp_path):
    from sparselens.sae.norms import InputNorm

    holds = {"sparsify": {"topk"}, "circuit_tracer": {"relu", "jumprelu", "gated", "batchtopk"}}
    settings = {"k": 4 if architecture.endswith("topk") else None, "subtract_b_dec": subtract}
    sae = random_sae(architecture, input_norm=InputNorm(norm, 0.3 if norm == "scale" else 1.0), **settings).double()
    if architecture == "batchtopk":
        sae.activation.threshold = torch.tensor(0.7, dtype=torch.float64)
    sae.metadata |= {"hook_name": "blocks.3.hook_resid_post", "model_name": "toy"}
    if architecture not in holds.get(format, {architecture}):
        with pytest.raises(InputError, match="cannot hold this SAE"):
            sae.save(tmp_path / "layers.3", format=format)
        return
    written = sae.save(tmp_path / "layers.3", format=format)
    back = SAE.load(written / "layer_3.safetensors" if format == "circuit_tracer" else written, dtype=None)
    x = torch.randn(50, sae.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(codes_and_output(sae, x), codes_and_output(back, x), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    # sparsify keeps the model's name in the run's folder, one up
    assert (back.site, back.model_name) == ("blocks.3.hook_resid_post", None if format == "sparsify" else "toy")


def test_a_pickle_is_refused(tmp_path):
    folder = tmp_path / "dl"
    shutil.copytree(FOREIGN / "dictionary_learning" / "AutoEncoder", folder)
    torch.save({"bias": torch.zeros(8), "code": Path}, folder / "ae.pt")
    with pytest.raises(FileFormatError, match="could run any code"):
        SAE.load(folder)


def test_damage_is_named(tmp_path):
    folder = tmp_path / "dl"
    shutil.copytree(FOREIGN / "dictionary_learning" / "AutoEncoderTopK", folder)
    whole = (folder / "ae.pt").read_bytes()
    (folder / "ae.pt").write_bytes(whole[:300])
    with pytest.raises(FileFormatError, match="cut off"):
        SAE.load(folder)
    (folder / "ae.pt").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["dict_class"] = "AutoEncoderTopKK"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="dict_class.*Closest: AutoEncoderTopK"):
        SAE.load(folder)
    config["trainer"]["dict_class"] = "AutoEncoder"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=r"missing tensors \['bias'\], unknown tensors \['b_dec', 'threshold'\]"):
        SAE.load(folder)


def test_an_unknown_key_of_sparsify_is_named(tmp_path):
    folder = tmp_path / "layers.1"
    shutil.copytree(FOREIGN / "sparsify" / "topk" / "layers.1", folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"transcoder": True}))
    with pytest.raises(FileFormatError, match="unknown keys: transcoder.*Closest: transcode"):
        SAE.load(folder)

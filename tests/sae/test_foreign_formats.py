"""Files of other libraries: the oracle is what they wrote and computed (`foreign/`, made by the scripts there)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparselens.errors import FileFormatError, InputError
from sparselens.sae import SAE, to_dense
from sparselens.sae.formats import load_transcoders, save_transcoders
from tests.sae.test_sae import random_sae

FOREIGN = Path(__file__).parent / "foreign"
DICTIONARY_LEARNING = sorted(p.parent for p in FOREIGN.glob("dictionary_learning/*/ae.pt"))
SETS = sorted(p.parent for p in FOREIGN.glob("circuit_tracer/*/config.yaml"))
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
    assert (len(DICTIONARY_LEARNING), len(SPARSIFY), len(SETS)) == (8, 7, 4)


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


@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_circuit_tracer_sets(folder):
    saes, expected = load_transcoders(folder), load_file(folder / "expected.safetensors")
    assert list(saes) == [0, 1, 2]
    x, whole = expected["x"], torch.zeros_like(expected["out"])
    for layer, sae in saes.items():
        codes, out = codes_and_output(sae, x[layer])
        torch.testing.assert_close(codes, expected["codes"][layer], rtol=1e-6, atol=1e-6)
        assert sae.reads == (f"blocks.{layer}.mlp.hook_in",)
        assert sae.writes == tuple(f"blocks.{n}.hook_mlp_out" for n in range(layer, layer + sae.d_out // 8))
        for step, part in enumerate(out.split(8, dim=1)):  # a cross-layer one writes the later layers too
            whole[layer + step] += part
    torch.testing.assert_close(whole, expected["out"], rtol=1e-5, atol=1e-5)


def test_a_set_of_transcoders_round_trips(tmp_path):
    saes = load_transcoders(FOREIGN / "circuit_tracer" / "jumprelu_skip")
    back = load_transcoders(save_transcoders(saes, tmp_path / "set"))
    for layer, sae in saes.items():
        assert all(torch.equal(value, back[layer].state_dict()[name]) for name, value in sae.state_dict().items())
    with pytest.raises(FileFormatError, match="one transcoder a layer.*layer_0.safetensors"):
        SAE.load(tmp_path / "set")
    with pytest.raises(InputError, match="given for layer 5 reads blocks.0"):
        save_transcoders({5: saes[0]}, tmp_path / "other")


def raw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_gemma_scope_1(tmp_path):
    w_enc, w_dec, b_enc, b_dec, threshold, x = raw(0, (8, 16), (16, 8), (16,), (8,), (16,), (20, 8))
    arrays = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold.abs()}
    root = tmp_path / "google" / "gemma-scope-2b-pt-res"
    folder = root / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in arrays.items()})
    sae = SAE.load(folder)
    pre = x @ w_enc + b_enc
    z = torch.where(pre > threshold.abs(), pre.relu(), 0.0)
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae(x), z @ w_dec + b_dec)
    assert (sae.site, sae.model_name, sae.metadata["l0"]) == ("blocks.20.hook_resid_post", "google/gemma-2-2b", 71.0)
    embedding = root / "embedding" / "width_4k" / "average_l0_6"
    embedding.mkdir(parents=True)
    shutil.copy(folder / "params.npz", embedding)
    scaled = SAE.load(embedding)  # its inputs were embeddings times sqrt(d)
    torch.testing.assert_close(scaled.encode(x / 8**0.5), sae.encode(x))
    torch.testing.assert_close(scaled(x / 8**0.5) * 8**0.5, sae(x))
    assert scaled.site == "hook_embed"


def test_gemma_scope_2_transcoder_with_skip(tmp_path):
    w_enc, w_dec, b_enc, b_dec, threshold, skip, x = raw(1, (8, 16), (16, 8), (16,), (8,), (16,), (8, 8), (20, 8))
    folder = tmp_path / "google" / "gemma-scope-2-270m-pt" / "transcoder" / "layer_5_width_16k_l0_small_affine"
    folder.mkdir(parents=True)
    tensors = {"w_enc": w_enc, "w_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold.abs()}
    save_file(tensors | {"affine_skip_connection": skip}, folder / "params.safetensors")
    sae = SAE.load(folder)
    pre = x @ w_enc + b_enc
    z = torch.where(pre > threshold.abs(), pre.relu(), 0.0)
    torch.testing.assert_close(sae(x), z @ w_dec + b_dec + x @ skip, rtol=1e-5, atol=1e-5)
    assert (sae.reads, sae.writes) == (("blocks.5.mlp.hook_in",), ("blocks.5.hook_mlp_out",))
    (folder / "config.json").write_text(json.dumps({"architecture": "topk"}))
    with pytest.raises(FileFormatError, match="'topk' is not jump_relu"):
        SAE.load(folder)


def test_llama_scope(tmp_path):
    enc, b_enc, dec, b_dec, x = raw(2, (16, 8), (16,), (8, 16), (8,), (20, 8))
    (tmp_path / "checkpoints").mkdir()
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    save_file(dict(zip(names, (enc, b_enc, dec, b_dec), strict=True)), tmp_path / "checkpoints" / "final.safetensors")
    facts = {"d_model": 8, "d_sae": 16, "jump_relu_threshold": 0.5, "hook_point_in": "blocks.3.hook_resid_post"}
    facts |= {"hook_point_out": "blocks.3.hook_resid_post", "dataset_average_activation_norm": {"in": 4.0, "out": 5.0}}
    (tmp_path / "hyperparams.json").write_text(json.dumps(facts))
    sae, root = SAE.load(tmp_path), 8**0.5
    pre = (x * root / 4) @ enc.T + b_enc
    z = torch.where(pre > 0.5, pre, 0.0)
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae(x), (z @ dec.T + b_dec) * 5 / root)
    assert sae.site == "blocks.3.hook_resid_post"


def test_state_dicts_of_published_saes(tmp_path):
    enc, b_enc, dec, b_dec, x = raw(3, (16, 8), (16,), (8, 16), (8,), (20, 8))
    goodfire = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    linear = {"encoder_linear.weight": enc, "encoder_linear.bias": b_enc}
    torch.save(linear | {"decoder_linear.weight": dec, "decoder_linear.bias": b_dec}, goodfire)
    sae = SAE.load(goodfire)
    torch.testing.assert_close(sae(x), (x @ enc.T + b_enc).relu() @ dec.T + b_dec)
    assert (sae.site, sae.model_name) == ("blocks.19.hook_resid_post", "meta-llama/Llama-3.1-8B-Instruct")
    repo = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
    repo.mkdir()
    qwen = {"W_enc": enc, "b_enc": b_enc, "W_dec": dec, "b_dec": b_dec}
    torch.save(qwen, repo / "layer7.sae.pt")
    sae = SAE.load(repo / "layer7.sae.pt")
    values, indices = (x @ enc.T + b_enc).topk(3)
    expected = torch.zeros(20, 16).scatter(1, indices, values.relu()) @ dec.T + b_dec
    torch.testing.assert_close(sae(x), expected)
    assert (sae.k, sae.site, sae.model_name) == (3, "blocks.7.hook_resid_post", "Qwen/Qwen3-1.7B-Base")
    torch.save(qwen, tmp_path / "layer7.sae.pt")
    with pytest.raises(FileFormatError, match="k stands in the name of its folder"):
        SAE.load(tmp_path / "layer7.sae.pt")
    hook_z = {"W_enc": enc.T.contiguous(), "b_enc": b_enc, "W_dec": dec.T.contiguous(), "b_dec": b_dec}
    torch.save(hook_z, tmp_path / "z.pt")
    config = {"act_size": 8, "dict_size": 16, "act_name": "blocks.2.attn.hook_z"}
    (tmp_path / "z_cfg.json").write_text(json.dumps(config))
    sae = SAE.load(tmp_path / "z.pt")
    torch.testing.assert_close(sae(x), ((x - b_dec) @ enc.T + b_enc).relu() @ dec.T + b_dec)
    assert sae.site == "blocks.2.attn.hook_z"

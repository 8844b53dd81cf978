"""The oracle is SAELens itself: `golden/` holds what it wrote and what it computes (see `make_golden.py`)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparselens.errors import FileFormatError
from sparselens.sae import SAE, InputNorm, to_dense
from tests.sae.test_sae import ARCHITECTURES, RANKED, random_sae

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and (path / "cfg.json").is_file())


@pytest.fixture
def copy(tmp_path):
    """A golden folder to damage: `copy(name, config changes..., drop=(keys))`."""

    def make(name: str, drop: tuple[str, ...] = (), **changes) -> Path:
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        cfg = json.loads((folder / "cfg.json").read_text()) | changes
        (folder / "cfg.json").write_text(json.dumps({k: v for k, v in cfg.items() if k not in drop}))
        return folder

    return make


def test_the_golden_files_are_there():
    assert len(FOLDERS) == 10


@pytest.mark.parametrize("name", FOLDERS)
def test_codes_and_reconstructions_are_those_of_saelens(name):
    sae = SAE.load(GOLDEN / name)
    expected = load_file(GOLDEN / name / "expected.safetensors")
    z = sae.encode(expected["x"])
    torch.testing.assert_close(to_dense(z), expected["codes"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.decode(z, sae.measure(expected["x"])), expected["out"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae(expected["x"]), expected["out"], rtol=1e-5, atol=1e-6)
    assert (sae.site, sae.model_name) == ("blocks.1.hook_resid_post", "toy")


def test_ranking_by_decoder_norm_is_honoured_and_matters():
    sae = SAE.load(GOLDEN / "topk_training")
    assert sae.rank_by_decoder_norm
    expected = load_file(GOLDEN / "topk_training" / "expected.safetensors")
    sae.rank_by_decoder_norm = False
    assert not torch.allclose(to_dense(sae.encode(expected["x"])), expected["codes"])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("format", ["saelens", "sparselens"])
def test_a_round_trip_keeps_weights_metadata_and_provenance(name, format, tmp_path):
    sae = SAE.load(GOLDEN / name)
    back = SAE.load(sae.save(tmp_path / "copy", format=format))
    x = load_file(GOLDEN / name / "expected.safetensors")["x"]
    if sae.architecture == "batchtopk":
        torch.testing.assert_close(back(x), sae(x))
    else:
        mine, theirs = sae.state_dict(), back.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    kept = {key: value for key, value in back.metadata.items() if key in sae.metadata}
    assert kept == sae.metadata
    if "flat" not in name:
        assert back.metadata["home_made_key"] == [1, 2]
    assert sae.provenance["format"] == "saelens" and len(sae.provenance["sha256"]["sae_weights.safetensors"]) == 64
    assert sae.provenance["config"] == json.loads((GOLDEN / name / "cfg.json").read_text())
    if format == "sparselens":
        assert back.provenance["origin"] == sae.provenance


@pytest.mark.parametrize("architecture, k", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["none", "scale", "unit_norm", "layer_norm"])
@pytest.mark.parametrize("ranks", [False, True])
def test_every_part_survives_writing(architecture, k, norm, ranks, tmp_path):
    if ranks and architecture not in RANKED:
        return
    norm = InputNorm(norm, 0.3 if norm == "scale" else 1.0)
    sae = random_sae(architecture, k=k, input_norm=norm, rank_by_decoder_norm=ranks, max_norm=9.0)
    if architecture in ("batchtopk", "batch_abstopk"):
        sae.activation.threshold = torch.tensor(0.6)
    if architecture == "jumprelu":
        sae.activation.threshold = torch.nn.Parameter(torch.rand(40), requires_grad=False)
    back = SAE.load(sae.save(tmp_path / "sae"))
    x = torch.randn(20, 8)
    torch.testing.assert_close(to_dense(back.encode(x)), to_dense(sae.encode(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back(x), sae(x), rtol=1e-5, atol=1e-5)
    assert back.max_norm == 9.0


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_survive_writing(architecture, skip, tmp_path):
    k = 4 if architecture == "topk" else None
    sae = random_sae(architecture, k=k, d_out=5, skip=skip, site="a", site_out="b")
    theirs = architecture != "topk"  # SAELens has no such transcoder
    back = SAE.load(sae.save(tmp_path / "sae", format="saelens" if theirs else "sparselens"))
    x = torch.randn(20, 8)
    assert torch.equal(back(x), sae(x)) and back.metadata.items() >= sae.metadata.items()
    assert (back.reads, back.writes, back.d_out) == (("a",), ("b",), 5)
    if theirs:
        name = json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"]
        assert name == ("jumprelu_" if architecture == "jumprelu" else "") + ("skip_" if skip else "") + "transcoder"


def test_batchtopk_is_written_as_what_it_computes(tmp_path):
    back = SAE.load(random_sae("batchtopk", k=3).save(tmp_path / "sae", format="saelens"))
    assert back.architecture == "jumprelu" and back.k is None
    assert back.metadata["training_architecture"] == "batchtopk"
    assert back.metadata["training_architecture_details"] == {"k": 3}


def test_dtypes(tmp_path, copy):
    folder = random_sae().to(torch.float16).save(tmp_path / "half")
    assert json.loads((folder / "cfg.json").read_text())["dtype"] == "float16"
    assert SAE.load(folder).W_dec.dtype == torch.float32
    assert SAE.load(folder, dtype=None).W_dec.dtype == torch.float16
    assert SAE.load(copy("standard", dtype="torch.float32")).d_in == 8


def test_old_thresholds_and_scaling_factors(copy):
    folder = copy("jumprelu")
    weights = load_file(folder / "sae_weights.safetensors")
    expected = SAE.load(folder).activation.threshold
    logs = {k: v for k, v in weights.items() if k != "threshold"} | {"log_threshold": weights["threshold"].log()}
    save_file(logs | {"scaling_factor": torch.ones(16)}, folder / "sae_weights.safetensors")
    torch.testing.assert_close(SAE.load(folder).activation.threshold, expected)
    save_file(logs | {"scaling_factor": torch.full((16,), 2.0)}, folder / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="scaling_factor"):
        SAE.load(folder)


def test_an_unfolded_scale_needs_its_file(copy):
    folder = copy("standard", normalize_activations="expected_average_only_in")
    with pytest.raises(FileFormatError, match="activation_scaler.json"):
        SAE.load(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5, "has_whitening": false}')
    assert SAE.load(folder).input_norm == InputNorm("scale", 0.5)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"architecture": "temporal"}, "cannot be read"),
        ({"rescale_acts_by_decoder_nrom": True}, "Closest: rescale_acts_by_decoder_norm"),
        ({"normalize_activations": "covariance_whitening"}, "cannot be reproduced"),
        ({"drop": ("d_sae",)}, "lacks d_sae"),
        ({"drop": ("k",)}, "lacks k"),
        ({"d_sae": 17}, "shape"),
    ],
)
def test_foreign_configurations_are_refused(copy, changes, says):
    with pytest.raises(FileFormatError, match=says):
        SAE.load(copy("topk", **changes))


def test_foreign_or_missing_tensors_are_refused(copy):
    folder = copy("topk")
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"b_gate": torch.ones(16)}, folder / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="b_gate"):
        SAE.load(folder)
    save_file({k: v for k, v in weights.items() if k != "b_enc"}, folder / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="b_enc"):
        SAE.load(folder)


def test_cut_off_files_say_what_to_do(copy):
    folder = copy("topk")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    for size in (len(whole) - 40, 20, 0):
        (folder / "sae_weights.safetensors").write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match="fetch or save it again"):
            SAE.load(folder)
    (folder / "cfg.json").write_text('{"architecture": ')
    with pytest.raises(FileFormatError, match="not valid JSON"):
        SAE.load(folder)


def test_an_old_file_is_written_as_a_new_one(copy, tmp_path):
    old = SAE.load(copy("flat_topk", sae_lens_version="5.3.0"))
    cfg = json.loads((old.save(tmp_path / "new") / "cfg.json").read_text())
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post"


def test_an_unknown_old_activation_is_refused(copy):
    with pytest.raises(FileFormatError, match="tanh-relu"):
        SAE.load(copy("flat_topk", activation_fn_str="tanh-relu"))

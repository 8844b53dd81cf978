"""What a user may get wrong, a line each: the error names what was given and what is valid."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparselens.errors import FileFormatError, FitError, InputError, NotFiniteError
from sparselens.sae import SAE, harvest, train_sae
from sparselens.sae.norms import check_rows
from sparselens.sae.store import TensorActivations
from tests import tiny
from tests.sae.synthetic import QUIET
from tests.sae.test_sae import random_sae

SITE = "blocks.1.hook_resid_post"


def trained(x=None, **settings):
    given = {"d_sae": 16, "k": 2, "n_tokens": 600, "batch_size": 100, **QUIET}
    return train_sae(torch.randn(300, 8) if x is None else x, **given | settings)


@pytest.mark.parametrize("k", [0, 9, 2.5, True])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "groupmax", "mp"])
def test_k_beyond_what_there_is(architecture, k):
    with pytest.raises(InputError, match=f"k={k!r} does not fit {architecture}.*1 to d_sae=8"):
        SAE(architecture, d_in=4, d_sae=8, k=k)


@pytest.mark.parametrize("architecture", ["batchtopk", "batch_abstopk", "featurechoice"])
def test_k_of_a_batch_beyond_what_there_is(architecture):
    for k in (0, -1, 8.5):
        with pytest.raises(InputError, match="a number above 0 to d_sae=8"):
            SAE(architecture, d_in=4, d_sae=8, k=k)


@pytest.mark.parametrize("k", [-1, 0, 17])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated", "structured"])
def test_an_aim_that_cannot_be_reached(architecture, k):
    with pytest.raises(InputError, match=f"k={k} active latents per token do not fit d_sae=16"):
        trained(architecture=architecture, k=k)


@pytest.mark.parametrize("d_sae", [0, -3])
def test_a_number_of_latents_that_is_none(d_sae):
    with pytest.raises(InputError, match=f"d_sae must be a whole number of at least 1, not {d_sae!r}"):
        SAE("relu", d_in=4, d_sae=d_sae)


def test_training_no_latents():
    with pytest.raises(InputError, match="d_sae must be a whole number of at least 1, not 0"):
        trained(d_sae=0, architecture="relu")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_activations_of_a_wrong_dtype(dtype):
    with pytest.raises(InputError, match=f"floating point numbers, not Tensor of {dtype}"):
        check_rows(torch.ones(3, 4).to(dtype), 4)
    with pytest.raises(InputError, match="floating point numbers"):
        trained({"a": torch.ones(300, 8).to(dtype)})


def test_activations_that_are_no_tensor():
    with pytest.raises(InputError, match="not list of list"):
        check_rows([[1.0, 2.0]], 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_dtype_is_taken(dtype):
    assert trained(torch.randn(300, 8).to(dtype))[0].b_dec.dtype == torch.float32


def test_loading_in_a_wrong_dtype(tmp_path):
    folder = random_sae().save(tmp_path / "sae")
    with pytest.raises(InputError, match="torch.int8 is no floating point type"):
        SAE.load(folder, torch.int8)


UNTYPED = """
import torch
from sparselens.errors import InputError
from sparselens.sae import SAE, train_sae
sae = SAE("topk", d_in=2, d_sae=8, k=2)
for call in (lambda: SAE("topk", d_in=2, d_sae=8, k="2"), lambda: SAE("relu", d_in=2, d_sae=8.5),
             lambda: SAE("relu", d_in=2, d_sae="8"), lambda: SAE.load("x", dtype="float32"),
             lambda: sae.encode(torch.ones(3, 2).numpy()), lambda: sae.encode(torch.ones(3, 2).long())):
    try:
        call()
        print("no error")
    except InputError as error:
        print(error)
"""


def test_what_the_checks_of_the_tests_would_catch_first():
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", UNTYPED], cwd=root, capture_output=True, text=True, check=True)
    said = run.stdout.splitlines()
    wanted = ["k='2' does not fit", "not 8.5", "not '8'", "'float32' is no floating", "not ndarray of float32",
              "not Tensor of torch.int64"]  # fmt: skip
    assert len(said) == len(wanted) and all(w in s for w, s in zip(wanted, said, strict=True)), run.stdout


@pytest.mark.parametrize(("format", "key"), [("saelens", "apply_b_dec_to_inputs"), ("sparsify", "signedd"),
                                             ("dictionary_learning", None)])  # fmt: skip
def test_an_unknown_key_in_a_configuration(format, key, tmp_path):
    folder = random_sae().save(tmp_path / "sae", format=format)
    file = folder / ("config.json" if key is None else "cfg.json")
    cfg = json.loads(file.read_text())
    if key is None:
        cfg["trainer"]["dict_class"] = "AutoEncoderTopKK"
    (cfg if key else cfg["trainer"]).update({key or "x": True})
    file.write_text(json.dumps(cfg))
    with pytest.raises(FileFormatError, match="Closest"):
        SAE.load(folder)


def test_an_unused_tensor(tmp_path):
    folder = random_sae().save(tmp_path / "sae")
    tensors = load_file(folder / "sae_weights.safetensors") | {"W_encc": torch.ones(2)}
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="unknown tensors.*W_encc"):
        SAE.load(folder)


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"encoder.weight": torch.ones(2, 2), "module": random_sae()}, tmp_path / "sae.pt")
    with pytest.raises(FileFormatError, match="could run any code.*save its state_dict"):
        SAE.load(tmp_path / "sae.pt")


@pytest.mark.parametrize(("row", "value"), [(7, torch.nan), (299, torch.inf)])
def test_activations_that_are_not_finite_are_found_before_training(row, value):
    x = torch.randn(300, 8)
    x[row, 2] = value
    with pytest.raises(NotFiniteError, match=f"1 rows of activations hold NaN or infinite numbers, first row {row}"):
        trained(x)
    with pytest.raises(NotFiniteError, match="1 of 300 rows"):
        SAE("topk", d_in=8, d_sae=16, k=2).encode(x)


@pytest.mark.parametrize("norm", ["none", "unit_norm", "layer_norm"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "mp", "structured"])
def test_rows_of_zeros_do_no_harm(architecture, norm):
    x = torch.randn(300, 8)
    x[::3] = 0
    sae, run = trained(x, architecture=architecture, input_norm=norm)
    assert all(p.isfinite().all() for p in sae.parameters()) and run.history[-1]["fvu"] < 1.5
    assert sae(torch.zeros(2, 8)).isfinite().all()


def test_nothing_but_zeros():
    for x in (torch.zeros(300, 8), torch.ones(300, 8)):
        with pytest.raises(InputError, match="all rows of activations are equal"):
            trained(x)


def test_layer_norm_of_one_number():
    with pytest.raises(InputError, match="width 2 or more"):
        SAE("topk", d_in=1, d_sae=8, k=2, input_norm="layer_norm")(torch.ones(2, 1))


def test_a_site_of_another_width():
    m = tiny.live("llama")
    sae = SAE("topk", d_in=7, d_sae=9, k=2, site=SITE)
    with pytest.raises(FitError, match="reads 7 numbers a token.*has 32"), m.attach(sae):
        pass
    with pytest.raises(FitError, match="reads width 7"):
        train_sae(m, ["some text of a few tokens"] * 9, saes={"a": sae}, n_tokens=64, batch_size=8, **QUIET)
    with pytest.raises(FitError, match="x has width 5, this SAE reads width d_in=7"):
        sae.encode(torch.randn(2, 5))


def test_one_token(tmp_path):
    with pytest.raises(InputError, match="1 row of activations has no variance"):
        trained(torch.randn(1, 8))
    m = tiny.live("llama")
    with pytest.raises(InputError, match="leave no token to harvest"):
        harvest(m, ["a"], SITE, tmp_path, 100, progress=False)
    with pytest.raises(InputError, match="leave no token to harvest"):
        train_sae(m, ["a"], site=SITE, d_sae=16, k=2, n_tokens=64, batch_size=8, **QUIET)
    sae = SAE("topk", d_in=32, d_sae=64, k=2, site=SITE)
    assert sae.encode(torch.randn(32)).values.shape == (2,)
    with m.attach(sae):
        assert m.run("a").logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_tokens": 0}, "n_tokens must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"warm_up": 2.0}, "warm_up=2.0 is a share"),
        ({"decay": -0.1}, "decay=-0.1 is a share"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
    ],
)
def test_a_course_that_is_none(settings, says):
    with pytest.raises(InputError, match=says):
        trained(**settings)


def test_rows_at_two_sites_that_do_not_match():
    with pytest.raises(InputError, match="same rows at every site"):
        TensorActivations({"a": torch.randn(3, 2), "b": torch.randn(4, 2)})

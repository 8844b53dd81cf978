"""Make the golden dictionary_learning folders with the real library: run once, in an environment of its own.

    python -m venv v && v/bin/pip install torch nnsight einops datasets
    v/bin/pip install --no-deps dictionary-learning==0.1.0 && v/bin/python tests/sae/foreign/make_dictionary_learning.py

Each folder holds `ae.pt` and `config.json` as its trainers write them, and `expected.safetensors`: inputs `x`, the
codes and reconstructions that the library computes.
"""

import json
import shutil
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from safetensors.torch import save_file

HERE = Path(__file__).parent / "dictionary_learning"
D_IN, D_SAE, K = 8, 16, 3


def randomise(sae: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if name == "threshold":
                parameter.abs_()


def write(name: str, sae: torch.nn.Module, seed: int, threshold: float | None = None) -> None:
    randomise(sae, seed)
    if threshold is not None:
        sae.threshold.fill_(threshold)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.save(sae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": type(sae).__name__, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 1}
    trainer |= {"lm_name": "toy", "submodule_name": "resid_post_layer_1", "lr": 1e-3, "steps": 10, "seed": 0}
    if hasattr(sae, "k"):
        trainer["k"] = int(sae.k)
    config = {"trainer": trainer, "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        codes = sae.encode(x)
        out = sae.decode(codes)
    save_file({"x": x, "codes": codes.contiguous(), "out": out.contiguous()}, folder / "expected.safetensors")


def main() -> None:
    write("AutoEncoder", AutoEncoder(D_IN, D_SAE), 1)
    write("AutoEncoderNew", AutoEncoderNew(D_IN, D_SAE), 2)
    write("GatedAutoEncoder", GatedAutoEncoder(D_IN, D_SAE), 3)
    write("JumpReluAutoEncoder", JumpReluAutoEncoder(D_IN, D_SAE), 4)
    write("AutoEncoderTopK", AutoEncoderTopK(D_IN, D_SAE, K), 5, threshold=0.4)
    write("BatchTopKSAE", BatchTopKSAE(D_IN, D_SAE, K), 6, threshold=0.9)
    write("BatchTopKSAE_unset", BatchTopKSAE(D_IN, D_SAE, K), 7)  # the threshold was never estimated: -1
    write("MatryoshkaBatchTopKSAE", MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [4, 12]), 8, threshold=0.9)
    for file in HERE.glob("*/*"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()

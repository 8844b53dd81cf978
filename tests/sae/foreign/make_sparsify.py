"""Make the golden sparsify folders with the real library: run once, in an environment of its own.

    python -m venv v && v/bin/pip install torch eai-sparsify==1.3.3 && v/bin/python tests/sae/foreign/make_sparsify.py

Each folder holds what sparsify writes for a hookpoint, and `expected.safetensors`: inputs `x`, the codes (dense) and
reconstructions that it computes after loading its own file.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

HERE = Path(__file__).parent / "sparsify"
D_IN, K = 8, 3


def write(name: str, seed: int, **settings) -> None:
    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, **settings), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder = HERE / name / "layers.1"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    coder.save_to_disk(folder)
    coder = SparseCoder.load_from_disk(folder)
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        acts, indices, _ = coder.encode(x)
        codes = torch.zeros(6, coder.num_latents).scatter(1, indices, acts)
        out = coder(x).sae_out
    save_file({"x": x, "codes": codes, "out": out.contiguous()}, folder / "expected.safetensors")


def main() -> None:
    write("topk", 1, num_latents=16)
    write("expansion", 2, expansion_factor=2)  # num_latents is 0 in the file
    write("square", 3, num_latents=8)
    write("transcoder", 4, num_latents=16, transcode=True)
    write("skip_transcoder", 5, num_latents=16, transcode=True, skip_connection=True)
    write("skip_sae", 6, num_latents=16, skip_connection=True)
    write("groupmax", 7, num_latents=18, activation="groupmax")
    for file in HERE.glob("*/*/*"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()

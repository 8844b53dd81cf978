"""Make the golden circuit-tracer sets with the real library: run once, in an environment of its own.

    python -m venv v && v/bin/pip install torch transformers nnsight einops safetensors pyyaml numpy
    v/bin/pip install --no-deps circuit-tracer==0.5.0 && v/bin/python tests/sae/foreign/make_circuit_tracer.py

Each folder holds the layers' files and `config.yaml`, and `expected.safetensors`: inputs `x [layers, n, d]`, the codes
`[layers, n, d_sae]` and reconstructions `[layers, n, d]` that the library computes.
"""

import shutil
from pathlib import Path

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import save_file

HERE = Path(__file__).parent / "circuit_tracer"
D, D_SAE, LAYERS, N = 8, 12, 3, 5
CONFIG = """model_kind: {kind}
model_name: toy
feature_input_hook: mlp.hook_in
feature_output_hook: hook_mlp_out
scan: null
"""


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if "threshold" in name:
                parameter.abs_()


def fresh(name: str, kind: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(kind=kind))
    return folder


def expect(folder: Path, codes: torch.Tensor, out: torch.Tensor, x: torch.Tensor) -> None:
    save_file({"x": x, "codes": codes.contiguous(), "out": out.contiguous()}, folder / "expected.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


@torch.no_grad()
def a_set(name: str, seed: int, threshold: bool, skip: bool) -> None:
    single = {}
    for layer in range(LAYERS):
        act = JumpReLU(torch.zeros(D_SAE), 0.1) if threshold else torch.nn.functional.relu
        single[layer] = SingleLayerTranscoder(D, D_SAE, act, layer, skip, dtype=torch.float32, device="cpu")
        randomise(single[layer], seed + layer)
    whole = TranscoderSet(single, "mlp.hook_in", "hook_mlp_out")
    folder = fresh(name, "transcoder_set")
    whole.to_safetensors(str(folder))
    x = torch.randn(LAYERS, N, D, generator=torch.Generator().manual_seed(7))
    codes = whole.encode(x)
    expect(folder, codes, whole.decode(codes, x), x)


@torch.no_grad()
def across(name: str, seed: int, threshold: bool) -> None:
    kind = "jump_relu" if threshold else "relu"
    cpu = torch.device("cpu")
    clt = CrossLayerTranscoder(LAYERS, D_SAE, D, kind, lazy_decoder=False, dtype=torch.float32, device=cpu)
    randomise(clt, seed)
    folder = fresh(name, "cross_layer_transcoder")
    clt.to_safetensors(str(folder))
    x = torch.randn(LAYERS, N, D, generator=torch.Generator().manual_seed(7))
    codes = clt.encode(x)
    expect(folder, codes, clt.decode(codes.to_sparse()), x)


if __name__ == "__main__":
    a_set("relu", 1, threshold=False, skip=False)
    a_set("jumprelu_skip", 11, threshold=True, skip=True)
    across("across_relu", 21, threshold=False)
    across("across_jumprelu", 31, threshold=True)

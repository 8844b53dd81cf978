"""Make the golden SAELens folders with the real library: run once, in an environment of its own.

    python -m venv v && v/bin/pip install torch sae-lens==6.54.12 && v/bin/python tests/sae/golden/make_golden.py

Each folder holds what SAELens wrote, plus `expected.safetensors`: inputs `x`, the codes and reconstructions SAELens
computes from them after loading its own file.
"""

import json
import shutil
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
D_IN, D_SAE, K = 8, 16, 3


def metadata() -> SAEMetadata:
    facts = {"model_name": "toy", "hook_name": "blocks.1.hook_resid_post", "l0": 3.0, "home_made_key": [1, 2]}
    return SAEMetadata(**facts)


def randomise(sae: torch.nn.Module, seed: int) -> None:
    """Random weights with decoder rows of very unequal norm, so that ranking by norm matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if name == "W_dec":
                parameter.mul_(torch.rand(D_SAE, 1, generator=generator) * 3 + 0.2)
            if name == "threshold":
                parameter.abs_()


def expect(folder: Path, sae: torch.nn.Module) -> None:
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        codes = sae.encode(x)
        out = sae.decode(codes)
    save_file({"x": x, "codes": codes.contiguous(), "out": out}, folder / "expected.safetensors")


def fresh(name: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def inference(name: str, sae: torch.nn.Module, seed: int) -> None:
    folder = fresh(name)
    randomise(sae, seed)
    sae.save_model(folder)
    expect(folder, SAE.load_from_disk(folder))


def main() -> None:
    size = {"d_in": D_IN, "d_sae": D_SAE}
    inference("standard", StandardSAE(StandardSAEConfig(**size, metadata=metadata())), 1)
    inference("topk", TopKSAE(TopKSAEConfig(**size, k=K, metadata=metadata())), 2)
    norms = {"constant_norm_rescale": "unit_norm", "layer_norm": "layer_norm"}
    for seed, (kind, name) in enumerate(norms.items(), start=3):
        cfg = StandardSAEConfig(**size, normalize_activations=kind, apply_b_dec_to_input=False, metadata=metadata())
        inference(f"standard_{name}", StandardSAE(cfg), seed)

    # a topk training checkpoint ranks by decoder norm; its inference export has the norms folded, the flag still set
    trained = TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=K, metadata=metadata()))
    randomise(trained, 5)
    folder = fresh("topk_training")
    trained.save_model(folder)
    expect(folder, trained)
    folder = fresh("topk_export")
    trained.save_inference_model(folder)
    expect(folder, SAE.load_from_disk(folder))

    jump = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**size, metadata=metadata()))
    randomise(jump, 6)
    folder = fresh("jumprelu")
    jump.save_inference_model(folder)
    expect(folder, SAE.load_from_disk(folder))

    batch = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=K, metadata=metadata()))
    randomise(batch, 8)
    batch.topk_threshold.fill_(0.9)
    folder = fresh("batchtopk_training")
    batch.save_model(folder)
    exported = fresh("batchtopk_export")
    batch.save_inference_model(exported)
    expect(exported, SAE.load_from_disk(exported))
    # in use a batchtopk SAE is its export; the checkpoint's codes carry the same decoder norms
    shutil.copy(exported / "expected.safetensors", folder / "expected.safetensors")

    # the flat layout before v6: the weights of "topk", described the old way
    folder = fresh("flat_topk")
    shutil.copy(HERE / "topk" / "sae_weights.safetensors", folder / "sae_weights.safetensors")
    shutil.copy(HERE / "topk" / "expected.safetensors", folder / "expected.safetensors")
    flat = {"architecture": "standard", **size, "dtype": "torch.float32", "device": "cpu", "hook_point_layer": 1}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": True}
    flat |= {"model_name": "toy", "hook_point": "blocks.1.hook_resid_post", "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(flat))
    assert torch.equal(SAE.load_from_disk(folder).encode(load_file(folder / "expected.safetensors")["x"]),
                       load_file(folder / "expected.safetensors")["codes"])  # fmt: skip
    for file in HERE.glob("*/*"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()

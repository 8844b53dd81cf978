"""Small formats of published SAEs: Llama Scope and its R1 series, Goodfire, DeepSeek-R1, Qwen Scope, GPT-2's hook_z.

Where a file says nothing of its site or k, they are read from its path, which must then be the published one.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparselens.errors import FileFormatError
from sparselens.files import read_json
from sparselens.sae.assemble import assemble, read_pt, renamed
from sparselens.sae.format_saelens import read_tensors
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE

HYPERPARAMS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
R1_CONFIG, R1_WEIGHTS = "config.json", "sae_weights.safetensors"
_LINEAR = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T", "decoder.bias": "b_dec"}
_GOODFIRE = {name.replace(".", "_linear."): ours for name, ours in _LINEAR.items()}
_QWEN = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}
_HOOK_Z = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def detect(path: Path) -> bool:
    """Whether `path` is a folder of Llama Scope, or a `.pt` file."""
    if path.is_dir():
        return (path / HYPERPARAMS).is_file() or _is_r1(path)
    return path.suffix in (".pt", ".pth")


def _is_r1(folder: Path) -> bool:
    files = (folder / R1_CONFIG, folder / R1_WEIGHTS)
    return all(file.is_file() for file in files) and "expansion_factor" in read_json(files[0])


def read(path: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read one of these formats.

    Raises:
        FileFormatError: damaged files, unknown tensors, or a `.pt` file that holds no SAE known here.
    """
    if path.is_file():
        return _read_pt(path, dtype)
    return _read_r1(path, dtype) if _is_r1(path) else _read_llama_scope(path, dtype)


def _read_llama_scope(folder: Path, dtype: torch.dtype | None) -> SAE:
    """Inputs are scaled to norm sqrt(d) on average, outputs back; one threshold serves all latents. Whether the
    threshold is meant in scaled units could not be checked against the published l0: `sae.verify` before trusting it.
    """
    config, where = read_json(folder / HYPERPARAMS), folder / FINAL
    try:
        d, norm = config["d_model"], config["dataset_average_activation_norm"]
        scale, scale_out = (d**0.5 / norm[side] for side in ("in", "out"))
        threshold, reads, writes = config["jump_relu_threshold"], config["hook_point_in"], config["hook_point_out"]
    except KeyError as error:
        raise FileFormatError(f"{folder / HYPERPARAMS} lacks {error.args[0]!r}.") from error
    ours = renamed(read_tensors(where), _LINEAR, where)
    for name in ("W_dec", "b_dec"):  # the way back divides by the scale of the input
        ours[name] = ours[name] * (scale / scale_out)
    ours["activation.threshold"] = torch.full_like(ours["b_enc"], threshold)
    return assemble(
        "jumprelu",
        ours,
        where,
        format="llama_scope",
        config=config,
        dtype=dtype,
        input_norm=InputNorm("scale", scale),
        site=reads,
        site_out=None if writes == reads else writes,
        metadata={"model_name": "meta-llama/Llama-3.1-8B", "context_size": 1024},
    )


def _read_r1(folder: Path, dtype: torch.dtype | None) -> SAE:
    config, where = read_json(folder / R1_CONFIG), folder / R1_WEIGHTS
    ours = renamed(read_tensors(where), _LINEAR | {"log_jumprelu_threshold": "activation.threshold"}, where)
    ours["activation.threshold"] = ours["activation.threshold"].exp()
    norm = (config.get("dataset_average_activation_norm") or {}).get(config.get("hook_point_in"))
    if norm is None:
        raise FileFormatError(
            f"{folder / R1_CONFIG} does not say the average norm of its inputs, by which they are scaled: its "
            "reconstructions cannot be made from this file alone."
        )
    return assemble(
        "jumprelu",
        ours,
        where,
        format="llama_scope_r1",
        config=config,
        dtype=dtype,
        input_norm=InputNorm("scale", config["d_model"] ** 0.5 / norm),
        site=config["hook_point_in"],
    )


def _read_pt(path: Path, dtype: torch.dtype | None) -> SAE:
    """Which one it is, its tensors say."""
    found = read_pt(path)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FileFormatError(f"{path} holds no plain dictionary of tensors, so it is no SAE known here.")
    name, architecture, k = path.as_posix(), "relu", None
    facts: dict[str, Any] = {}
    settings = path.with_name(path.name.removesuffix(".pt") + "_cfg.json")
    if found.keys() == _GOODFIRE.keys():
        kind, layer = _GOODFIRE, re.search(r"-l(\d+)\.pth?$", name)
        model = re.search(r"(Llama-[\d.]+-\d+B-Instruct)", name)
        facts = {"model_name": f"meta-llama/{model[1]}"} if model else {}
    elif found.keys() == _LINEAR.keys():
        kind, layer = _LINEAR, re.search(r"l(\d+)", path.name)
        facts = {"model_name": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"} if "DeepSeek" in name else {}
    elif found.keys() == _QWEN.keys() and settings.is_file():
        return _read_hook_z(path, found, read_json(settings), dtype)
    elif found.keys() == _QWEN.keys():
        kind, layer, repo = _QWEN, re.search(r"layer(\d+)\.sae", name), re.search(r"SAE-Res-(.+)-W\d+K-L0_(\d+)", name)
        if repo is None:
            raise FileFormatError(
                f"{path} looks like Qwen Scope, whose k stands in the name of its folder "
                "(SAE-Res-<model>-W32K-L0_50), and this path has none. Keep that folder's name."
            )
        architecture, k, facts = "topk", int(repo[2]), {"model_name": f"Qwen/{repo[1]}"}
    else:
        raise FileFormatError(f"{path} holds tensors of no SAE known here: {', '.join(sorted(found)[:8])}.")
    return assemble(
        architecture,
        renamed(found, kind, path),
        path,
        format="state_dict",
        config=None,
        dtype=dtype,
        k=k,
        site=f"blocks.{layer[1]}.hook_resid_post" if layer else None,
        metadata=facts,
    )


def _read_hook_z(path: Path, found: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype | None) -> SAE:
    """GPT-2's attention-output SAEs (Kissane, Krzyzanowski et al., 2024)."""
    return assemble(
        "relu",
        renamed(found, _HOOK_Z, path),
        path,
        format="hook_z",
        config=config,
        dtype=dtype,
        subtract_b_dec=True,
        site=config.get("act_name"),
        metadata={"model_name": "gpt2", "prepend_bos": True, "context_size": 128},
    )

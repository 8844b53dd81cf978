"""dictionary_learning folders: `ae.pt` + `config.json`. Seven classes are read, six are written.

Layout: https://github.com/saprmarks/dictionary_learning, checked against dictionary-learning 0.1.0. The matrices of the
classes built on `nn.Linear` lie the other way round.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparselens.errors import FileFormatError, InputError, closest
from sparselens.files import read_json
from sparselens.sae.assemble import assemble, read_pt, renamed
from sparselens.sae.conversion import Plain, plain
from sparselens.sae.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T"}
_MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_THRESHOLD = {"threshold": "activation.threshold"}
# class -> (our architecture, whether b_dec is subtracted, their tensor -> ours)
_CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("relu", True, _LINEAR | {"encoder.bias": "b_enc", "bias": "b_dec"}),
    "AutoEncoderNew": ("relu", False, _LINEAR | {"encoder.bias": "b_enc", "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        _LINEAR
        | {"decoder_bias": "b_dec", "gate_bias": "activation.b_gate", "mag_bias": "activation.b_mag"}
        | {"r_mag": "activation.r_mag"},
    ),
    "JumpReluAutoEncoder": ("jumprelu", False, _MATRICES | _THRESHOLD),
    "AutoEncoderTopK": ("topk", True, _LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", True, _LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"} | _THRESHOLD),
    "MatryoshkaBatchTopKSAE": ("batchtopk", True, _MATRICES | _THRESHOLD),
}
_SITES = {"resid_post": "hook_resid_post", "resid_pre": "hook_resid_pre", "mlp": "hook_mlp_out", "att": "hook_attn_out"}


def detect(folder: Path) -> bool:
    """Whether `folder` looks like a dictionary_learning run."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read a dictionary_learning folder. Codes are those of the raw file (their `normalize_decoder=False`).

    Raises:
        FileFormatError: damaged files, an unknown class, or unexpected tensors.
    """
    config, where = read_json(folder / CONFIG), folder / WEIGHTS
    trainer = config.get("trainer", {})
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise FileFormatError(
            f"{folder / CONFIG}: dict_class {name!r} cannot be read; these can: {', '.join(_CLASSES)}."
            f"{closest(str(name), _CLASSES)}"
        )
    architecture, subtract, names = _CLASSES[name]
    tensors = read_pt(where)
    if "ae" in tensors:  # a backup of a run under way
        tensors = tensors["ae"]
    k = int(tensors.pop("k")) if "k" in tensors else None
    groups = tensors.pop("group_sizes", None)
    if architecture == "topk":
        tensors.pop("threshold", None)  # estimated, but not used by their encode
    ours = renamed(tensors, names, where)
    if architecture == "batchtopk":
        ours["activation.threshold"] = ours["activation.threshold"].clamp(min=0)  # -1: not estimated yet, a ReLU
    metadata = {"model_name": trainer.get("lm_name"), "hook_name": _site(trainer, config.get("buffer") or {})}
    metadata |= {"context_size": (config.get("buffer") or {}).get("ctx_len")}
    if groups is not None:
        metadata["group_sizes"] = groups.tolist()
    return assemble(
        architecture,
        ours,
        where,
        format="dictionary_learning",
        config=config,
        dtype=dtype,
        k=k,
        subtract_b_dec=subtract,
        metadata={key: value for key, value in metadata.items() if value is not None},
    )


def _site(trainer: dict[str, Any], buffer: dict[str, Any]) -> str | None:
    """The site, from what the trainer says of the submodule; None where that is not plain."""
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name") or "resid_post"
    kind = next((site for part, site in _SITES.items() if part in submodule), None)
    if layer is None or kind is None:
        return None
    return f"blocks.{layer}.hook_resid_pre" if kind == "hook_resid_post" and buffer.get("io") == "in" \
        else f"blocks.{layer}.{kind}"  # fmt: skip


def write(sae: SAE, folder: Path) -> None:
    """Write `sae` into the empty folder `folder`.

    Raises:
        InputError: none of their classes computes this.
    """
    wanted = {"relu", "gated", "jumprelu", "topk", "batchtopk"}
    subtract = {"gated": True, "jumprelu": False, "topk": True, "batchtopk": True}.get(sae.architecture)
    w = plain(sae, "dictionary_learning", wanted, subtract=subtract)
    name = next(n for n, (a, s, _) in _CLASSES.items() if (a, s) == (sae.architecture, w.subtract_b_dec))
    names = _CLASSES[name][2]
    tensors: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        value = w.tensors[ours.removesuffix(".T")]
        tensors[theirs] = (value.T if ours.endswith(".T") else value).contiguous()
    if sae.architecture in ("topk", "batchtopk"):
        if sae.k != int(sae.k or 0):
            raise InputError(f"dictionary_learning keeps a whole k, and this SAE has k={sae.k}.")
        tensors["k"] = torch.tensor(sae.k, dtype=torch.int32)
        tensors.setdefault("threshold", torch.tensor(-1.0))
    torch.save(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(_config(sae, name, w), indent=2) + "\n", encoding="utf-8")


def _config(sae: SAE, name: str, w: Plain) -> dict[str, Any]:
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", sae.site or "")
    kind = next((part for part, site in _SITES.items() if found and site == found[2]), None)
    trainer = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.d_sae, "k": sae.k}
    trainer |= {"lm_name": sae.model_name, "layer": int(found[1]) if found else None}
    trainer["submodule_name"] = f"{kind}_layer_{found[1]}" if found and kind else sae.site
    return {"trainer": trainer, "buffer": {"d_submodule": sae.d_in, "io": "out", "ctx_len": w.context}}

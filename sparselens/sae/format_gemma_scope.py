"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, perhaps `config.json`): JumpReLU SAEs and transcoders.

The files say little of themselves: layer, kind and model are read from the path, as in
`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.errors import FileFormatError
from sparselens.files import read_json
from sparselens.sae.assemble import assemble, renamed
from sparselens.sae.format_saelens import read_tensors
from sparselens.sae.sae import SAE

NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "activation.threshold"}
_SKIP = "affine_skip_connection"
# part of the path -> (what it reads, what it writes if another place), below blocks.L
_KINDS = (
    ("transcoder", "mlp.hook_in", "hook_mlp_out"),
    ("resid_post", "hook_resid_post", None),
    ("attn_out", "attn.hook_z", None),
    ("mlp_out", "hook_mlp_out", None),
    ("-res", "hook_resid_post", None),
    ("-att", "attn.hook_z", None),
    ("-mlp", "hook_mlp_out", None),
)


def detect(folder: Path) -> bool:
    """Whether `folder` looks like one of Gemma Scope."""
    return (folder / NPZ).is_file() or (folder / SAFETENSORS).is_file()


def read(folder: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read a folder of Gemma Scope 1 or 2.

    Raises:
        FileFormatError: damaged files, unknown tensors, or an architecture other than JumpReLU.
    """
    first = (folder / NPZ).is_file()
    where = folder / (NPZ if first else SAFETENSORS)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FileFormatError(f"{folder / CONFIG}: architecture {config['architecture']!r} is not jump_relu.")
    tensors = {name.lower(): value for name, value in (_npz(where) if first else read_tensors(where)).items()}
    names = _NAMES | ({_SKIP: "W_skip.T"} if _SKIP in tensors else {})
    ours = renamed(tensors, names, where)
    path = folder.resolve().as_posix()
    if first and "/embedding" in path:  # its inputs were embeddings times sqrt(d)
        root = ours["W_enc"].shape[0] ** 0.5
        ours["W_enc"], ours["W_dec"], ours["b_dec"] = ours["W_enc"] * root, ours["W_dec"] / root, ours["b_dec"] / root
    reads, writes = _sites(path)
    return assemble(
        "jumprelu",
        ours,
        where,
        format="gemma_scope",
        config=config,
        dtype=dtype,
        site=reads,
        site_out=writes,
        metadata={"prepend_bos": True, "context_size": 1024} | _facts(path, config),
    )


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} cannot be read ({error}). It is probably cut off: fetch it again.") from error


def _sites(path: str) -> tuple[str | None, str | None]:
    if "/embedding" in path:
        return "hook_embed", None
    layer = re.search(r"layer_(\d+)", path)
    for mark, reads, writes in _KINDS if layer else ():
        if mark in path:
            at = f"blocks.{layer[1]}."  # type: ignore[index]
            return at + reads, None if writes is None else at + writes
    return None, None


def _facts(path: str, config: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    repo = re.search(r"gemma-scope-(2-)?(\d+m|\d+b)-(pt|it)", path)
    model = config.get("model_name")
    if model is None and repo:
        model = f"gemma-3-{repo[2]}-{repo[3]}" if repo[1] else f"gemma-2-{repo[2]}" + ("-it" if repo[3] == "it" else "")
    if model:
        facts["model_name"] = "google/" + str(model).removeprefix("google/").replace("-v3", "-3")
    l0 = re.search(r"average_l0_(\d+)", path)
    return facts | ({"l0": float(l0[1])} if l0 else {})

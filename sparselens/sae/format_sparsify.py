"""sparsify folders, one a hookpoint: `cfg.json` + `sae.safetensors`. TopK SAEs and transcoders are read and written.

Layout: https://github.com/EleutherAI/sparsify, checked against eai-sparsify 1.3.3.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from sparselens.errors import FileFormatError, closest
from sparselens.files import read_json
from sparselens.sae.assemble import assemble, renamed
from sparselens.sae.conversion import plain
from sparselens.sae.format_saelens import read_tensors, write_tensors
from sparselens.sae.sae import SAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_NAMES = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_KEYS = {"activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection"}
_KEYS |= {"transcode", "d_in", "signed"}
_LAYER = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?")
# module inside a block -> (what it reads, what it writes)
_PARTS = {
    "": ("hook_resid_pre", "hook_resid_post"),
    "mlp": ("mlp.hook_in", "hook_mlp_out"),
    "self_attn": ("attn.hook_in", "hook_attn_out"),
    "attn": ("attn.hook_in", "hook_attn_out"),
    "attention": ("attn.hook_in", "hook_attn_out"),
}
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte")


def detect(folder: Path) -> bool:
    """Whether `folder` looks like a hookpoint of sparsify."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read a hookpoint's folder, such as `run/layers.10`. The model's name is taken from the run's own `config.json`.

    Transcoders from before February 2025 subtracted `b_dec`, and their files do not say so; `sae.verify` tells.

    Raises:
        FileFormatError: damaged files, unknown keys or tensors, or signed codes of early versions.
    """
    cfg = read_json(folder / CONFIG)
    unknown = sorted(cfg.keys() - _KEYS)
    if unknown:
        raise FileFormatError(f"{folder / CONFIG} has unknown keys: {', '.join(unknown)}.{closest(unknown[0], _KEYS)}")
    activation = cfg.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise FileFormatError(f"{folder / CONFIG}: activation {activation!r} is unknown; valid are topk and groupmax.")
    tensors = read_tensors(folder / WEIGHTS)
    names = _NAMES | ({"W_skip": "W_skip"} if cfg.get("skip_connection") else {})
    reads, writes = sites(folder, bool(cfg.get("transcode")))
    run = folder.parent / "config.json"
    metadata = {"model_name": read_json(run).get("model")} if run.is_file() else {}
    return assemble(
        "abstopk" if cfg.get("signed") and activation == "topk" else activation,
        renamed(tensors, names, folder / WEIGHTS),
        folder / WEIGHTS,
        format="sparsify",
        config=cfg,
        dtype=dtype,
        k=cfg["k"],
        subtract_b_dec=not cfg.get("transcode", False),
        site=reads,
        site_out=writes,
        metadata={key: value for key, value in metadata.items() if value},
    )


def sites(folder: Path, transcode: bool) -> tuple[str | None, str | None]:
    """What it reads, and what it writes if that is another place: from the hookpoint, which names the folder."""
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    if name in _EMBEDDINGS:
        return "hook_embed", None
    found = _LAYER.fullmatch(name)
    if not found or (found[2] or "") not in _PARTS:
        return None, None
    source, target = (f"blocks.{found[1]}.{part}" for part in _PARTS[found[2] or ""])
    return (source, target) if transcode else (target, None)


def write(sae: SAE, folder: Path) -> None:
    """Write `sae` into the empty folder `folder`; name that folder by the hookpoint, such as `layers.10`.

    Raises:
        InputError: sparsify cannot hold this SAE.
    """
    w = plain(sae, "sparsify", {"topk", "groupmax"}, subtract=not sae.is_transcoder)
    names = _NAMES | ({"W_skip": "W_skip"} if sae.W_skip is not None else {})
    tensors = {
        theirs: w.tensors[ours.removesuffix(".T")].T if ours.endswith(".T") else w.tensors[ours]
        for theirs, ours in names.items()
    }
    write_tensors(folder / WEIGHTS, tensors)
    cfg: dict[str, Any] = {"activation": sae.architecture, "expansion_factor": max(1, sae.d_sae // sae.d_in)}
    cfg |= {"normalize_decoder": False, "num_latents": sae.d_sae, "k": sae.k, "multi_topk": False}
    cfg |= {"skip_connection": sae.W_skip is not None, "transcode": sae.is_transcoder, "d_in": sae.d_in}
    (folder / CONFIG).write_text(json.dumps(cfg) + "\n", encoding="utf-8")

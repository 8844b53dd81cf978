"""The format that holds every SAE, its parts and their options: `sae.json` + `sae_weights.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch

from sparselens.errors import FileFormatError, closest
from sparselens.files import read_json
from sparselens.sae.architectures import ACTIVATIONS, BYPASSES, DECODERS
from sparselens.sae.assemble import fill
from sparselens.sae.format_saelens import WEIGHTS, read_tensors, sha256, write_tensors
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE

CONFIG = "sae.json"
_VERSION = 1
_PLAIN = ("d_in", "d_sae", "d_out", "subtract_b_dec", "rank_by_decoder_norm", "tied")
_PARTS: dict[str, dict[str, Any]] = {"activation": ACTIVATIONS, "decoder": DECODERS, "bypass": BYPASSES}
_KEYS = {"version", "dtype", "input_norm", "skip", "metadata", *_PLAIN, *_PARTS}


def detect(folder: Path) -> bool:
    """Whether `folder` holds an SAE in this format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def write(sae: SAE, folder: Path) -> None:
    """Write `sae` into the empty folder `folder`."""
    facts: dict[str, Any] = {"version": _VERSION, "dtype": str(sae.b_dec.dtype).removeprefix("torch.")}
    facts |= {name: getattr(sae, name) for name in _PLAIN}
    facts |= {"skip": sae.W_skip is not None, "input_norm": vars(sae.input_norm)}
    for role in _PARTS:
        part = getattr(sae, role)
        facts[role] = None if part is None else {"name": part.name, "options": part.options}
    write_tensors(folder / WEIGHTS, dict(sae.state_dict()))
    text = json.dumps(facts | {"metadata": sae.metadata}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read(folder: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read an SAE in this format.

    Raises:
        FileFormatError: damaged or incomplete files, unknown keys, parts or tensors, or a file of a later version.
    """
    facts = read_json(folder / CONFIG)
    if not isinstance(facts, dict) or facts.keys() != _KEYS:
        odd = sorted(_KEYS ^ facts.keys()) if isinstance(facts, dict) else [type(facts).__name__]
        raise FileFormatError(f"{folder / CONFIG} has not the keys of an SAE; missing or unknown: {', '.join(odd)}.")
    if facts["version"] != _VERSION:
        raise FileFormatError(f"{folder / CONFIG} has version {facts['version']}; this sparselens reads {_VERSION}.")
    parts = {role: _part(role, facts[role], folder) for role in _PARTS}
    settings = {name: facts[name] for name in _PLAIN} | {"skip": facts["skip"], "metadata": facts["metadata"]}
    norm = InputNorm(**facts["input_norm"])
    architecture = parts.pop("activation")
    sae = SAE(architecture, input_norm=norm, seed=None, **settings, **parts)
    tensors = read_tensors(folder / WEIGHTS)
    fill(sae, tensors, folder / WEIGHTS)
    sae.requires_grad_(False)
    if dtype is not None:
        sae.to(dtype)
    sae.provenance = {"format": "sparselens", "sha256": {WEIGHTS: sha256(folder / WEIGHTS)}}
    return sae


def _part(role: str, entry: Any, folder: Path) -> Any:
    """A part rebuilt from its name and options."""
    if entry is None:
        return None
    known = _PARTS[role]
    if entry["name"] not in known:
        raise FileFormatError(
            f"{folder / CONFIG}: {role} {entry['name']!r} is not known here; these are: "
            f"{', '.join(known) or 'none'}.{closest(entry['name'], known)}"
        )
    return known[entry["name"]](**entry["options"])

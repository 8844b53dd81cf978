"""Step-level SAEs in files: a folder with `ssae.json` and `ssae.safetensors`; and those that come with sparselens."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparselens.errors import FileFormatError, FitError, InputError, closest
from sparselens.files import read_json, write_whole
from sparselens.models.live import LiveModel
from sparselens.reasoning.ssae import StepSAE
from sparselens.sae.format_saelens import read_tensors, write_tensors

CONFIG, WEIGHTS = "ssae.json", "ssae.safetensors"
_VERSION = 1
_SETTINGS = ("expansion", "rank", "noise", "mask_share", "pooling", "layer", "max_context", "max_step", "place", "lead",
             "condition_on_context", "official_masking")
_KEYS = {"version", "model", "d_model", "tuning", "prior", "metadata", *_SETTINGS}
_SIGNATURE = "signature"
_PACKAGE = Path(__file__).resolve().parent.parent
_TOLERANCE = 0.02  # half precision moves a weight by less


def save(ssae: StepSAE, path: str | os.PathLike) -> Path:
    """Write a step-level SAE. Frozen language models are not written: the live model is needed to load it."""
    facts: dict[str, Any] = {"version": _VERSION, "model": ssae.model.name, "d_model": ssae.model.d_model}
    facts |= {"tuning": list(ssae.tuning), **{name: getattr(ssae, name) for name in _SETTINGS}}
    facts |= {"prior": None if ssae.prior is None else ssae.prior.hints.tuning, "metadata": ssae.metadata}
    target = Path(path)
    with write_whole(target, folder=True) as folder:
        # named_parameters gives weights that are tied, as embedding and output are, once
        write_tensors(folder / WEIGHTS, dict(ssae.named_parameters()) | {_SIGNATURE: signature(ssae.model)})
        (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return target


def load(path: str | os.PathLike, model: LiveModel) -> StepSAE:
    """Read what `save` wrote, or a shipped one by its name (`model` or `model/recipe`)."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = _shipped(str(path))
    facts = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not isinstance(facts, dict) or facts.keys() != _KEYS:
        odd = sorted(_KEYS ^ facts.keys()) if isinstance(facts, dict) else ["no such file"]
        raise FileFormatError(f"{folder / CONFIG} is not that of a step-level SAE; missing or unknown: "
                              f"{', '.join(odd)}.")
    if facts["version"] != _VERSION:
        raise FileFormatError(f"{folder / CONFIG} has version {facts['version']}; this sparselens reads {_VERSION}.")
    tensors = read_tensors(folder / WEIGHTS)
    _check_model(facts, tensors.pop(_SIGNATURE, None), model)
    ssae = StepSAE(model, tuning=facts["tuning"], **{name: facts[name] for name in _SETTINGS})
    if facts["prior"] is not None:
        from sparselens.reasoning.ssae_prior import StepPrior

        ssae.prior = StepPrior(ssae, facts["prior"])
    own = dict(ssae.named_parameters())
    odd = sorted(own.keys() ^ tensors.keys()) or sorted(n for n in own if own[n].shape != tensors[n].shape)
    if odd:
        raise FileFormatError(f"{folder / WEIGHTS} does not fit {CONFIG}; missing, unknown or of another shape: "
                              f"{', '.join(odd[:5])}.")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    ssae.metadata = facts["metadata"]
    return ssae


def signature(model: LiveModel) -> Tensor:
    """Some weights of a model, float32 `[64]`, by which it is known again in any precision."""
    parameters = list(model.module.parameters())
    chosen = [parameters[i * (len(parameters) - 1) // 7].detach().flatten() for i in range(8)]
    return torch.stack([p[i * (len(p) - 1) // 7] for p in chosen for i in range(8)]).float().cpu()


def _check_model(facts: dict[str, Any], wanted: Tensor | None, model: LiveModel) -> None:
    with model.untouched():
        found = signature(model)
    if facts["d_model"] != model.d_model or wanted is None or wanted.shape != found.shape:
        raise FitError(f"this step-level SAE belongs to {facts['model']!r} of width {facts['d_model']}; {model.name!r} "
                       f"has {model.d_model}.")
    if not torch.allclose(found, wanted, rtol=_TOLERANCE, atol=1e-4):
        raise FitError(f"this step-level SAE belongs to {facts['model']!r}; the weights of {model.name!r} are others.")


def _shipped(name: str) -> Path:
    """The folder of a shipped one."""
    found: dict[str, Path] = {}
    for root in (_PACKAGE / "_data" / "ssaes", _PACKAGE.parent / "data" / "ssaes"):
        for config in sorted(root.glob(f"*/*/{CONFIG}")):
            found.setdefault("/".join(config.parent.parts[-2:]), config.parent)
    fitting = [full for full in found if full == name or full.split("/")[0] == name]
    if len(fitting) != 1:
        raise InputError(f"there is no folder and no shipped step-level SAE {name!r}; shipped are: "
                         f"{', '.join(found) or 'none'}.{closest(name, found)}")
    return found[fitting[0]]

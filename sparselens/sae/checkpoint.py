"""Checkpoints of a training run: `checkpoints/<step>/state.safetensors` + `state.json`, whole or not there."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from sparselens.errors import InputError
from sparselens.files import read_json, write_whole
from sparselens.sae.format_saelens import read_tensors, write_tensors


def save_checkpoint(out: Path, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
    """Write the state of every trainer after `step` steps; then remove the checkpoint before.

    Args:
        out: the folder of the run.
        tensors: by SAE name, what `SAETrainer.state` returned.
        facts: JSON facts that go along; must hold "settings".
    """
    folder = out / "checkpoints"
    flat = {f"{name}/{key}": value for name, state in tensors.items() for key, value in state.items()}
    with write_whole(folder / f"{step:08d}", folder=True) as temporary:
        write_tensors(temporary / "state.safetensors", flat)
        (temporary / "state.json").write_text(json.dumps({"step": step, **facts}))
    for other in [*folder.glob("[0-9]*"), *folder.glob(".*.tmp")]:
        if other.name != f"{step:08d}":
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(out: Path, settings: dict[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint of the run in `out`, or None.

    Raises:
        InputError: it belongs to a run with other settings; the differing ones are named.
        FileFormatError: its files are damaged.
    """
    found = sorted((out / "checkpoints").glob("[0-9]*"))
    if not found:
        return None
    facts = read_json(found[-1] / "state.json")
    check_settings(out, facts["settings"], settings)
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(found[-1] / "state.safetensors").items():
        name, _, inner = key.rpartition("/")
        tensors.setdefault(name, {})[inner] = value
    return tensors, facts


def check_settings(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run that was started with other settings."""
    now = json.loads(json.dumps(now))
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        said = "; ".join(f"{key}: there {there.get(key)!r}, now {now.get(key)!r}" for key in differing)
        raise InputError(f"{out} holds a run with other settings ({said}). Give a new folder, or the same settings.")

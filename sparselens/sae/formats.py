"""Finding an SAE by path or name, and reading and writing it. One `format_*.py` file a format."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from sparselens.errors import FetchError, FileFormatError, InputError, closest
from sparselens.files import read_json, write_whole
from sparselens.sae import format_saelens, registry
from sparselens.sae.sae import SAE

CARD = "card.json"
_WRITERS = ("sparselens", "saelens")
_CARD_FACTS = ("model_name", "l0", "fvu", "dead_share", "n_tokens", "context_size", "max_norm")


def load(path_or_name: str | os.PathLike, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Load an SAE from a folder, a shipped name or the hub; see `SAE.load`."""
    name = os.fspath(path_or_name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return read(folder, dtype)
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder that holds it.")
    shipped = registry.find(name)
    if shipped is not None:
        return read(shipped, dtype)
    if name.startswith("hf://") or (name.count("/") >= 1 and name[0] not in "./~\\"):
        return read(_fetch(name.removeprefix("hf://")), dtype)
    valid = registry.names()
    raise InputError(
        f"no SAE called {name!r}: it is no folder, no hub id (org/name or hf://org/name/folder) and none of the "
        f"shipped ones ({', '.join(valid) or 'none here'}).{closest(name, valid)}"
    )


def read(folder: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read the SAE in `folder`, whichever known format it has.

    Raises:
        FileFormatError: no known format, or damaged files.
    """
    if not format_saelens.detect(folder):
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise FileFormatError(
            f"{folder} holds no SAE in a known format: {format_saelens.CONFIG} and {format_saelens.WEIGHTS} are "
            f"needed (found: {', '.join(found) or 'nothing'})."
        )
    sae = format_saelens.read(folder, dtype)
    if (folder / CARD).is_file():
        origin = read_json(folder / CARD).get("provenance")
        sae.provenance |= {"format": "sparselens"} | ({"origin": origin} if origin else {})
    return sae


def save(sae: SAE, path: str | os.PathLike, format: str = "sparselens") -> Path:
    """Write `sae` as the folder `path`; see `SAE.save`.

    Raises:
        InputError: an unknown format, or `path` is a folder that holds something else.
        StorageError: the disk is full or not writable.
    """
    if format not in _WRITERS:
        raise InputError(f"unknown format {format!r}; valid: {', '.join(_WRITERS)}.{closest(format, _WRITERS)}")
    folder = Path(path).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not format_saelens.detect(folder)):
        raise InputError(f"{folder} exists and is not an SAE; name a new folder, so that nothing is lost.")
    with write_whole(folder, folder=True) as temporary:
        format_saelens.write(sae, temporary)
        if format == "sparselens":
            text = json.dumps(_card(sae), indent=2, ensure_ascii=False)
            (temporary / CARD).write_text(text + "\n", encoding="utf-8")
    return folder


def _card(sae: SAE) -> dict[str, Any]:
    """What a reader wants to know first, and where a converted SAE comes from."""
    card = {"site": sae.site, "architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k}
    card |= {key: sae.metadata[key] for key in _CARD_FACTS if key in sae.metadata}
    return card | {"provenance": sae.provenance}


def _fetch(name: str) -> Path:
    """Download `org/name[/folder]` from the hub, only the files of an SAE, and return the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    org, repo, *inner = name.strip("/").split("/")
    wanted = [format_saelens.CONFIG, format_saelens.WEIGHTS, "activation_scaler.json", CARD]
    try:
        root = snapshot_download(f"{org}/{repo}", allow_patterns=["/".join([*inner, file]) for file in wanted])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(
            f"{name!r} is no folder here and no shipped SAE ({', '.join(registry.names()) or 'none here'}), and "
            f"could not be fetched from the hub: {error}"
        ) from error
    folder = Path(root, *inner)
    if not folder.is_dir():
        raise FetchError(f"the hub repository {org}/{repo} has no SAE in {'/'.join(inner) or 'its root'}.")
    return folder

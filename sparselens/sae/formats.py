"""Finding an SAE by path or name, and reading and writing it. One `format_*.py` file a format."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from sparselens.errors import FetchError, FileFormatError, InputError, closest
from sparselens.files import read_json, write_whole
from sparselens.sae import (
    format_circuit_tracer,
    format_dictionary_learning,
    format_gemma_scope,
    format_others,
    format_own,
    format_saelens,
    format_sparsify,
    hub,
    public,
    registry,
)
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE

CARD = "card.json"
# In order: a folder of SAELens and one of Llama Scope's R1 series have files of the same names.
_READERS = (
    format_own,
    format_circuit_tracer,
    format_others,
    format_saelens,
    format_sparsify,
    format_dictionary_learning,
    format_gemma_scope,
)
_WRITERS = {
    "sparselens": format_own,
    "saelens": format_saelens,
    "dictionary_learning": format_dictionary_learning,
    "sparsify": format_sparsify,
    "circuit_tracer": format_circuit_tracer,
}
_CARD_FACTS = ("model_name", "l0", "fvu", "dead_share", "n_tokens", "context_size", "max_norm")


def load(
    path_or_name: str | os.PathLike,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> SAE:
    """Load an SAE from a path, a shipped name or the hub; see `SAE.load`. The last three are for the hub."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={dtype!r} is no floating point type: give torch.float32, such a one, or None.")
    name = os.fspath(path_or_name)
    path = Path(name).expanduser()
    if path.exists():
        return read(path, dtype)
    shipped = registry.find(name)
    if shipped is not None:
        return read(shipped, dtype)
    listed = public.find(name)
    if listed is not None:
        return _read_public(listed, dtype, revision, cache_dir, local_files_only)
    valid = registry.names()
    if name.startswith("hf://") or (name.count("/") >= 1 and name[0] not in "./~\\"):
        try:
            return read(hub.fetch(name, revision, cache_dir, local_files_only), dtype)
        except FetchError as error:
            near = closest(name.partition("/")[0], public.releases())
            raise FetchError(f"{name!r} is nothing here, no shipped SAE ({', '.join(valid) or 'none here'}) and no "
                             f"public release of sl.find_saes(), and {error}{near}") from error  # fmt: skip
    raise InputError(
        f"no SAE called {name!r}: it is no folder, no hub id (org/name or hf://org/name/folder), none of the shipped "
        f"ones ({', '.join(valid) or 'none here'}) and no release/id of sl.find_saes().{closest(name, valid)}"
    )


def _read_public(
    listed: public.PublicSAE,
    dtype: torch.dtype | None,
    revision: str | None,
    cache_dir: str | os.PathLike | None,
    local_files_only: bool,
) -> SAE:
    """Fetch and read an SAE of the table, with what the table knows and the files do not say."""
    path = hub.fetch(f"{listed.repo}/{listed.path}", revision, cache_dir, local_files_only)
    norm = None
    if listed.norm and listed.format == "saelens":
        kind = format_saelens.NORMS.get(listed.norm)
        norm = InputNorm("scale", float(listed.norm)) if kind is None else InputNorm(kind)
    sae = read(path, dtype, norm)
    known: dict[str, Any] = {"model_name": listed.model, "l0": listed.l0}
    known |= {"hook_name": listed.site, "hook_name_out": listed.site_out}
    if listed.centred:
        known["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    for key, value in known.items():
        if value and not sae.metadata.get(key):
            sae.metadata[key] = value
    sae.provenance["public"] = listed.name
    return sae


def read(path: Path, dtype: torch.dtype | None = torch.float32, norm: InputNorm | None = None) -> SAE:
    """Read the SAE in a folder, or in a file of the formats that have one file an SAE.

    Args:
        path: folder or file.
        dtype: of the weights in memory; None keeps the file's.
        norm: input normalisation that a SAELens folder itself leaves out.

    Raises:
        FileFormatError: no known format, or damaged files.
    """
    reader = next((one for one in _READERS if one.detect(path)), None)
    if reader is None:
        raise FileFormatError(_unknown(path))
    own = {"norm": norm} if reader is format_saelens else {}
    sae = reader.read(path, dtype, **own)
    if path.is_dir() and (path / CARD).is_file():
        origin = read_json(path / CARD).get("provenance")
        sae.provenance |= {"format": "sparselens"} | ({"origin": origin} if origin else {})
    return sae


def _unknown(path: Path) -> str:
    """What to say of something that no reader takes."""
    if path.is_file():
        return f"{path} holds no SAE in a known format. If it belongs to a folder, give the folder."
    found = sorted(entry.name for entry in path.iterdir())[:8]
    hint = ""
    layers = format_circuit_tracer.layers(path)
    if layers:
        first = next(iter(layers.values()))
        hint = f" It holds one transcoder a layer: load a file, such as {first}, or all with sl.load_transcoders."
    elif any(name.endswith((".pt", ".pth", ".ckpt", ".pkl")) for name in found):
        hint = " A pickled module could run any code and is not read: save its state_dict with the library it is of."
    return (
        f"{path} holds no SAE in a known format (found: {', '.join(found) or 'nothing'}).{hint} Known are "
        "SAELens, dictionary_learning, sparsify, Gemma Scope, Llama Scope, circuit-tracer and this package's own."
    )


def load_transcoders(path: str | os.PathLike, dtype: torch.dtype | None = torch.float32) -> dict[int, SAE]:
    """Load a circuit-tracer set of transcoders, by layer. Of a cross-layer set the i-th writes all layers from i on.

    Args:
        path: the folder.
        dtype: of the weights in memory; None keeps the files'.

    Raises:
        FileFormatError: there is no such set, or a file is damaged.
    """
    files = format_circuit_tracer.layers(Path(path))
    if not files:
        raise FileFormatError(f"{path} holds no set of transcoders: no layer_0.safetensors, no W_enc_0.safetensors.")
    return {layer: read(file, dtype) for layer, file in files.items()}


def save_transcoders(saes: dict[int, SAE], path: str | os.PathLike) -> Path:
    """Write transcoders as a circuit-tracer set, by layer. Returns the folder, which appears whole or not at all.

    Raises:
        InputError: one cannot be held by that format, or they do not belong together.
    """
    folder = _free(Path(path).expanduser())
    with write_whole(folder, folder=True) as temporary:
        format_circuit_tracer.write_set(saes, temporary)
    return folder


def save(sae: SAE, path: str | os.PathLike, format: str = "sparselens") -> Path:
    """Write `sae` as the folder `path`; see `SAE.save`.

    Raises:
        InputError: an unknown format, one that cannot hold this SAE, or `path` is a folder that holds something else.
        StorageError: the disk is full or not writable.
    """
    if format not in _WRITERS:
        raise InputError(f"unknown format {format!r}; valid: {', '.join(_WRITERS)}.{closest(format, _WRITERS)}")
    folder = _free(Path(path).expanduser())
    writer: Any = _WRITERS[format]
    theirs = format_saelens.name_of(sae) is not None
    if format == "saelens" and not theirs:
        raise InputError(
            f"the SAELens format cannot hold this {sae.architecture} SAE exactly; save it with format='sparselens'."
        )
    with write_whole(folder, folder=True) as temporary:
        if format == "sparselens":  # SAELens reads it too, where it can
            (format_saelens if theirs else format_own).write(sae, temporary)
            text = json.dumps(_card(sae), indent=2, ensure_ascii=False)
            (temporary / CARD).write_text(text + "\n", encoding="utf-8")
        else:
            writer.write(sae, temporary)
    return folder


def _free(folder: Path) -> Path:
    """A folder that may be written: a new or empty one, or one that holds an SAE."""
    known = any(one.detect(folder) for one in _READERS) or bool(format_circuit_tracer.layers(folder))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not known):
        raise InputError(f"{folder} exists and is not an SAE; name a new folder, so that nothing is lost.")
    return folder


def _card(sae: SAE) -> dict[str, Any]:
    """What a reader wants to know first, and where a converted SAE comes from."""
    card = {"site": sae.site, "architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k}
    card |= {key: sae.metadata[key] for key in _CARD_FACTS if key in sae.metadata}
    return card | {"provenance": sae.provenance}

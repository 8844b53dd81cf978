"""What was run before: records that training and embedding leave in their folders, as one table."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError, SparselensError
from sparselens.files import read_json

if TYPE_CHECKING:
    from sparselens.views.run_tables import RunTable

_TRAINING, _EMBEDDING, _COST, _SAE = "run.json", "manifest.json", "cost.json", "cfg.json"
_KEPT = ("model", "site", "seed", "pooling")


def runs(*folders: str | Path) -> "RunTable":
    """List the runs below some folders, newest first.

    Found are runs of `train_sae(..., out=...)` and of `embed(..., out=...)`. A record that cannot be read is listed
    with what is wrong with it.

    Args:
        folders: where to look, also in their subfolders.

    Returns:
        A table: `name`, `kind`, `recipe` (a hash of the settings: the same settings have the same hash), seed, site,
        version, tokens or texts, seconds, when it was written, bytes on the disk.

    Raises:
        InputError: a folder does not exist.

    Example:
        >>> sl.runs("out").to_frame()
    """
    from sparselens.views import run_table

    found = []
    for folder in map(Path, folders or (Path("."),)):
        if not folder.is_dir():
            raise InputError(f"there is no folder {str(folder)!r} to look for runs in.")
        for kind, name in (("training", _TRAINING), ("embedding", _EMBEDDING)):
            found += [_record(kind, path, folder) for path in folder.rglob(name)]
    found.sort(key=lambda run: run["written"], reverse=True)
    return run_table(found, title="Runs")


def _record(kind: str, path: Path, base: Path) -> dict[str, Any]:
    own = path.parent
    files = [p for p in own.rglob("*") if p.is_file()]
    known: dict[str, Any] = {"name": str(own.relative_to(base)) if own != base else own.name, "kind": kind}
    try:
        known |= (_training if kind == "training" else _embedding)(own, read_json(path))
    except (SparselensError, KeyError, TypeError) as error:
        known["problem"] = f"{type(error).__name__}: {error}"
    written = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
    return known | {"written": written, "bytes": sum(p.stat().st_size for p in files), "files": len(files)}


def _training(own: Path, record: dict[str, Any]) -> dict[str, Any]:
    settings = record["settings"]
    sites = sorted({site for sae in settings["saes"].values() for site in sae["site"]})
    configs = [read_json(path).get("metadata", {}) for path in sorted(own.glob(f"*/{_SAE}"))]
    versions = {config["sparselens_version"] for config in configs if "sparselens_version" in config}
    return {"settings": settings, "seed": settings.get("seed"), "site": ", ".join(sites),
            "version": ", ".join(sorted(versions)) or None, "tokens": record["n_tokens"], "seconds": record["seconds"]}


def _embedding(own: Path, record: dict[str, Any]) -> dict[str, Any]:
    cost = own / _COST
    return {"settings": {key: value for key, value in record.items() if key != "parts"},
            **{key: record[key] for key in _KEPT if key in record},
            "texts": sum(part["n_texts"] for part in record["parts"]),
            "seconds": read_json(cost)["seconds"] if cost.exists() else None}

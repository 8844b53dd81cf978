"""SAEs on the Hugging Face hub: fetch one, only its files; put one there."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sparselens.errors import FetchError

if TYPE_CHECKING:
    from sparselens.sae.sae import SAE

#: Files that make up an SAE in one of the known formats, below its folder.
FILES = (
    "cfg.json",
    "sae.json",
    "card.json",
    "config.json",
    "config.yaml",
    "hyperparams.json",
    "activation_scaler.json",
    "sae_weights.safetensors",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
    "ae.pt",
    "checkpoints/final.safetensors",
)
_SUFFIXES = (".safetensors", ".pt", ".pth")


def fetch(
    name: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download `org/name[/folder or file]` from the hub, only the files of that SAE. Returns the folder or file.

    Args:
        name: repository, and where in it.
        revision: branch, tag or commit.
        cache_dir: where to keep it; the hub's own cache by default.
        local_files_only: do not ask the network.

    Raises:
        FetchError: not to be had, or not an SAE.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    org, repo, *inner = name.removeprefix("hf://").strip("/").split("/")
    place = "/".join(inner)
    try:
        root = snapshot_download(
            f"{org}/{repo}",
            allow_patterns=_patterns(place),
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(f"{org}/{repo} could not be fetched from the hub: {error}") from error
    target = Path(root, *inner)
    if not target.exists():
        raise FetchError(f"the hub repository {org}/{repo} has no SAE in {place or 'its root'}.")
    return target


def _patterns(place: str) -> list[str]:
    """What to download for a folder or file inside a repository."""
    folder, _, last = place.rpartition("/")
    base = f"{folder}/" if folder else ""
    if last.endswith(_SUFFIXES):  # one file, and what describes it
        beside = [last, "config.yaml", "config.json", last.removesuffix(".pt") + "_cfg.json"]
        return [base + file for file in [*beside, last.replace("W_enc_", "W_dec_")]]
    inside = f"{place}/" if place else ""
    return [inside + file for file in FILES] + [base + "config.json"]


def push(
    sae: "SAE", name: str, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload an SAE, with its card, to `org/name[/folder]` on the hub; the repository is made if need be.

    Args:
        sae: what to upload.
        name: repository, and the folder in it.
        private: of a repository that is made.
        token: by default the one the hub's own login keeps.
        revision: the branch, made if need be; the main one by default.

    Returns:
        Address of the commit.

    Raises:
        FetchError: the hub refused, or could not be reached.
    """
    import tempfile

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    org, repo, *inner = name.removeprefix("hf://").strip("/").split("/")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = sae.save(Path(scratch) / "sae")
        try:
            api.create_repo(f"{org}/{repo}", private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(f"{org}/{repo}", branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=f"{org}/{repo}",
                folder_path=folder,
                path_in_repo="/".join(inner) or None,
                commit_message=f"{sae.architecture} SAE, d_sae {sae.d_sae}",
                revision=revision,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise FetchError(f"could not upload to {org}/{repo}: {error}") from error
    return str(done)

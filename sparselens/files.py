"""Files that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparselens.errors import FileFormatError, StorageError


@contextmanager
def write_whole(path: str | os.PathLike, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block succeeds.

    Any exception or interrupt removes the temporary path and leaves `path` as it was. With `folder=True` the
    yielded path is an empty folder, and an existing folder at `path` is replaced.

    Raises:
        StorageError: the disk is full or not writable.
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp in both cases: the file then gets ordinary permissions (mkstemp would give 0600)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        temporary = holder / target.name
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and target.exists():
            os.rename(target, holder / f"old-{target.name}")
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, StorageError) or not _is_storage_fault(error):
            raise
        raise StorageError(
            f"could not write {target}: {error.strerror or error}. Nothing half-written was left there; "
            "free some space or choose another folder, then run the same call again."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary.parent, ignore_errors=True)


def _is_storage_fault(error: OSError) -> bool:
    import errno

    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON; the file appears whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileFormatError: the file is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is not valid JSON ({error}). Was it cut off while copying?") from error

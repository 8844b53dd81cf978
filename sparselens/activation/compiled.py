"""Building and loading `matvec.cpp`: once for a processor and compiler, kept in the cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sparselens.files import write_whole
from sparselens.models.packaged import cache_folder

SOURCE = Path(__file__).with_name("matvec.cpp")
COMPILERS = ("c++", "g++", "clang++")
BASE = ("-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC")
#: Tried in turn: threads, and the instructions of the processor at hand, where the compiler knows them.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
TIMEOUT = 120.0


class Plan(ctypes.Structure):
    """What stays the same from token to token; mirrors `Plan` in the source. Pointers, then sizes."""

    _fields_ = [
        ("columns", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("d_in", ctypes.c_int64),
        ("d_out", ctypes.c_int64),
        ("rank", ctypes.c_int64),
    ]


class BuildError(Exception):
    """The source could not be compiled or loaded; says why. Never leaves this room."""


_LOCK = threading.Lock()


class Library(NamedTuple):
    """The compiled functions: `sparse` works on a `Plan`, `dense` on a whole weight; see the source."""

    sparse: Callable[..., int]
    dense: Callable[..., None]


def library() -> Library:
    """The compiled functions. Built at the first call on a computer, in a second or so.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    with _LOCK:
        return _library()


@functools.cache
def _library() -> Library:
    compiler = find_compiler()
    path = cache_folder() / "kernels" / f"matvec-{_key(compiler)}.so"
    try:
        if path.exists():
            return _load(path)
    except BuildError:
        pass  # damaged: build it anew
    try:
        with write_whole(path) as temporary:
            _compile(compiler, temporary)
        return _load(path)
    except OSError:  # a cache that cannot be written to
        with tempfile.TemporaryDirectory(prefix="sparselens-") as folder:
            _compile(compiler, Path(folder) / path.name)
            return _load(Path(folder) / path.name)


def find_compiler() -> list[str]:
    """The C++ compiler as a command: `$CXX`, or the first that is there.

    Raises:
        BuildError: there is none.
    """
    given = os.environ.get("CXX")
    found = shlex.split(given) if given else [name for name in COMPILERS if shutil.which(name)][:1]
    if not found or not shutil.which(found[0]):
        raise BuildError(f"the compiler {given!r} in $CXX was not found" if given else "no C++ compiler was found")
    return found


def _key(compiler: list[str]) -> str:
    """Tells apart sources, compilers and processors: a library for another processor would crash."""
    for flags in (["-march=native"], []):
        told = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
        if not told.returncode:
            break
    told_by = [SOURCE.read_bytes(), repr((compiler, BASE, FLAGS, platform.machine())).encode(), told.stdout.encode()]
    return hashlib.sha256(b"\0".join(told_by)).hexdigest()[:16]


def _compile(compiler: list[str], target: Path) -> None:
    for flags in FLAGS:
        done = _run([*compiler, *BASE, *flags, str(SOURCE), "-o", str(target)])
        if not done.returncode:
            return
    said = (done.stderr.strip().splitlines() or ["no message"])[0]
    raise BuildError(f"{compiler[0]} could not compile {SOURCE.name}: {said}")


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from error


def _load(path: Path) -> Library:
    try:
        loaded = ctypes.CDLL(str(path))
        found = Library(loaded.sparselens_matvec, loaded.sparselens_dense)
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} could not be loaded: {error}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    sparse: Any = found.sparse
    sparse.argtypes = [pointer, integer, pointer, pointer, pointer, pointer, integer, ctypes.c_float, integer]
    sparse.restype = integer
    dense: Any = found.dense
    dense.argtypes = [integer, pointer, pointer, pointer, pointer, integer, integer, integer]
    dense.restype = None
    return found

"""Where blocks are embedded: in this process, or by a pool of Ray actors."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sparselens.embeddings.documents import Documents
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import pyarrow

    from sparselens.embeddings.reader import TextReader

ENGINES = ("local", "ray")


class Job(NamedTuple):
    """A block of texts to embed: the number of the block, and of its first text."""

    number: int
    first: int
    documents: Documents


class Done(NamedTuple):
    """A block that is embedded: a table for each dictionary, and how long that took."""

    job: Job
    tables: dict[str, "pyarrow.Table"]
    seconds: float


Engine = Callable[["TextReader", Iterator[Job]], Iterator[Done]]


def check_engine(engine: str, workers: int | None) -> None:
    """Raise `InputError` for an unknown engine, or a number of workers that makes no sense."""
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r} is unknown; valid are {', '.join(ENGINES)}.{closest(engine, ENGINES)}")
    if workers is not None and (engine == "local" or workers < 1):
        raise InputError(f"workers={workers} goes with engine='ray', and is at least 1.")


def choose_engine(engine: str, workers: int | None) -> Engine:
    """The engine of that name."""
    if engine == "local":
        return local
    from sparselens.embeddings.ray_engine import on_ray

    return partial(on_ray, workers=workers)


def local(reader: "TextReader", jobs: Iterator[Job]) -> Iterator[Done]:
    """Embed blocks one after the other in this process."""
    for job in jobs:
        yield timed(reader, job)


def timed(reader: "TextReader", job: Job) -> Done:
    """Embed one block."""
    start = time.perf_counter()
    tables = reader.block(job.documents, job.first)
    return Done(job, tables, time.perf_counter() - start)

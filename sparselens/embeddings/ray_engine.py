"""Blocks embedded by a pool of Ray actors, each of which holds the model and the dictionaries."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sparselens import errors
from sparselens.embeddings.documents import Documents
from sparselens.embeddings.engines import Done, Job, timed
from sparselens.embeddings.reader import Settings, TextReader
from sparselens.errors import InputError

if TYPE_CHECKING:
    import pyarrow

_WINDOW = 1024  # blocks handed to Ray at once: bounds the texts held, and loads the models seldom


class _Parts(NamedTuple):
    """What an actor builds its reader from."""

    module: Any
    tokenizer: Any
    name: str
    device: str
    threads: int
    saes: dict[str, Any]
    settings: Settings
    batch_tokens: int


def on_ray(reader: TextReader, jobs: Iterator[Job], workers: int | None = None) -> Iterator[Done]:
    """Embed blocks on a Ray cluster: the one this process is connected to, else one made on this machine for now.

    Texts go out and finished blocks come back through Ray Data, so no folder need be shared. Each actor computes with
    as many threads as this process does, since sums depend on that in their last bits.

    Args:
        reader: what reads the texts.
        jobs: the blocks, at most 1,024 of which are held at once.
        workers: number of actors; as many as the cluster has room for when None.

    Raises:
        InputError: Ray is not installed, the model is not a plain transformers one or has something attached, or the
            cluster has no room for that many workers.
    """
    first = next(jobs, None)
    if first is None:
        return
    parts = _parts(reader)
    with _cluster() as ray:
        size = _size(ray, parts, workers)
        held = ray.put(parts)
        window = [first, *islice(jobs, _WINDOW - 1)]
        while window:
            yield from _embed(ray, held, parts, size, window)
            window = list(islice(jobs, _WINDOW))


def _parts(reader: TextReader) -> _Parts:
    m = reader.m
    if m.backend != "torch":
        raise InputError(f"engine='ray' reads with plain transformers, and this model is open on {m.backend}: open it "
                         "with backend='torch'.")
    if m._engine._stack:
        raise InputError("engine='ray' reads with the model as it is, and something is attached to this one: take it "
                         "off first.")
    return _Parts(m.module, m.tokenizer, m.name, str(m.device), torch.get_num_threads(), reader.saes, reader.settings,
                  reader.batch_tokens)


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected; what was started here is shut down again."""
    try:
        import ray
    except ImportError as error:
        raise InputError("engine='ray' needs Ray: pip install 'sparselens[ray]'.") from error
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _size(ray: Any, parts: _Parts, workers: int | None) -> int:
    """How many actors to start."""
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // parts.threads)
    need = f"{parts.threads} CPU threads each (torch.set_num_threads)"
    if parts.device.startswith("cuda"):
        room, need = min(room, int(resources.get("GPU", 0))), f"a GPU and {need}"
    if room < (workers or 1):
        raise InputError(f"the Ray cluster has room for {room} workers with {need}; asked for {workers or 1}.")
    return workers or room


def _embed(ray: Any, held: Any, parts: _Parts, size: int, window: list[Job]) -> Iterator[Done]:
    """Embed some blocks with a pool of actors; they come back in the order they are ready."""
    import ray.data

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    level = log.level
    log.setLevel(logging.ERROR)
    rows = [{"at": at, "first": job.first, "texts": json.dumps(job.documents.texts)} for at, job in enumerate(window)]
    try:
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor, fn_constructor_args=(held,), batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(size, len(rows))),
            num_cpus=parts.threads, num_gpus=1 if parts.device.startswith("cuda") else 0,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            tables = dict(zip(row["names"], map(_table, row["tables"]), strict=True))
            yield Done(window[row["at"]], tables, row["seconds"])
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


class _Actor:
    """Lives on a worker: a reader of its own."""

    def __init__(self, held: Any):
        import ray

        from sparselens.models.load import wrap

        parts: _Parts = ray.get(held)
        torch.set_num_threads(parts.threads)
        m = wrap(parts.module.to(parts.device), parts.tokenizer, name=parts.name)
        self.reader = TextReader(m, parts.saes, parts.settings, parts.batch_tokens, force=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self._row(*row) for row in zip(batch["at"], batch["first"], batch["texts"], strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, at: int, first: int, texts: str) -> dict[str, Any]:
        """One block; an error of ours goes back as words, since Ray would wrap it in its own."""
        row = {"at": int(at), "names": list(self.reader.saes), "tables": [b""], "seconds": 0.0, "error": "",
               "message": ""}
        try:
            done = timed(self.reader, Job(int(at), int(first), Documents(json.loads(texts))))
        except errors.SparselensError as error:
            return row | {"error": type(error).__name__, "message": str(error)}
        return row | {"tables": [_bytes(done.tables[name]) for name in self.reader.saes], "seconds": done.seconds}


def _bytes(table: "pyarrow.Table") -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _table(held: bytes) -> "pyarrow.Table":
    import pyarrow as pa

    return pa.ipc.open_file(pa.py_buffer(held)).read_all()

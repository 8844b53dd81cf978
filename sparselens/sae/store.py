"""Activations on disk: harvested once, in whole shards, and read back in shuffled batches.

A store is a folder: `meta.json`, `median.json` ({site: median norm of a row}), and a folder a shard, `00000/`,
holding `<site>.npy` (`[rows, d]`, one file a site) and `done.json` ({"rows", "docs": [low, high), "dropped_norm"}).
Shard b covers documents `[256 b, 256 (b + 1))`, so a harvest that was interrupted goes on with the first one missing.
"""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sparselens.errors import FileFormatError, InputError, NotFiniteError, SiteError, closest
from sparselens.files import read_json, write_json, write_whole
from sparselens.sae.gradients import GRADIENT, stream_gradients
from sparselens.sae.norms import check_floating

DOCUMENTS = 256  # documents in a shard
UNNAMED = "activations"  # the site of a tensor whose origin nobody told
_DTYPES = {"float16": np.float16, "float32": np.float32}


class Activations(ABC):
    """Rows of activations at one or more sites, the same tokens at each."""

    sites: list[str]
    n_tokens: int
    meta: dict[str, Any]

    @abstractmethod
    def d(self, site: str) -> int:
        """Width of a site."""

    @abstractmethod
    def max_norm(self, site: str) -> float | None:
        """Rows with a larger norm were left out; None if nothing was."""

    @abstractmethod
    def rows(self, site: str, index: np.ndarray) -> Float[Tensor, "n d"]:
        """The rows numbered `index` (sorted), as float32 `[n, d]`."""

    @abstractmethod
    def held_out(self, at_most: int) -> int:
        """How many rows at the end to keep apart: whole shards where there are several, else up to 5 %."""

    def batches(
        self,
        sites: str | Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        start_step: int = 0,
        n_rows: int | None = None,
    ) -> Iterator[Tensor | dict[str, Tensor]]:
        """Endless shuffled batches `[batch_size, d]` float32; a dict by site if several sites are asked for.

        Every epoch visits the rows in a new order, drawn from `seed` and the number of the epoch alone: the batches
        from `start_step` on are those an iterator started at 0 would give. A last, incomplete batch is left out.

        Args:
            sites: a site, or several that must come from the same tokens.
            n_rows: use only the first so many rows.

        Raises:
            SiteError: a site that is not in the store.
            InputError: fewer rows than one batch.
        """
        wanted = [sites] if isinstance(sites, str) else list(sites)
        for site in wanted:
            self._check(site)
        n_rows = self.n_tokens if n_rows is None else n_rows
        per_epoch = n_rows // batch_size
        if not per_epoch:
            raise InputError(f"{n_rows} rows do not fill one batch of {batch_size}.")
        return self._batches(wanted, isinstance(sites, str), batch_size, seed, start_step, n_rows)

    def _batches(self, sites, single, batch_size, seed, step, n_rows):
        per_epoch, epoch, order = n_rows // batch_size, -1, np.empty(0, dtype=np.int64)
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self.order(n_rows, seed, epoch)
            start = step % per_epoch * batch_size
            index = np.sort(order[start : start + batch_size])
            values = {site: self.rows(site, index) for site in sites}
            yield values[sites[0]] if single else values
            step += 1

    def order(self, n_rows: int, seed: int, epoch: int) -> np.ndarray:
        """In which order an epoch visits the first `n_rows` rows; here a permutation of all."""
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n_rows)

    def _check(self, site: str) -> None:
        if site not in self.sites:
            raise SiteError(
                f"no activations of {site!r} here; there are: {', '.join(self.sites)}.{closest(site, self.sites)}"
            )


class TensorActivations(Activations):
    """Activations that are in memory already: a tensor `[rows, d]`, or one a site (of the same tokens).

    Args:
        values: a tensor, or tensors by site.
        site: name of the only site, when `values` is one tensor.
    """

    def __init__(self, values: Tensor | dict[str, Tensor], site: str = UNNAMED) -> None:
        self.values = values if isinstance(values, dict) else {site: values}
        sizes = {name: tuple(value.shape) for name, value in self.values.items()}
        if any(len(size) != 2 for size in sizes.values()) or len({size[0] for size in sizes.values()}) != 1:
            raise InputError(f"activations must be [rows, d] with the same rows at every site; got {sizes}.")
        for name, value in self.values.items():
            check_floating(value)
            if not torch.isfinite(value.sum()):  # one cheap pass; rows are looked at only in trouble
                bad = (~torch.isfinite(value)).any(dim=1).nonzero().flatten()
                if len(bad):
                    raise NotFiniteError(f"{len(bad)} rows of {name} hold NaN or infinite numbers, first row {bad[0]}.")
        self.sites = list(self.values)
        self.n_tokens = next(iter(sizes.values()))[0]
        self.meta = {}

    def d(self, site: str) -> int:
        self._check(site)
        return self.values[site].shape[1]

    def max_norm(self, site: str) -> float | None:
        return None

    def rows(self, site: str, index: np.ndarray) -> Float[Tensor, "n d"]:
        self._check(site)
        return self.values[site][torch.from_numpy(index)].float()

    def held_out(self, at_most: int) -> int:
        return min(at_most, self.n_tokens // 20)


class ActivationStore(Activations):
    """A folder written by `harvest`, opened for reading. Shards that are added later are not seen.

    Args:
        path: the folder.

    Raises:
        FileFormatError: no store, no finished shard, or a shard that does not fit the description.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not (self.path / "meta.json").is_file():
            raise FileFormatError(f"{self.path} is no activation store: it has no meta.json.")
        self.meta = read_json(self.path / "meta.json")
        self.sites = list(self.meta["sites"])
        self.shards = [folder for folder in _finished(self.path) if _rows_of(folder)]
        if not self.shards:
            raise FileFormatError(f"{self.path} has no finished shard yet; run the harvest.")
        self._starts = np.cumsum([0] + [_rows_of(folder) for folder in self.shards])
        self.n_tokens = int(self._starts[-1])
        self._median = read_json(self.path / "median.json")
        self._maps: dict[tuple[int, str], np.ndarray] = {}

    def d(self, site: str) -> int:
        self._check(site)
        return self._map(0, site).shape[1]

    def max_norm(self, site: str) -> float | None:
        self._check(site)
        return float(self.meta["max_norm_ratio"] * self._median[site])

    def rows(self, site: str, index: np.ndarray) -> Float[Tensor, "n d"]:
        self._check(site)
        out = np.empty((len(index), self.d(site)), dtype=np.float32)
        edges = np.searchsorted(index, self._starts)
        for shard, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            if low < high:
                out[low:high] = self._map(shard, site)[index[low:high] - self._starts[shard]]
        return torch.from_numpy(out)

    def held_out(self, at_most: int) -> int:
        if len(self.shards) < 4:
            return min(at_most, self.n_tokens // 20)
        last = self.n_tokens - int(self._starts[-2])
        return last if last <= self.n_tokens // 4 else min(at_most, self.n_tokens // 20)

    def _map(self, shard: int, site: str) -> np.ndarray:
        if (shard, site) not in self._maps:
            file = self.shards[shard] / f"{site}.npy"
            try:
                values = np.load(file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise FileFormatError(f"{file} is damaged ({error}); delete its folder and harvest again.") from error
            if values.ndim != 2 or len(values) != _rows_of(self.shards[shard]):
                raise FileFormatError(f"{file} has shape {values.shape}, which is not what its done.json says.")
            self._maps[shard, site] = values
        return self._maps[shard, site]


def harvest(
    m: Any,
    texts: Any,
    sites: str | Sequence[str],
    out: str | os.PathLike,
    n_tokens: int,
    *,
    role: str | None = None,
    context: int = 256,
    drop_first: bool = True,
    max_norm_ratio: float = 10.0,
    batch_tokens: int = 2048,
    dtype: str = "float16",
    gradients: bool = False,
    template: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Write the activations of `texts` at `sites` to a folder, about `n_tokens` rows; resumes where it stopped.

    Kept are content tokens (no special or chat-template ones, unless `template`), without the first of each row of
    `context` tokens and without rows whose norm is above `max_norm_ratio` times the median at any of the sites:
    attention sinks hold nearly all of the squared norm and would dominate whatever is trained.

    Args:
        m: a live model.
        texts: what `m.stream` takes, as a sequence (long texts are cut into chunks of `context` tokens).
        sites: names of sites; aliases are resolved.
        out: the folder. An existing one must hold the same texts, model, sites and settings.
        n_tokens: stop once so many rows are there; fewer come out if the texts end before.
        dtype: "float16", or "float32" where numbers overflow float16 (65,504).
        template: keep special and chat-template tokens too, for dictionaries of chat models (`dialogue_activations`).
        gradients: also write the gradient of the model's loss at each site, as the site `name#gradient`, and leave
            out the tokens where it is zero; see `stream_gradients`.

    Raises:
        InputError: the folder holds something else, or numbers overflow float16.
        NotFiniteError: an activation is NaN or infinite; site and document are named.
        StorageError: the disk is full or not writable; finished shards stay good.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be float16 or float32, not {dtype!r}.")
    names = [m.resolve(site) for site in ([sites] if isinstance(sites, str) else sites)]
    documents = [texts] if isinstance(texts, str) else list(texts)
    settings = {"role": role, "context": context, "drop_first": drop_first, "max_norm_ratio": max_norm_ratio}
    columns = [*names, *(site + GRADIENT for site in names)] if gradients else names
    meta = {
        "model": m.name,
        "sites": columns,
        "d": {site: m.width(site.removesuffix(GRADIENT)) for site in columns},
        **settings,
        "dtype": dtype,
        "texts": fingerprint(documents),
        "batch_tokens": batch_tokens,
        "template": template,
    }
    folder = Path(out)
    _agree(folder, meta)
    _sweep(folder)
    rows = 0
    with tqdm(total=n_tokens, unit="tok", desc="activations", leave=False, disable=not progress) as bar:
        for shard, low in enumerate(range(0, len(documents), DOCUMENTS)):
            if rows >= n_tokens:
                break
            target = folder / f"{shard:05d}"
            if not (target / "done.json").is_file():
                block = documents[low : low + DOCUMENTS]
                reading = {"role": role, "max_length": context, "batch_tokens": batch_tokens}
                reading |= {"long": "chunk", "empty": "skip"}
                stream = (stream_gradients(m, block, names, **reading) if gradients
                          else m.stream(block, names, **reading))
                values = _collect(stream, columns, low, drop_first, template)
                _write_shard(target, values, [low, low + len(block)], max_norm_ratio, dtype)
            rows += _rows_of(target)
            bar.update(_rows_of(target))
    if not rows:
        raise InputError(
            "the texts leave no token to harvest: every one is special, the first of its row, or an outlier in norm."
        )
    return ActivationStore(folder)


def fingerprint(documents: Sequence[Any]) -> dict[str, Any]:
    """What tells one text set from another: the number of documents and a hash over the first 256 and the last."""
    digest = hashlib.sha256()
    for document in [*documents[:DOCUMENTS], *documents[-1:]]:
        digest.update(json.dumps(document, ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\0")
    return {"count": len(documents), "sha256": digest.hexdigest()}


def _agree(folder: Path, meta: dict[str, Any]) -> None:
    """Start a new store, or make sure that an existing one is the same."""
    if not (folder / "meta.json").is_file():
        write_json(folder / "meta.json", meta)
        return
    there = {"template": False} | read_json(folder / "meta.json")
    differing = [key for key in meta if there.get(key) != meta[key]]
    if differing:
        said = "; ".join(f"{key}: there {there.get(key)!r}, now {meta[key]!r}" for key in differing)
        raise InputError(f"{folder} holds another harvest ({said}). Give a new folder, or the same arguments.")


def _sweep(folder: Path) -> None:
    """Remove what a killed harvest left half-written."""
    for left in folder.glob(".[0-9]*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _collect(
    stream: Iterable[Any], sites: list[str], first: int, drop_first: bool, template: bool
) -> dict[str, Tensor]:
    """The kept rows of one block of documents, float32 by site."""
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for batch in stream:
        keep = torch.ones_like(batch.content) if template else batch.content
        keep = keep & ~batch.first if drop_first else keep
        for site in sites:
            if site.endswith(GRADIENT):  # the last token of a row has none
                keep = keep & (batch[site] != 0).any(dim=1).to(keep.device)
        for site in sites:
            values = batch[site][keep].float().cpu()
            finite = torch.isfinite(values).all(dim=1)
            if not finite.all():
                document = first + int(batch.doc[keep].cpu()[~finite][0])
                raise NotFiniteError(
                    f"activations at {site} are NaN or infinite in document {document} of the texts. "
                    "Load the model in float32 or leave the document out."
                )
            parts[site].append(values)
    return {site: torch.cat(values) if values else torch.empty(0, 0) for site, values in parts.items()}


def _write_shard(target: Path, values: dict[str, Tensor], docs: list[int], ratio: float, dtype: str) -> None:
    """Drop rows beyond the norm limit and write the rest; the first shard with rows fixes the medians."""
    norms = {site: rows.norm(dim=1) for site, rows in values.items() if not site.endswith(GRADIENT)}
    n_rows = len(next(iter(norms.values())))
    keep = torch.ones(n_rows, dtype=torch.bool)
    if n_rows:
        file = target.parent / "median.json"
        if not file.is_file():
            write_json(file, {site: float(norm.median()) for site, norm in norms.items()})
        median = read_json(file)
        for site, norm in norms.items():
            keep &= norm <= ratio * median[site]
    with write_whole(target, folder=True) as temporary:
        for site, rows in values.items():
            kept = rows[keep].numpy()
            if dtype == "float16" and kept.size and abs(kept).max() > np.finfo(np.float16).max:
                raise InputError(f'activations at {site} overflow float16; harvest with dtype="float32".')
            _write_array(temporary / f"{site}.npy", kept.astype(_DTYPES[dtype]))
        done = {"rows": int(keep.sum()), "docs": docs, "dropped_norm": int((~keep).sum())}
        (temporary / "done.json").write_text(json.dumps(done))


def _write_array(path: Path, values: np.ndarray) -> None:
    """`np.save`, with plain writes: numpy's own report a full disk without its error number."""
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(values))
        handle.write(np.ascontiguousarray(values).data)


def _finished(folder: Path) -> list[Path]:
    return sorted(done.parent for done in folder.glob("[0-9]*/done.json"))


def _rows_of(shard: Path) -> int:
    return int(read_json(shard / "done.json")["rows"])

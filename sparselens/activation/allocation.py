"""How much of a block's sparsity each of its linear layers gets: TEAL's greedy search (Liu et al., 2024)."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparselens.activation.linears import PROJECTIONS, Linear, linears
from sparselens.activation.window import Window
from sparselens.attach import edit
from sparselens.errors import InputError
from sparselens.models.engine import Change, Stop
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.activation.sparse_linear import SparseLinear
    from sparselens.activation.sparsifier import Sparsifier


@dataclass(frozen=True)
class Allocation:
    """The log of a greedy search: for each block, how the sparsity was shared out as it grew.

    Attributes:
        settings: of the search.
        blocks: layer -> rows, each with `effective` (sparsity of the block, weighted by weights), `error` and `shares`
            (projection -> sparsity).
    """

    settings: dict[str, Any]
    blocks: dict[int, list[dict[str, Any]]]

    def shares(self, sparsity: float | int | Mapping[str, float], found: list[Linear]) -> dict[str, float]:
        """The sparsity of some layers, by site: in each block, that of the row nearest to `sparsity`.

        Raises:
            InputError: a sparsity per layer, a block that was not searched, or a sparsity beyond the search.
        """
        if isinstance(sparsity, Mapping):
            raise InputError("allocation='greedy' shares out one sparsity per block: give one number as sparsity.")
        if not sparsity:
            return {linear.site: 0.0 for linear in found}
        rows = {}
        layers = sorted({linear.layer for linear in found})
        missing = next((layer for layer in layers if layer not in self.blocks), None)
        if missing is not None:
            raise InputError(f"the greedy search has not reached block {missing} yet: run the same "
                             "sl.activation.allocate again, it goes on where it stopped.")
        for layer in layers:
            rows[layer] = min(self.blocks[layer], key=lambda row: abs(row["effective"] - sparsity))
            reached = self.blocks[layer][-1]["effective"]
            if sparsity > reached + self.settings["step"]:
                raise InputError(f"the greedy search went up to a sparsity of {reached:.2f}, not to {sparsity:g}: run "
                                 f"sl.activation.allocate with target={sparsity:g} or more.")
        return {linear.site: rows[linear.layer]["shares"].get(linear.proj, 0.0) for linear in found}

    def to_frame(self) -> "pandas.DataFrame":
        """A row a step: layer, effective, error, and a column a projection with its sparsity."""
        import pandas as pd

        return pd.DataFrame([
            {"layer": layer, "effective": row["effective"], "error": row["error"], **row["shares"]}
            for layer, rows in self.blocks.items()
            for row in rows
        ])

    def plot(self, sparsity: float = 0.5, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the sparsity of each projection in each block, at one sparsity of the blocks. Returns the axes."""
        from sparselens.views import allocation_bars

        layers = sorted(self.blocks)
        rows = [min(self.blocks[layer], key=lambda row: abs(row["effective"] - sparsity)) for layer in layers]
        names = list(rows[0]["shares"])
        values = [[row["shares"][name] for name in names] for row in rows]
        return allocation_bars(values, names, ax, target=sparsity, title=f"greedy allocation at {sparsity:.0%}")

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        last = self.to_frame().groupby("layer").tail(1)
        rows: list[list[Any]] = [list(last.columns), *(list(row) for row in last.itertuples(index=False))]
        return report_html(f"Greedy allocation of {len(self.blocks)} blocks, last row of each", rows)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"settings": self.settings, "blocks": {str(layer): rows for layer, rows in self.blocks.items()}}

    @classmethod
    def of_dict(cls, kept: Mapping[str, Any]) -> "Allocation":
        """The inverse of `to_dict`."""
        return cls(dict(kept["settings"]), {int(layer): rows for layer, rows in kept["blocks"].items()})


def allocate(
    m: LiveModel,
    sparsifier: "Sparsifier",
    texts: Any,
    *,
    target: float = 0.66,
    step: float = 0.05,
    last_fraction: float = 0.25,
    max_tokens: int = 1024,
    max_length: int = 512,
    out: str | os.PathLike | None = None,
    progress: bool = True,
) -> Allocation:
    """Share the sparsity out within each block, greedily, and keep the result in the sparsifier's calibration.

    For each block by itself, on what it reads in the dense model: time and again, the layer whose next step of
    sparsity costs least error in the block's output gets it. A step takes the same number of weights from every layer.
    The error is the L2 norm over the last positions of the change of the output, averaged over rows and dimensions.
    A block is run some hundred times; 1,024 tokens are minutes a block on a CPU for the packaged model. Blocks that
    the calibration has already, with the same settings, are not searched again, so an interrupted search goes on.

    Args:
        m: a live model.
        sparsifier: the method, with its calibration. Its own sparsity does not matter.
        texts: what `m.batches` takes; their tokens are put one after the other.
        target: sparsity of the block at which to stop.
        step: sparsity of the query projection that one step takes.
        last_fraction: share of the positions, at the end of a row, on which the error is taken.
        max_tokens, max_length: tokens in all, and in a row.
        out: save the calibration there after every block.
        progress: show a bar.

    Raises:
        InputError: an argument out of range, too few tokens, or a method whose layers cannot be set one by one.
    """
    from tqdm.auto import tqdm

    _check(sparsifier, target, step, last_fraction)
    calibration = sparsifier.calibration
    assert calibration is not None  # checked
    settings = {"target": target, "step": step, "last_fraction": last_fraction, "max_tokens": max_tokens,
                "max_length": max_length}
    before = calibration.allocations.get(sparsifier.key)
    blocks = before.blocks if before is not None and before.settings == settings else {}
    found = calibration.allocations[sparsifier.key] = Allocation(settings, blocks)
    rows = token_rows(m, texts, max_tokens, max_length)
    with torch.no_grad(), m.untouched(), m.attach(sparsifier.ground):
        for layer in tqdm(range(m.n_layers), desc="greedy", unit="block", leave=False, disable=not progress):
            if layer not in found.blocks:
                block = _Block(m, layer, rows, last_fraction)
                found.blocks[layer] = _search(block, sparsifier, target, step)
                if out is not None:
                    calibration.save(out)
    return found


def _check(sparsifier: "Sparsifier", target: float, step: float, last_fraction: float) -> None:
    from sparselens.activation.sparsifier import Sparsifier

    if type(sparsifier).layers is not Sparsifier.layers:
        raise InputError(f"{type(sparsifier).__name__} has one sparsity per block, so there is nothing to share out.")
    if sparsifier.calibration is None:
        raise InputError("the sparsifier has no calibration to keep the result in: make cal = sl.calibrate(model, "
                         "texts) and give it calibration=cal.")
    for name, value in (("target", target), ("step", step), ("last_fraction", last_fraction)):
        if not 0 < value <= 1:
            raise InputError(f"{name}={value!r} must be above 0 and at most 1.")


def token_rows(m: LiveModel, texts: Any, max_tokens: int, max_length: int) -> Tensor:
    """Tokens of the texts, one after the other, as rows `[n, length]`."""
    parts, count = [], 0
    for batch in m.batches(texts, long="chunk", empty="skip", sort=False):
        parts.append(batch.ids[batch.mask])
        count += len(parts[-1])
        if count >= max_tokens:
            break
    ids = torch.cat(parts)[:max_tokens] if parts else torch.zeros(0, dtype=torch.long)
    length = min(max_length, len(ids), m.max_length)
    if length < 2:
        raise InputError(f"the texts have {len(ids)} tokens: too few to search on.")
    return ids[: len(ids) // length * length].view(-1, length)


class _Block:
    """One block of the dense model, run by itself on what it reads there."""

    def __init__(self, m: LiveModel, layer: int, rows: Tensor, last_fraction: float):
        self.m, self.layer = m, layer
        path = m._engine.binder["blocks.{i}.hook_resid_pre"].path.replace("{i}", str(layer))
        self.module: nn.Module = m._engine.find(path.removesuffix(".hook_in"))
        self.last = max(1, round(rows.shape[1] * last_fraction))
        handle = self.module.register_forward_pre_hook(self._take, with_kwargs=True)
        try:
            with suppress(Stop), m.attach(edit("hook_embed", lambda _: None)):  # so that the pass is noted
                m.forward(next(iter(m.batches(rows, batch_tokens=rows.numel(), max_length=rows.shape[1]))))
        finally:
            handle.remove()
        self.dense = self._run()

    def _take(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        raise Stop

    def _run(self) -> Tensor:
        y = self.module(*self.args, **self.kwargs)
        return (y if torch.is_tensor(y) else y[0])[:, -self.last :].double()

    def error(self, layers: "Sequence[SparseLinear]") -> float:
        """The error of the block's output with these of its layers computed sparsely."""
        with self.m.attach(_Swaps(layers)):
            return float((self._run() - self.dense).norm(dim=1).mean())


class _Swaps:
    """Some sparse layers as an attachment; every token is sparse."""

    def __init__(self, layers: "Sequence[SparseLinear]"):
        self.layers = layers

    def edits(self, model: LiveModel, at: Any = None) -> list[Change]:
        return [layer.swap(Window(0), "mask") for layer in self.layers]


def _search(block: _Block, sparsifier: "Sparsifier", target: float, step: float) -> list[dict[str, Any]]:
    """The rows of one block."""
    found = [linear for linear in linears(block.m) if linear.layer == block.layer]
    unit = next((linear.numel for linear in found if linear.proj == "q"), found[0].numel)
    size = {linear.proj: linear.numel / unit for linear in found}
    shares = dict.fromkeys(size, 0.0)
    sparse = {linear.proj: sparsifier.layer(linear, 0.0) for linear in found}
    rows: list[dict[str, Any]] = [{"effective": 0.0, "error": 0.0, "shares": dict(shares)}]
    while rows[-1]["effective"] < target:
        tries = []
        for linear in found:
            tried = shares | {linear.proj: shares[linear.proj] + step / size[linear.proj]}
            if tried[linear.proj] <= 1 + 1e-9:
                on = {proj: share for proj, share in tried.items() if share}
                for one in found:
                    if one.proj in on:
                        sparse[one.proj].gate = sparsifier.gate_for(one, min(on[one.proj], 1.0))
                tries.append((block.error([sparse[proj] for proj in PROJECTIONS if proj in on]), tried))
        if not tries:
            break
        error, best = min(tries, key=lambda one: one[0])
        shares = {proj: min(share, 1.0) for proj, share in best.items()}
        effective = sum(size[proj] * share for proj, share in shares.items()) / sum(size.values())
        rows.append({"effective": effective, "error": error, "shares": dict(shares)})
    return rows

"""The evolutionary search of R-Sparse: how much of each layer's budget goes to channels, how much to rank."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.activation.allocation import token_rows
from sparselens.activation.linears import checked_sparsity, linears
from sparselens.activation.low_rank import Factors
from sparselens.activation.r_sparse import RSparse, split_budget
from sparselens.errors import FileFormatError, InputError
from sparselens.files import read_json, write_json
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

FORMAT = "sparselens R-Sparse search 1"


@dataclass(frozen=True)
class Search:
    """What an evolutionary search found. Made by `search_rho`.

    Attributes:
        recipe: the best recipe, ready to attach.
        losses: `(generation, loss)` of every recipe that was tried, in nats a token, in order. The first is that of
            rho = 1 in all layers, the second that of the start.
        complete: whether the search came to its end, and was not stopped by its budget.
    """

    recipe: RSparse
    losses: tuple[tuple[int, float], ...] = field(repr=False)
    complete: bool

    @property
    def channels_only(self) -> float:
        """Loss of rho = 1 in all layers; that of the recipe is never above it."""
        return self.losses[0][1]

    @property
    def best(self) -> float:
        """Loss of the recipe."""
        return min(loss for _, loss in self.losses)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a recipe tried: generation, loss, best (so far)."""
        import pandas as pd

        frame = pd.DataFrame(self.losses, columns=["generation", "loss"])
        return frame.assign(best=frame["loss"].cummin())

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the best loss against the number of recipes tried. Returns the axes."""
        import matplotlib.pyplot as plt

        from sparselens.views import curve_figure

        ax = ax or plt.subplots(figsize=(6, 3.5))[1]
        best = self.to_frame()["best"]
        lines = {"best": list(enumerate(best, 1)), "channels only": [(n, self.channels_only) for n in (1, len(best))]}
        curve_figure(lines, ax, x="recipes tried", y="loss, nats a token")
        return ax

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        last = self.to_frame().groupby("generation").agg({"loss": "min", "best": "last"}).reset_index()
        rows: list[list[Any]] = [list(last.columns), *(list(row) for row in last.itertuples(index=False))]
        said = "complete" if self.complete else "stopped by its budget"
        return report_html(f"R-Sparse search, {len(self.losses)} recipes, {said}: loss {self.best:.4f}, "
                           f"{self.channels_only:.4f} with channels only", rows)


def search_rho(
    m: LiveModel,
    texts: Any,
    sparsity: float = 0.5,
    *,
    population: int = 16,
    elites: int = 4,
    generations: int = 8,
    mutation: float = 0.1,
    step: float = 0.1,
    start: float = 0.95,
    seed: int = 0,
    dense_prefix: int | float = 8,
    max_tokens: int = 2048,
    max_length: int = 512,
    max_seconds: float | int | None = None,
    out: str | os.PathLike | None = None,
    progress: bool = True,
) -> Search:
    """Search the rho of every layer that gives the least loss on texts.

    A population of recipes starts from rho = `start` everywhere and random neighbours of it. In each generation the
    best survive, and the others are made of two of them, layer by layer, and changed here and there. Rho = 1 in all
    layers is always among them, so the search never ends above it. The paper does not say how it searched; population,
    rates and steps are ours. A recipe costs a pass over the tokens, some seconds for the packaged model.

    Args:
        m: a live model.
        texts: what `m.batches` takes; their tokens are put one after the other. The paper used 16 rows of 4,096.
        sparsity: of every layer.
        population, elites, generations: recipes in a generation, how many of them survive, and how often.
        mutation: chance of a layer's rho to change.
        step: standard deviation of the change; rho stays within 0 and 1.
        start: rho to start from.
        seed: of the chances.
        dense_prefix: as for `RSparse`.
        max_tokens, max_length: tokens in all, and in a row.
        max_seconds: stop after that time, with the best so far. Recipes read from `out` take none.
        out: file to which the losses go, recipe by recipe. The same call goes on where an earlier one was stopped, and
            ends as it would have ended.
        progress: show a bar.

    Raises:
        InputError: an argument out of range, or too few tokens. FileFormatError: `out` is of another search.
    """
    checked_sparsity(sparsity)
    _check(population, elites, generations, mutation, step, start, sparsity)
    rows = token_rows(m, texts, max_tokens, max_length)
    found = linears(m)
    sites = [linear.site for linear in found]
    spare = {one.site: split_budget(one.d_out, one.d_in, sparsity, 0.0)[1] for one in found}
    factors = Factors(spare)

    def recipe(genome: Tensor) -> RSparse:
        made = RSparse(sparsity, rho=dict(zip(sites, genome.tolist(), strict=True)), dense_prefix=dense_prefix)
        made.factors = factors
        return made

    def loss(genome: Tensor) -> float:
        with m.untouched(), m.attach(_Quiet(recipe(genome))):
            return m.loss(rows)

    settings = {
        "model": m.name, "tokens": hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16], "sites": sites,
        "sparsity": sparsity, "population": population, "elites": elites, "generations": generations,
        "mutation": mutation, "step": step, "start": start, "seed": seed, "dense_prefix": dense_prefix,
    }
    trial = _Trial(loss, None if out is None else Path(out), settings, max_seconds, population, elites, generations)
    breeder = _Breeder(len(sites), population, elites, mutation, step, seed)
    genomes = evolve(trial, breeder, start, generations, progress)
    values = [value for _, value in trial.losses]
    best = recipe(genomes[values.index(min(values))])
    best.factors = Factors()  # those of the search are for all ranks, and large
    return Search(best, tuple(trial.losses), not trial.stopped)


def evolve(
    trial: "_Trial", breeder: "_Breeder", start: float, generations: int, progress: bool = False
) -> list[Tensor]:
    """Try recipes, generation by generation. Returns them in the order of their losses in `trial`."""
    from tqdm.auto import tqdm

    tried: list[Tensor] = []
    scored: list[tuple[float, int]] = []
    with tqdm(total=trial.total, unit="recipe", desc="R-Sparse", leave=False, disable=not progress) as bar:
        for generation in range(generations + 1):
            if generation == 0:
                born = breeder.first(start)
            else:
                scored = sorted(scored)[: breeder.elites]
                if all(i for _, i in scored):
                    scored.append((trial.losses[0][1], 0))  # channels only, always among them
                born = breeder.children([tried[i] for _, i in scored])
            for genome in born:
                value = trial.take(generation, genome)
                if value is None:
                    return tried
                scored.append((value, len(tried)))
                tried.append(genome)
                bar.update()
                bar.set_postfix(best=f"{min(scored)[0]:.4f}")
    return tried


class _Breeder:
    """Makes genomes: `[layers]` of rho, float64."""

    def __init__(self, layers: int, population: int, elites: int, mutation: float, step: float, seed: int):
        self.layers, self.population, self.elites = layers, population, elites
        self.mutation, self.step = mutation, step
        self.generator = torch.Generator().manual_seed(seed)

    def first(self, start: float) -> list[Tensor]:
        """Rho = 1 in all layers, the start, and neighbours of it."""
        ones = torch.ones(self.layers, dtype=torch.double)
        return [ones, start * ones, *(self._changed(start * ones) for _ in range(self.population - 2))]

    def children(self, parents: list[Tensor]) -> list[Tensor]:
        """New ones in the place of those that did not survive: each rho from one of two parents, some changed."""
        made = []
        for _ in range(self.population - self.elites):
            a, b = (parents[int(i)] for i in torch.randint(len(parents), (2,), generator=self.generator))
            of_a = torch.rand(self.layers, generator=self.generator) < 0.5
            made.append(self._changed(torch.where(of_a, a, b)))
        return made

    def _changed(self, genome: Tensor) -> Tensor:
        hit = torch.rand(self.layers, generator=self.generator) < self.mutation
        by = torch.randn(self.layers, generator=self.generator, dtype=torch.double) * self.step
        return torch.where(hit, (genome + by).clamp(0, 1), genome)


class _Trial:
    """Losses of recipes, in order: those of an earlier run from its file, then new ones."""

    def __init__(self, loss: Callable[[Tensor], float], out: Path | None, settings: dict[str, Any],
                 max_seconds: float | int | None, population: int, elites: int, generations: int):
        self.loss, self.out, self.settings = loss, out, settings
        self.total = population + generations * (population - elites)
        self.until = None if max_seconds is None else time.monotonic() + max_seconds
        self.losses: list[tuple[int, float]] = []
        self.stopped = False
        self._known = self._read()

    def _read(self) -> list[float]:
        if self.out is None or not self.out.exists():
            return []
        kept = read_json(self.out)
        if not isinstance(kept, dict) or kept.get("format") != FORMAT or kept.get("settings") != self.settings:
            raise FileFormatError(f"{self.out} is not of this search (model, tokens and settings must be the same): "
                                  "give another file as out, or remove it.")
        return list(kept["losses"])

    def take(self, generation: int, genome: Tensor) -> float | None:
        """The loss of the next recipe; None when the time is over (the first one is always taken)."""
        at = len(self.losses)
        if at < len(self._known):
            value = self._known[at]
        elif at and self.until is not None and time.monotonic() >= self.until:
            self.stopped = True
            return None
        else:
            value = self.loss(genome)
            self._known.append(value)
            if self.out is not None:
                write_json(self.out, {"format": FORMAT, "settings": self.settings, "losses": self._known})
        self.losses.append((generation, value))
        return value


class _Quiet:
    """A recipe without its warnings: a search tries many."""

    def __init__(self, recipe: RSparse):
        self.recipe = recipe

    def edits(self, model: LiveModel, at: Any = None) -> Any:
        return self.recipe.changes(model, at)


def _check(population: int, elites: int, generations: int, mutation: float, step: float, start: float,
           sparsity: float) -> None:
    if population < 2 or not 1 <= elites < population or generations < 0:
        raise InputError(f"population={population}, elites={elites}, generations={generations}: at least 2 recipes, "
                         "at least one of them survives but not all, and no fewer than 0 generations.")
    for name, value in (("mutation", mutation), ("start", start)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value!r} is not in [0, 1].")
    if step < 0 or not sparsity:
        raise InputError(f"step={step!r} must be 0 or more, and sparsity={sparsity!r} above 0.")

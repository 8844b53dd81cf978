"""What `train_sae` is asked for, checked and made whole: which SAE, on which columns of the data, by which rules."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.errors import FitError, InputError, closest
from sparselens.sae import parallel
from sparselens.sae.architectures import ACTIVATIONS, ALIASES
from sparselens.sae.gradients import GRADIENT
from sparselens.sae.rules import Rule
from sparselens.sae.sae import SAE
from sparselens.sae.store import UNNAMED, Activations, ActivationStore, TensorActivations, harvest

DEFAULTS: dict[str, Any] = {
    "site": None,
    "site_out": None,
    "architecture": "topk",
    "d_sae": None,
    "k": 32,
    "lr": 3e-3,
    "seed": 0,
    "input_norm": "none",
    "skip": False,
    "rules": (),
    "dead": "aux",
}
DEAD = ("aux", "none")


@dataclass(frozen=True)
class Recipe:
    """One SAE to train.

    Attributes:
        sae: the SAE, fresh or not. `made`: whether it was made here, so that nobody else holds it.
        reads, writes: sites side by side that it is fed and that it is to reconstruct.
        k, lr, rules: as in `train_sae`; `aux`: whether dead latents are trained on what is left over.
        facts: all of it as JSON, for the settings of the run.
    """

    sae: SAE
    made: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    k: int | float
    lr: float
    rules: tuple[Rule, ...]
    aux: bool
    facts: dict[str, Any]

    @property
    def wants_gradients(self) -> bool:
        """Whether a rule needs the gradient of the model's loss at what is read."""
        return any(rule.needs_gradients for rule in self.rules)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of everything it needs from the data."""
        gradients = tuple(site + GRADIENT for site in self.reads) if self.wants_gradients else ()
        return tuple(dict.fromkeys([*self.reads, *self.writes, *gradients]))

    def read(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What it is fed, what it is to write (None: the same), and gradients, from rows by site."""
        x = side_by_side(rows, self.reads)
        y = None if self.writes == self.reads else side_by_side(rows, self.writes)
        grads = side_by_side(rows, [site + GRADIENT for site in self.reads]) if self.wants_gradients else None
        return x, y, grads


def side_by_side(rows: Mapping[str, Tensor], sites: Sequence[str]) -> Tensor:
    """The columns of some sites as one `[n, width]`."""
    return rows[sites[0]] if len(sites) == 1 else torch.cat([rows[site] for site in sites], dim=1)


def make_recipe(name: str, entry: SAE | Mapping[str, Any], data: Activations, source: Any) -> Recipe:
    """One entry of `saes` with every field filled and its SAE made, checked against the data.

    Raises:
        InputError: an unknown setting, no site where there are several, or values that do not fit.
        FitError: an SAE whose width is not the sites'.
    """
    given = {"sae": entry} if isinstance(entry, SAE) else dict(entry)
    unknown = sorted(given.keys() - DEFAULTS.keys() - {"sae"})
    if unknown:
        raise InputError(f"{name}: unknown setting {unknown[0]!r}.{closest(unknown[0], DEFAULTS)}")
    recipe = {**DEFAULTS, **given}
    if recipe["dead"] not in DEAD:
        raise InputError(f"{name}: dead={recipe['dead']!r} is unknown; valid: {', '.join(DEAD)}.")
    sae = recipe.pop("sae", None)
    if sae is not None:
        recipe |= {"site": recipe["site"] or sae.metadata.get("hook_name")}
        recipe |= {"site_out": recipe["site_out"] or sae.metadata.get("hook_name_out")}
    reads = _sites(name, recipe["site"], data, source)
    writes = _sites(name, recipe["site_out"], data, source) if recipe["site_out"] else reads
    widths = [sum(data.d(site) for site in sites) for sites in (reads, writes)]
    made = sae is None
    sae = _make(recipe, reads, writes, widths) if sae is None else sae
    if [sae.d_in, sae.d_out] != widths:
        raise FitError(
            f"{name}: the SAE reads width {sae.d_in} and writes {sae.d_out}; {', '.join(reads)} has width {widths[0]}"
            + (f" and {', '.join(writes)} {widths[1]}." if writes != reads else ".")
        )
    k = sae.k or (recipe["k"] if made or "k" in given else sae.metadata.get("l0") or recipe["k"])
    if not recipe["lr"] > 0:
        raise InputError(f"{name}: lr={recipe['lr']} must be above 0.")
    if isinstance(k, str | bool) or not 0 < k <= sae.d_sae:
        raise InputError(f"{name}: k={k!r} active latents per token do not fit d_sae={sae.d_sae}.")
    recipe |= {"architecture": sae.architecture, "d_sae": sae.d_sae, "k": k, "input_norm": sae.input_norm.kind}
    rules = tuple(recipe["rules"])
    facts = recipe | {"site": list(reads), "site_out": list(writes), "rules": [rule.facts() for rule in rules]}
    facts |= {"skip": sae.W_skip is not None, "options": sae.activation.options}
    return Recipe(sae, made, reads, writes, k, recipe["lr"], rules, recipe["dead"] == "aux", facts)


def _make(recipe: dict[str, Any], reads: Sequence[str], writes: Sequence[str], widths: list[int]) -> SAE:
    """A fresh SAE."""
    architecture = recipe["architecture"]
    known = ACTIVATIONS.get(ALIASES.get(architecture, architecture)) if isinstance(architecture, str) else None
    k = recipe["k"] if known is None or known.wants_k else None
    named = reads != (UNNAMED,)
    site = (reads[0] if len(reads) == 1 else list(reads)) if named else None
    site_out = (writes[0] if len(writes) == 1 else list(writes)) if writes != reads else None
    return SAE(
        architecture,
        d_in=widths[0],
        d_sae=8 * widths[0] if recipe["d_sae"] is None else recipe["d_sae"],
        d_out=widths[1],
        k=k if isinstance(architecture, str) else None,
        input_norm=recipe["input_norm"],
        skip=recipe["skip"],
        site=site,
        site_out=site_out,
        seed=recipe["seed"],
    )


def _sites(name: str, given: Any, data: Activations, source: Any) -> tuple[str, ...]:
    """Names of sites as the data has them."""
    if given is None:
        sites = [site for site in data.sites if not site.endswith(GRADIENT)]
        if len(sites) != 1:
            raise InputError(f"{name}: say which site to train on: {', '.join(sites)}.")
        return (sites[0],)
    wanted = [given] if isinstance(given, str) else list(given)
    resolve = getattr(source, "resolve", None)
    return tuple(resolve(s) if s not in data.sites and resolve is not None else s for s in wanted)


def open_activations(
    source: Any,
    texts: Any,
    wanted: Mapping[str, SAE | Mapping[str, Any]],
    n_tokens: int,
    out: Path | None,
    stack: ExitStack,
    progress: bool,
) -> Activations:
    """The rows to train on, harvested first if the source is a live model."""
    entries: list[dict[str, Any]] = [{"sae": e} if isinstance(e, SAE) else dict(e) for e in wanted.values()]
    if not hasattr(source, "stream"):
        if texts is not None:
            raise InputError("texts go with a live model; this source holds its activations already.")
        if isinstance(source, Activations):
            return source
        if isinstance(source, str | os.PathLike):
            return ActivationStore(source)
        named = [site for site in _wanted_sites(entries[0]) if site]
        return TensorActivations(source, named[0] if named else UNNAMED)
    if texts is None:
        raise InputError("training on a live model needs texts: train_sae(m, texts, ...).")
    sites = [site for entry in entries for site in _wanted_sites(entry)]
    if not all(sites):
        raise InputError("say which site of the model to train on, e.g. site='blocks.5.hook_resid_post'.")
    if out is None:
        if parallel.size() > 1:
            raise InputError("several processes that train on a live model need a folder to share: give out=...")
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    gradients = any(rule.needs_gradients for entry in entries for rule in entry.get("rules") or ())
    distinct = list(dict.fromkeys(str(site) for site in sites))
    folder = out / "activations"
    if parallel.is_first():
        harvest(source, texts, distinct, folder, n_tokens, gradients=gradients, progress=progress)
    parallel.wait()
    return ActivationStore(folder)


def _wanted_sites(entry: Mapping[str, Any]) -> list[Any]:
    """The sites that an entry of `saes` names; [None] if it names none."""
    sae = entry.get("sae")
    own = {} if sae is None else sae.metadata
    found: list[Any] = []
    for key, fallback in (("site", "hook_name"), ("site_out", "hook_name_out")):
        value = entry.get(key) or own.get(fallback)
        found += [value] if isinstance(value, str) else list(value or ())
    return found or [None]


def sample_rows(data: Activations, columns: Sequence[str], n_rows: int, at_most: int, seed: int) -> dict[str, Tensor]:
    """Some of the first `n_rows` rows of every column, the same for all, drawn by `seed`."""
    index = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(n_rows)[:at_most])
    return {site: data.rows(site, index) for site in columns}

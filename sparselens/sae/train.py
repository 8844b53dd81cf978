"""Training SAEs: one loop for one SAE or many, on a live model's texts, a store, or a tensor of activations."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sparselens.errors import FitError, InputError, closest
from sparselens.files import read_json, write_json
from sparselens.sae.checkpoint import check_settings, load_checkpoint, save_checkpoint
from sparselens.sae.run import TrainingRun
from sparselens.sae.sae import SAE
from sparselens.sae.stats import ActiveSum, FvuSum
from sparselens.sae.store import UNNAMED, Activations, ActivationStore, TensorActivations, harvest
from sparselens.sae.trainer import SAETrainer

_RECIPE = {"site": None, "architecture": "topk", "d_sae": None, "k": 32, "lr": 3e-3, "seed": 0}
_SAMPLE = 8192  # rows that scale and mean are taken from
_HELD_OUT = 16384  # rows that l0 and fvu are measured on at the end
_WARM_UP, _DECAY = 0.05, 0.5  # shares of the run: linear rise, linear fall to 0 at the end
_DEAD_AFTER = 0.05  # a latent silent for this share of the run is dead
_LOGGED = 200  # entries of history per SAE


def train_sae(
    source: Any,
    texts: Any = None,
    *,
    n_tokens: int,
    site: str | None = None,
    architecture: str = "topk",
    d_sae: int | None = None,
    k: int | float = 32,
    lr: float = 3e-3,
    saes: Mapping[str, SAE | Mapping[str, Any]] | None = None,
    out: str | os.PathLike | None = None,
    batch_size: int = 2048,
    seed: int = 0,
    checkpoint_every: int = 500,
    live: bool = True,
    progress: bool = True,
) -> tuple[SAE | dict[str, SAE], TrainingRun]:
    """Train one SAE, or several on the same pass over the activations. Returns the SAE (or a dict) and the run.

    A run with `out` can be killed at any time: the same call goes on from the last checkpoint and ends with the
    same weights, bit for bit; once finished, the same call loads the result.

    Args:
        source: a live model (then `texts` are harvested into `out/activations`), an `ActivationStore` or its folder,
            or activations in memory: a tensor `[rows, d]` or tensors by site.
        texts: for a live model, what `m.stream` takes, as a sequence. For other harvest settings call `harvest`
            and give its store as source.
        n_tokens: tokens to train on. Rows come again, in new order, if there are fewer.
        site: where; may be left out if the source has one site.
        architecture: "topk", "batchtopk", "jumprelu" or "relu".
        d_sae: number of latents; None: 8 times the width of the site.
        k: active latents per token; topk keeps exactly k, the others aim at k.
        lr: peak learning rate. Short runs want a high one: at 300 steps 4e-3 left a third less fvu than 5e-4 did.
        saes: instead of the five above, by name: an SAE to go on training (its own site and k) or a dict with any
            of site, architecture, d_sae, k, lr, seed.
        out: folder of the run: checkpoints, the SAE in `sae` (or under its name), `run.json`.
        batch_size: tokens per step.
        seed: of the order of the rows, and of the initial weights.
        checkpoint_every: steps between checkpoints.
        live: in a notebook, draw fvu while training.
        progress: show progress bars.

    Raises:
        InputError: arguments that do not fit together, or `out` holds another run.
        NotFiniteError: activations with NaN or infinite numbers, or a loss that became so.
        FitError: an SAE whose width is not the site's.
    """
    one = {"site": site, "architecture": architecture, "d_sae": d_sae, "k": k, "lr": lr, "seed": seed}
    wanted = {"sae": one} if saes is None else dict(saes)
    folder = None if out is None else Path(out)
    with ExitStack() as stack:
        data = _activations(source, texts, wanted, n_tokens, folder, stack, progress)
        recipes = {name: _recipe(name, entry, data, source) for name, entry in wanted.items()}
        settings = {
            "saes": {name: {key: v for key, v in r.items() if key != "sae"} for name, r in recipes.items()},
            "n_tokens": n_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "rows": data.n_tokens,
            "texts": data.meta.get("texts"),
        }
        finished = None if folder is None else _finished(folder, settings)
        if finished is None:
            run = TrainingRun(settings)
            trained = _train(data, recipes, run, folder, checkpoint_every, live, progress)
            if folder is not None:
                _write_result(folder, trained, run)
        else:
            trained, run = finished
    return (trained["sae"] if saes is None else trained), run


def _train(
    data: Activations,
    recipes: dict[str, dict[str, Any]],
    run: TrainingRun,
    out: Path | None,
    checkpoint_every: int,
    live: bool,
    progress: bool,
) -> dict[str, SAE]:
    """The loop: batches in, steps of every trainer, history, checkpoints; then the SAEs with their facts."""
    if data.n_tokens < 2:
        raise InputError(f"{data.n_tokens} row of activations has no variance to explain: give two rows at least.")
    batch_size, seed = run.settings["batch_size"], run.settings["seed"]
    n_steps = max(1, run.settings["n_tokens"] // batch_size)
    n_rows = data.n_tokens - data.held_out(_HELD_OUT)
    batch_size = min(batch_size, n_rows)
    trainers = _trainers(data, recipes, n_rows, n_steps * batch_size, seed)
    step, before = 0, 0.0
    checkpoint = load_checkpoint(out, run.settings) if out is not None else None
    if checkpoint is not None:
        tensors, facts = checkpoint
        step, before, run.history = facts["step"], facts["seconds"], facts["history"]
        for name, trainer in trainers.items():
            trainer.restore(tensors[name])
    sites = sorted({recipe["site"] for recipe in recipes.values()})
    batches = data.batches(sites, batch_size, seed=seed, start_step=step, n_rows=n_rows)
    curve = _live_curve(live)
    start, log_every = time.perf_counter(), max(1, n_steps // _LOGGED)
    with tqdm(total=n_steps, initial=step, desc="training", leave=False, disable=not progress) as bar:
        while step < n_steps:
            x = next(batches)
            factor = lr_factor(step, n_steps)
            seen = {name: t.step(x[recipes[name]["site"]], factor) for name, t in trainers.items()}
            step += 1
            bar.update()
            if step % log_every == 0 or step == n_steps:
                entries = [_entry(name, t, seen[name], x[recipes[name]["site"]]) for name, t in trainers.items()]
                run.history += [{**e, "step": step, "tokens": step * batch_size, "lr_factor": factor} for e in entries]
                bar.set_postfix_str(", ".join(f"{e['sae']} fvu {e['fvu']:.3f}" for e in entries))
                if curve is not None:
                    curve.update(step, {f"fvu {e['sae']}": e["fvu"] for e in entries})
            run.seconds = before + time.perf_counter() - start
            if out is not None and step % checkpoint_every == 0 and step < n_steps:
                facts = {"settings": run.settings, "seconds": run.seconds, "history": run.history}
                save_checkpoint(out, step, {name: t.state() for name, t in trainers.items()}, facts)
    if curve is not None:
        curve.close()
    run.n_tokens = n_steps * batch_size
    return {name: _describe(t, recipes[name]["site"], data, n_rows, run) for name, t in trainers.items()}


def lr_factor(step: int, n_steps: int) -> float:
    """The learning rate at `step` as a share of its peak: linear warm-up, constant, linear fall towards 0."""
    rise = (step + 1) / max(1.0, _WARM_UP * n_steps)
    fall = (n_steps - step) / max(1.0, _DECAY * n_steps)
    return min(1.0, rise, fall)


def _trainers(
    data: Activations, recipes: dict[str, dict[str, Any]], n_rows: int, n_tokens: int, seed: int
) -> dict[str, SAETrainer]:
    index = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(n_rows)[:_SAMPLE])
    samples = {site: data.rows(site, index) for site in {recipe["site"] for recipe in recipes.values()}}
    dead_after = max(1, int(_DEAD_AFTER * n_tokens))
    return {
        name: SAETrainer(r["sae"], samples[r["site"]], k=r["k"], lr=r["lr"], dead_after=dead_after)
        for name, r in recipes.items()
    }


def _entry(name: str, trainer: SAETrainer, seen: Any, x: Float[Tensor, "batch d"]) -> dict[str, Any]:
    variance = float((x - x.mean(0)).square().sum() / len(x)) * trainer.scale**2
    fvu = float(seen.error) / variance if variance else float("nan")
    return {"sae": name, "fvu": fvu, "l0": float(seen.l0), "dead_share": trainer.dead_share}


def _describe(trainer: SAETrainer, site: str, data: Activations, n_rows: int, run: TrainingRun) -> SAE:
    """Take the SAE out of its trainer, measure it on the rows held out, and write down its facts."""
    sae = trainer.export()
    fvu, active = FvuSum(), ActiveSum(sae.d_sae)
    held_out = np.arange(n_rows, data.n_tokens)
    held_out = held_out[:: max(1, len(held_out) // _HELD_OUT)]
    for low in range(0, len(held_out), 2048):
        x = data.rows(site, held_out[low : low + 2048])
        z = sae.encode(x)
        active.add(z)
        fvu.add(x, sae.decode(z))
    facts = {
        "model_name": data.meta.get("model"),
        "hook_name": None if site == UNNAMED else site,
        "context_size": data.meta.get("context"),
        "max_norm": data.max_norm(site),
        "n_tokens": run.n_tokens,
        "l0": active.l0 if fvu.rows else None,
        "fvu": fvu.value if fvu.rows else None,
        "dead_share": trainer.dead_share,
        "training_architecture": sae.architecture,
        "sparselens_version": _version(),
    }
    sae.metadata |= {key: value for key, value in facts.items() if value is not None}
    return sae


def _recipe(name: str, entry: SAE | Mapping[str, Any], data: Activations, source: Any) -> dict[str, Any]:
    """One entry of `saes` with every field filled and its SAE made, checked against the data."""
    given = {"sae": entry, "site": entry.site} if isinstance(entry, SAE) else dict(entry)
    unknown = sorted(given.keys() - _RECIPE.keys() - {"sae"})
    if unknown:
        raise InputError(f"{name}: unknown setting {unknown[0]!r}.{closest(unknown[0], _RECIPE)}")
    recipe = {**_RECIPE, **given}
    site = recipe["site"]
    if site is None:
        if len(data.sites) != 1:
            raise InputError(f"{name}: say which site to train on: {', '.join(data.sites)}.")
        site = data.sites[0]
    elif site not in data.sites and hasattr(source, "resolve"):
        site = source.resolve(site)
    width = data.d(site)
    if isinstance(entry, SAE):
        if entry.d_in != width:
            raise FitError(f"{name}: the SAE reads width {entry.d_in}, {site} has width {width}.")
        k = entry.k or entry.metadata.get("l0") or recipe["k"]
        recipe |= {"architecture": entry.architecture, "d_sae": entry.d_sae, "k": k}
    else:
        recipe["d_sae"] = recipe["d_sae"] or 8 * width
        k = recipe["k"] if recipe["architecture"] in ("topk", "batchtopk") else None
        sizes = {"d_in": width, "d_sae": recipe["d_sae"], "k": k, "seed": recipe["seed"]}
        recipe["sae"] = SAE(recipe["architecture"], **sizes)
    return recipe | {"site": site}


def _activations(
    source: Any,
    texts: Any,
    wanted: dict[str, Any],
    n_tokens: int,
    out: Path | None,
    stack: ExitStack,
    progress: bool,
) -> Activations:
    """The rows to train on, harvested first if the source is a live model."""
    if not hasattr(source, "stream"):
        if texts is not None:
            raise InputError("texts go with a live model; this source holds its activations already.")
        if isinstance(source, Activations):
            return source
        if isinstance(source, str | os.PathLike):
            return ActivationStore(source)
        first = next(iter(wanted.values()))
        site = first.site if isinstance(first, SAE) else first.get("site")
        return TensorActivations(source, site or UNNAMED)
    if texts is None:
        raise InputError("training on a live model needs texts: train_sae(m, texts, ...).")
    sites = [entry.site if isinstance(entry, SAE) else entry.get("site") for entry in wanted.values()]
    if not all(sites):
        raise InputError("say which site of the model to train on, e.g. site='blocks.5.hook_resid_post'.")
    if out is None:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    distinct = list(dict.fromkeys(str(site) for site in sites))
    return harvest(source, texts, distinct, out / "activations", n_tokens, progress=progress)


def _finished(out: Path, settings: dict[str, Any]) -> tuple[dict[str, SAE], TrainingRun] | None:
    """The result of a run that is complete."""
    if not (out / "run.json").is_file():
        return None
    record = read_json(out / "run.json")
    check_settings(out, record["settings"], settings)
    return {name: SAE.load(out / name) for name in record["settings"]["saes"]}, TrainingRun(**record)


def _write_result(out: Path, trained: dict[str, SAE], run: TrainingRun) -> None:
    for name, sae in trained.items():
        sae.save(out / name)
    write_json(out / "run.json", vars(run))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _live_curve(live: bool) -> Any:
    if not live:
        return None
    from sparselens.views.curves import LiveCurve

    return LiveCurve("training")


def _version() -> str:
    from sparselens import __version__

    return __version__

"""Training SAEs: one loop for one SAE or many, on a live model's texts, a store, or a tensor of activations."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from sparselens.errors import InputError
from sparselens.files import read_json, write_json
from sparselens.sae import parallel
from sparselens.sae.activations import Activation
from sparselens.sae.checkpoint import check_settings, load_checkpoint, save_checkpoint
from sparselens.sae.recipes import Recipe, make_recipe, open_activations, sample_rows, side_by_side
from sparselens.sae.rules import Rule
from sparselens.sae.run import TrainingRun
from sparselens.sae.sae import SAE
from sparselens.sae.stats import ActiveSum, FvuSum
from sparselens.sae.store import UNNAMED, Activations
from sparselens.sae.trainer import SAETrainer

Logger = Callable[[dict[str, Any]], None]

_SAMPLE = 8192  # rows that scale and mean are taken from
_HELD_OUT = 16384  # rows that l0 and fvu are measured on at the end
_DEAD_AFTER = 0.05  # a latent silent for this share of the run is dead
_LOGGED = 200  # entries of history per SAE


@dataclass(frozen=True)
class _Course:
    """How a run goes along, besides what decides its result."""

    out: Path | None
    checkpoint_every: int
    loggers: Sequence[Logger]
    live: bool
    progress: bool


def train_sae(
    source: Any,
    texts: Any = None,
    *,
    n_tokens: int,
    site: str | Sequence[str] | None = None,
    site_out: str | Sequence[str] | None = None,
    architecture: str | Activation = "topk",
    d_sae: int | None = None,
    k: int | float = 32,
    lr: float = 3e-3,
    input_norm: str = "none",
    rules: Sequence[Rule] = (),
    dead: str = "aux",
    saes: Mapping[str, SAE | Mapping[str, Any]] | None = None,
    out: str | os.PathLike | None = None,
    batch_size: int = 2048,
    warm_up: float = 0.05,
    decay: float = 0.5,
    precision: str = "float32",
    seed: int = 0,
    checkpoint_every: int = 500,
    loggers: Sequence[Logger] = (),
    live: bool = True,
    progress: bool = True,
) -> tuple[SAE | dict[str, SAE], TrainingRun]:
    """Train one SAE, or several on the same pass over the activations. Returns the SAE (or a dict) and the run.

    A run with `out` can be killed at any time: the same call goes on from the last checkpoint and ends with the
    same weights, bit for bit; once finished, the same call loads the result. Started by `torchrun`, every process
    takes its share of each batch, and all end with the same SAE.

    Args:
        source: a live model (then `texts` are harvested into `out/activations`), an `ActivationStore` or its folder,
            or activations in memory: a tensor `[rows, d]` or tensors by site.
        texts: for a live model, what `m.stream` takes, as a sequence. For other harvest settings call `harvest`
            and give its store as source.
        n_tokens: tokens to train on. Rows come again, in new order, if there are fewer.
        site: where; may be left out if the source has one site. Several make a crosscoder.
        site_out: what to write, if it is not what is read: a transcoder.
        architecture: a name that `SAE` takes, or an activation part.
        d_sae: number of latents; None: 8 times the width of what is read.
        k: active latents per token; topk keeps exactly k, those without a k of their own aim at it.
        lr: peak learning rate. Short runs want a high one: at 300 steps 4e-3 left a third less fvu than 5e-4 did.
        input_norm: of the SAE: "none", "unit_norm" or "layer_norm".
        rules: what to add to the architecture's training, such as `Matryoshka((512, 2048))` or `Resample()`.
        dead: what is done about latents that no longer fire, where latents are selected: "aux" trains them on what
            is left over, "none" leaves them.
        saes: instead of the nine above, by name: an SAE to go on training (its own sites and k) or a dict with any of
            these settings, `seed`, `skip` (a transcoder's skip connection), and `sae` (one made by hand).
        out: folder of the run: checkpoints, the SAE in `sae` (or under its name), `run.json`.
        batch_size: tokens per step.
        warm_up, decay: shares of the run over which the learning rate rises, and falls to 0 at the end.
        precision: of the products: "float32"; "bfloat16", with weights in float32; "auto": bfloat16 where the
            hardware multiplies it faster. Only float32 gives the same weights on another machine's arithmetic.
        seed: of the order of the rows, and of the initial weights.
        checkpoint_every: steps between checkpoints.
        loggers: each is called with every new entry of the history, a dict: see `TrainingRun.history`.
        live: in a notebook, draw fvu while training.
        progress: show progress bars.

    Raises:
        InputError: arguments that do not fit together, or `out` holds another run.
        NotFiniteError: activations with NaN or infinite numbers, or a loss that became so.
        FitError: an SAE whose width is not the site's.
    """
    one: dict[str, Any] = {"site": site, "site_out": site_out, "architecture": architecture, "d_sae": d_sae, "k": k}
    one |= {"lr": lr, "seed": seed, "input_norm": input_norm, "rules": tuple(rules), "dead": dead}
    wanted = {"sae": one} if saes is None else dict(saes)
    folder = None if out is None else Path(out)
    parallel.join()
    course = _Course(folder, checkpoint_every, loggers, live and parallel.is_first(), progress and parallel.is_first())
    settings: dict[str, Any] = {"n_tokens": n_tokens, "batch_size": batch_size, "warm_up": warm_up, "decay": decay}
    settings |= {"precision": precision, "seed": seed}
    _check_numbers(settings)
    with ExitStack() as stack:
        data = open_activations(source, texts, wanted, n_tokens, folder, stack, course.progress)
        recipes = {name: make_recipe(name, entry, data, source) for name, entry in wanted.items()}
        settings |= {"saes": {name: recipe.facts for name, recipe in recipes.items()}}
        settings |= {"rows": data.n_tokens, "texts": data.meta.get("texts")}
        trained, run = _run(data, recipes, settings, course)
    return (trained["sae"] if saes is None else trained), run


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse sizes below 1 and shares beyond a whole run."""
    for name in ("n_tokens", "batch_size"):
        if settings[name] < 1:
            raise InputError(f"{name} must be at least 1, not {settings[name]}.")
    for name in ("warm_up", "decay"):
        if not 0 <= settings[name] <= 1:
            raise InputError(f"{name}={settings[name]} is a share of the run: give 0 to 1.")


def _run(
    data: Activations, recipes: dict[str, Recipe], settings: dict[str, Any], course: _Course
) -> tuple[dict[str, SAE], TrainingRun]:
    """Load a finished result, or train and write it."""
    finished = None if course.out is None else _finished(course.out, settings)
    if finished is not None:
        return finished
    run = TrainingRun(settings)
    trained = _train(data, recipes, run, course)
    if course.out is not None and parallel.is_first():
        _write_result(course.out, trained, run)
    parallel.wait()
    return trained, run


def _train(data: Activations, recipes: dict[str, Recipe], run: TrainingRun, course: _Course) -> dict[str, SAE]:
    """The loop: batches in, steps of every trainer, history, checkpoints; then the SAEs with their facts."""
    if data.n_tokens < 2:
        raise InputError(f"{data.n_tokens} row of activations has no variance to explain: give two rows at least.")
    settings, out = run.settings, course.out
    n_steps = max(1, settings["n_tokens"] // settings["batch_size"])
    n_rows = data.n_tokens - data.held_out(_HELD_OUT)
    batch_size = min(settings["batch_size"], n_rows)
    if batch_size % parallel.size():
        raise InputError(f"a batch of {batch_size} tokens does not divide among {parallel.size()} processes.")
    trainers = _trainers(data, recipes, n_rows, n_steps, batch_size, settings)
    step, before = 0, 0.0
    checkpoint = load_checkpoint(out, settings) if out is not None else None
    if checkpoint is not None:
        tensors, facts = checkpoint
        step, before, run.history = facts["step"], facts["seconds"], facts["history"]
        for name, trainer in trainers.items():
            trainer.restore(tensors[name])
    columns = sorted({column for recipe in recipes.values() for column in recipe.columns})
    batches = data.batches(columns, batch_size, seed=settings["seed"], start_step=step, n_rows=n_rows)
    curve = _live_curve(course.live)
    start, log_every = time.perf_counter(), max(1, n_steps // _LOGGED)
    with tqdm(total=n_steps, initial=step, desc="training", leave=False, disable=not course.progress) as bar:
        while step < n_steps:
            rows = {site: parallel.share(values) for site, values in dict(next(batches)).items()}
            factor = lr_factor(step, n_steps, settings["warm_up"], settings["decay"])
            step += 1
            logged = step % log_every == 0 or step == n_steps
            entries = [_step(name, t, recipes[name], rows, factor, logged) for name, t in trainers.items()]
            bar.update()
            if logged:
                more = {"step": step, "tokens": step * batch_size, "lr_factor": factor}
                _log([entry | more for entry in entries], run, course, curve)
                bar.set_postfix_str(", ".join(f"{e['sae']} fvu {e['fvu']:.3f}" for e in entries))
            run.seconds = before + time.perf_counter() - start
            if out is not None and step % course.checkpoint_every == 0 and step < n_steps and parallel.is_first():
                facts = {"settings": settings, "seconds": run.seconds, "history": run.history}
                save_checkpoint(out, step, {name: t.state() for name, t in trainers.items()}, facts)
    if curve is not None:
        curve.close()
    run.n_tokens = n_steps * batch_size
    return {name: _describe(t, recipes[name], data, n_rows, run) for name, t in trainers.items()}


def lr_factor(step: int, n_steps: int, warm_up: float = 0.05, decay: float = 0.5) -> float:
    """The learning rate at `step` as a share of its peak: linear rise, constant, linear fall towards 0.

    `warm_up` and `decay` are the shares of the run that rise and fall take.
    """
    rise = (step + 1) / max(1.0, warm_up * n_steps)
    fall = (n_steps - step) / max(1.0, decay * n_steps)
    return min(1.0, rise, fall)


def _trainers(
    data: Activations,
    recipes: dict[str, Recipe],
    n_rows: int,
    n_steps: int,
    batch_size: int,
    settings: dict[str, Any],
) -> dict[str, SAETrainer]:
    columns = sorted({column for recipe in recipes.values() for column in recipe.columns})
    sample = sample_rows(data, columns, n_rows, _SAMPLE, settings["seed"])
    dead_after = max(1, int(_DEAD_AFTER * n_steps * batch_size))
    trainers = {}
    for name, recipe in recipes.items():
        x, y, _ = recipe.read(sample)
        for rows in (x,) if y is None else (x, y):
            if bool((rows == rows[0]).all()):
                raise InputError(f"{name}: all rows of activations are equal; there is no variance to explain.")
        trainers[name] = SAETrainer(
            recipe.sae,
            x,
            k=recipe.k,
            lr=recipe.lr,
            dead_after=dead_after,
            target=y,
            rules=recipe.rules,
            aux=recipe.aux,
            precision=settings["precision"],
            n_steps=n_steps,
        )
        if recipe.made:  # filled again by `export`; until then its memory is better used
            for parameter in recipe.sae.parameters():
                parameter.data = parameter.new_empty(0)
    return trainers


def _step(
    name: str, trainer: SAETrainer, recipe: Recipe, rows: dict[str, Tensor], factor: float, logged: bool
) -> dict[str, Any]:
    """One step of one SAE, and its entry of history if it is to be logged."""
    x, y, grads = recipe.read(rows)
    seen = trainer.step(x, factor, y, grads)
    if not logged:
        return {}
    _, target, _ = trainer.prepare(x, y)
    variance = float(trainer.mean((target - target.mean(0)).square().sum() / len(target)))
    fvu = float(seen.error) / variance if variance else float("nan")
    return {"sae": name, "fvu": fvu, "l0": float(seen.l0), "dead_share": trainer.dead_share}


def _log(entries: list[dict[str, Any]], run: TrainingRun, course: _Course, curve: Any) -> None:
    run.history += entries
    if curve is not None:
        curve.update(entries[0]["step"], {f"fvu {e['sae']}": e["fvu"] for e in entries})
    if parallel.is_first():
        for logger in course.loggers:
            for entry in entries:
                logger(dict(entry))


def _describe(trainer: SAETrainer, recipe: Recipe, data: Activations, n_rows: int, run: TrainingRun) -> SAE:
    """Take the SAE out of its trainer, measure it on the rows held out, and write down its facts."""
    sae = trainer.export()
    fvu, active = FvuSum(), ActiveSum(sae.d_sae)
    held_out = np.arange(n_rows, data.n_tokens)
    held_out = held_out[:: max(1, len(held_out) // _HELD_OUT)]
    sites = dict.fromkeys([*recipe.reads, *recipe.writes])
    for low in range(0, len(held_out), 2048):
        rows = {site: data.rows(site, held_out[low : low + 2048]) for site in sites}
        x, y = (side_by_side(rows, names) for names in (recipe.reads, recipe.writes))
        z = sae.encode(x)
        active.add(z)
        fvu.add(y, sae.decode(z, sae.measure(x)))
    facts = {
        "model_name": data.meta.get("model"),
        "context_size": data.meta.get("context"),
        "max_norm": data.max_norm(recipe.reads[0]) if len(recipe.reads) == 1 else None,
        "n_tokens": run.n_tokens,
        "l0": active.l0 if fvu.rows else None,
        "fvu": fvu.value if fvu.rows else None,
        "dead_share": trainer.dead_share,
        "training_architecture": sae.architecture,
        "sparselens_version": _version(),
    }
    if recipe.reads != (UNNAMED,) and not sae.reads:
        facts["hook_name"] = recipe.reads[0]
    sae.metadata |= {key: value for key, value in facts.items() if value is not None}
    return sae


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

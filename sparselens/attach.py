"""Putting sparse things on a live model: edits, steering, ablation, dictionary splices; and taking them off."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparselens.errors import FitError, InputError
from sparselens.models.engine import Change, Context, Edit, Weight
from sparselens.models.live import LiveModel
from sparselens.models.sites import order

if TYPE_CHECKING:
    from sparselens.measure.reports import Report

Sites = str | Iterable[str] | None
Judge = Callable[[Any, Tensor], Tensor]  # takes codes and the reconstruction, which it gives back


@runtime_checkable
class Attachment(Protocol):
    """Anything that can be put on a live model."""

    def edits(self, model: LiveModel, at: Sites = None) -> Sequence[Change]:
        """What to install; `at` overrides the attachment's own sites. Raises `FitError` if it does not fit."""
        ...


class Lens:
    """What `with m.attach(...) as lens` gives: the model with something on it.

    Attributes:
        model: the live model.
        thing: what was attached.
        at: where it was asked to sit (None: its own sites).
        sites: the sites that carry edits, in execution order of installation.
    """

    def __init__(self, model: LiveModel, thing: Any, at: Sites, sites: list[str]):
        self.model, self.thing, self.at, self.sites = model, thing, at, sites

    def __repr__(self) -> str:
        return f"Lens on {self.model.name!r} at {', '.join(self.sites) or 'no site'}"

    def report(self, texts: Any, **settings: Any) -> "Report":
        """Measure the attachment on texts: loss, KL and agreement against the model with nothing attached.

        `settings` go to `measure.fidelity`.
        """
        from sparselens.measure import fidelity

        return fidelity(self.model, self.thing, texts, self.at, **settings)


@contextmanager
def attach(model: LiveModel, thing: Any, at: Sites = None) -> Iterator[Lens]:
    """Attach for the length of the block. Order in a list, and outer before inner, is the order of application.

    The model is as it was afterwards, also after an exception or an interrupt.

    Raises:
        SiteError: an unknown site. FitError: the attachment does not fit. InputError: not an attachment.
    """
    todo = changes_of(thing, model, at)
    with model._engine.attach(todo):
        yield Lens(model, thing, at, list(dict.fromkeys(c.site for c in todo if not isinstance(c, Weight))))


def changes_of(thing: Any, model: LiveModel, at: Sites = None) -> list[Change]:
    """The edits, swaps and weights of an attachment, or of a list of attachments in order."""
    if isinstance(thing, list | tuple):
        return [c for one in thing for c in changes_of(one, model, at)]
    if not hasattr(thing, "edits"):
        raise InputError(
            f"cannot attach a {type(thing).__name__}: give an SAE, sl.edit(site, fn), sl.steer(...), "
            "sl.ablate(site), sl.replace(sae), or a list of them."
        )
    return list(thing.edits(model, at))


class edit:
    """Change the value at a site by a function.

    Args:
        site: site name, alias or glob.
        fn: `fn(value)` or `fn(value, context)`; returns the new value, or None to leave it. Shapes are those of the
            site table; `context` tells mask, token ids, positions, cached length and step. It must not change `value`
            in place.

    Example:
        >>> with m.attach(sl.edit("blocks.3.hook_mlp_out", lambda x: 0.5 * x)): m.loss(texts)
    """

    def __init__(self, site: str | Iterable[str], fn: Callable[..., Tensor | None]):
        self.site, self.fn = site, fn
        self._call = fn if _takes_context(fn) else lambda value, _context: fn(value)

    def edits(self, model: LiveModel, at: Sites = None) -> list[Edit]:
        return [Edit(s, _checked(self._call)) for s in model.resolve_all(self.site if at is None else at)]


def _takes_context(fn: Callable) -> bool:
    try:
        kinds = [
            p.kind
            for p in inspect.signature(fn).parameters.values()
            if p.default is p.empty or p.kind is p.VAR_POSITIONAL
        ]
    except (TypeError, ValueError):  # builtins tell nothing of their arguments
        return False
    return len(kinds) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds


def _checked(fn: Callable[[Tensor, Context], Tensor | None]) -> Callable[[Tensor, Context], Tensor | None]:
    """An edit may not change the shape: the error then names the site, not a layer three modules later."""

    def call(value: Tensor, context: Context) -> Tensor | None:
        new = fn(value, context)
        if new is not None and (not torch.is_tensor(new) or new.shape != value.shape):
            got = list(new.shape) if torch.is_tensor(new) else type(new).__name__
            raise InputError(
                f"the edit at {context.site} returned {got}; the value there has shape "
                f"{list(value.shape)}, and an edit must keep it."
            )
        return new

    return call


class ablate:
    """Replace the value at a site by a constant.

    Args:
        site: site name, alias or glob.
        value: a number, or a tensor that broadcasts to the value, such as its mean `[d]`.
    """

    def __init__(self, site: str | Iterable[str], value: float | Tensor = 0.0):
        self.site, self.value = site, value

    def edits(self, model: LiveModel, at: Sites = None) -> list[Edit]:
        def fn(x: Tensor, _context: Context) -> Tensor:
            return torch.as_tensor(self.value, dtype=x.dtype, device=x.device).expand_as(x)

        return [Edit(s, _checked(fn)) for s in model.resolve_all(self.site if at is None else at)]


class replace:
    """Splice a dictionary into the forward pass: the value becomes its reconstruction.

    A transcoder is fed at the site it reads, and its output replaces the value at the site it writes. Values outside
    the dictionary's range (`sae.applies(x)` is False, such as attention sinks whose norm is far above anything it was
    trained on) pass through untouched.

    The first tokens it meets are held against the l0 and fvu that its file records, at no cost: far from them, the
    run ends with a `FitError`. Nothing is judged where something else is on the model before it.

    Args:
        sae: a dictionary with `encode`, `decode`, `measure` and `applies`.
        error_term: add back what the reconstruction misses. The output is then unchanged, while gradients reach the
            latents: only the reconstruction carries them, the error does not.
        force: attach although the SAE was recorded for another model or site, or does badly here.
    """

    def __init__(self, sae: Any, error_term: bool = False, force: bool = False):
        self.sae, self.error_term, self.force = sae, error_term, force

    def edits(self, model: LiveModel, at: Sites = None) -> list[Edit]:
        return spliced(self.sae, model, at, self.force, self._new, self._put)

    def _new(self, x: Tensor, judge: Judge) -> Tensor:
        z = self.sae.encode(x)
        return judge(z, self.sae.decode(z, self.sae.measure(x)))

    def _put(self, y: Tensor, new: Tensor, applies: Tensor) -> Tensor:
        new = new.to(y.dtype)
        if self.error_term:
            # forward: exactly y; backward: the gradient goes through the reconstruction only
            new = _Through.apply(y, new)
        return torch.where(applies[..., None], new, y)


class _Through(torch.autograd.Function):
    """`reconstruction + (x - reconstruction).detach()`, with the sum taken as `x` bit for bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reconstruction: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class steer:
    """Set features of a dictionary to given values, and leave all else, the dictionary's error included, as it is.

    The change is `decode(set(z)) - decode(z)`, added to the stream.

    Args:
        sae: a dictionary.
        feature: index of a latent, or several.
        value: the activation to set, or one per feature.
        force: steer although the SAE was recorded for another model or site, or does badly here.
    """

    def __init__(self, sae: Any, feature: int | Sequence[int], value: float | Sequence[float], *, force: bool = False):
        self.sae, self.force = sae, force
        self.features = [feature] if isinstance(feature, int) else [int(f) for f in feature]
        self.values = (
            [float(value)] * len(self.features) if isinstance(value, int | float) else [float(v) for v in value]
        )
        if len(self.features) != len(self.values):
            raise InputError(
                f"{len(self.features)} features but {len(self.values)} values: give one value a feature, "
                "or one for all."
            )
        bad = [f for f in self.features if not 0 <= f < sae.d_sae]
        if bad:
            raise InputError(f"feature {bad[0]} does not exist: this SAE has features 0 to {sae.d_sae - 1}.")

    def edits(self, model: LiveModel, at: Sites = None) -> list[Edit]:
        edits = spliced(self.sae, model, at, self.force, self._change, lambda y, new, _: y + new.to(y.dtype))
        return edits if self.features else []

    def _change(self, x: Tensor, judge: Judge) -> Tensor:
        latents = self.sae.encode(x)
        dense = latents.dense() if hasattr(latents, "dense") else latents
        changed = dense.clone()
        changed[..., self.features] = torch.tensor(self.values, dtype=dense.dtype, device=dense.device)
        tokens = self.sae.measure(x)
        return self.sae.decode(changed, tokens) - judge(latents, self.sae.decode(dense, tokens))


def spliced(
    sae: Any,
    model: LiveModel,
    at: Sites,
    force: bool,
    compute: Callable[[Tensor, Judge], Tensor],
    put: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Edit]:
    """Edits that feed a dictionary where it reads and change the value where it writes.

    `put(value, compute(read, judge), applies(read))` is the new value; `compute` hands its codes and reconstruction
    through `judge`. A dictionary that reads or writes several sites has them side by side in what `compute` takes and
    gives.
    """
    reads, writes = fitting_places(sae, model, at, force)
    watch = None if force or not hasattr(sae, "watch") else sae.watch(model)

    def judge(x: Tensor, target: Tensor, context: Context) -> Judge:
        return _unjudged if watch is None else watch.on(x, target, context)

    if reads == writes and len(_names(sae, "reads")) <= 1:

        def splice(x: Tensor, context: Context) -> Tensor:
            return put(x, compute(x, judge(x, x, context)), sae.applies(x))

        return _watched(watch, [Edit(s, _checked(splice)) for s in reads])
    seen: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def read(x: Tensor, context: Context) -> None:
        seen[context.site] = x.clone()  # some models change tensors in place later

    def write(y: Tensor, context: Context) -> Tensor:
        x = torch.cat([seen[s] for s in reads], dim=-1)
        if context.site == writes[0]:
            new = compute(x, judge(x, y if len(writes) == 1 else x, context))
            made.update(zip(writes, new.chunk(len(writes), dim=-1), strict=True))
        return put(y, made[context.site], sae.applies(x))

    return _watched(watch, [Edit(s, read) for s in reads] + [Edit(s, _checked(write)) for s in writes])


def _watched(watch: Any, edits: list[Edit]) -> list[Edit]:
    """The edits of a splice, which what judges it must know."""
    if watch is not None:
        watch.mine = edits
    return edits


def _unjudged(_codes: Any, reconstruction: Tensor) -> Tensor:
    return reconstruction


def fitting_places(sae: Any, model: LiveModel, at: Sites, force: bool = False) -> tuple[list[str], list[str]]:
    """The sites that a dictionary reads and those it writes on a model.

    Raises:
        FitError: as `fitting_sites`; or it writes a site that the forward pass reaches before all it reads are known.
    """
    recorded = _names(sae, "reads"), _names(sae, "writes")
    if recorded[0] == recorded[1] and len(recorded[0]) <= 1 and sae.d_in == getattr(sae, "d_out", sae.d_in):
        sites = fitting_sites(sae, model, at, force)
        return sites, sites
    _same_model_or_raise(sae, model, force)
    known = [[model.resolve(s) for s in names] for names in recorded]
    places = known if at is None else _places_given(model.resolve_all(at), known, force)
    if not all(places):
        raise FitError("this transcoder does not say what it reads and writes: pass at=[site read, site written].")
    for verb, sites, width in (("reads", places[0], sae.d_in), ("writes", places[1], sae.d_out)):
        for site in sites:
            if model.width(site) != width // len(sites):
                raise FitError(
                    f"this SAE {verb} {width // len(sites)} numbers a token at {site}, which has {model.width(site)}."
                )
    last, first = max(places[0], key=order), min(places[1], key=order)
    if order(last) > order(first):
        raise FitError(
            f"this SAE reads {last}, which comes after {first}, which it writes: it cannot be spliced into one "
            "forward pass. Capture its sites with m.capture and encode them instead."
        )
    return places[0], places[1]


def _places_given(sites: list[str], known: list[list[str]], force: bool) -> list[list[str]]:
    """What a transcoder reads and writes when `at` names the two sites."""
    if len(sites) != 2:
        raise FitError(f"a transcoder takes at=[site read, site written], two sites; got {', '.join(sites)}.")
    given = [sites[:1], sites[1:]]
    if all(known) and given != known and not force:
        raise FitError(
            f"this transcoder reads {', '.join(known[0])} and writes {', '.join(known[1])}, not {sites[0]} and "
            f"{sites[1]}. To put it there all the same, attach sl.replace(sae, force=True)."
        )
    return given


def _names(sae: Any, role: str) -> tuple[str, ...]:
    """Sites that a dictionary reads or writes; one that knows of `site` alone does both there."""
    own = getattr(sae, role, None)
    return own if own is not None else tuple(s for s in (sae.site,) if s)


def fitting_sites(sae: Any, model: LiveModel, at: Sites, force: bool = False) -> list[str]:
    """Where a dictionary goes on a model: `at`, or its own site (the one it reads).

    Raises:
        FitError: recorded for another model or site (unless `force`), of another width, or for no site at all.
    """
    if at is None and not sae.site:
        raise FitError(
            "this SAE does not say which site it belongs to: pass at=..., such as "
            f"at={model.sites('*hook_resid_post')[model.n_layers // 2]!r}."
        )
    sites = model.resolve_all(sae.site if at is None else at)
    _same_model_or_raise(sae, model, force)
    if not force and sae.site and at is not None and sites != model.resolve_all(sae.site):
        raise FitError(
            f"this SAE was made for {sae.site}, not for {', '.join(sites)}. To put it there all the same, "
            "attach sl.replace(sae, force=True)."
        )
    for site in sites:
        width = model.width(site)
        if width != sae.d_in:
            near = [s for s in (sae.site,) if s] or ["a site of that width"]
            raise FitError(
                f"this SAE reads {sae.d_in} numbers a token (d_in), but {site} has {width}. It belongs at {near[0]}."
            )
    return sites


def _same_model_or_raise(sae: Any, model: LiveModel, force: bool) -> None:
    if not force and sae.model_name and not same_model(sae.model_name, model.name):
        raise FitError(
            f"this SAE was made for the model {sae.model_name!r}, not {model.name!r}. If they are the same "
            "weights, attach sl.replace(sae, force=True)."
        )


def same_model(recorded: str, name: str) -> bool:
    """Whether two model names mean the same model: case and the organisation before the slash do not count."""
    return recorded.rsplit("/", 1)[-1].lower() == name.rsplit("/", 1)[-1].lower()

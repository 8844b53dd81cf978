"""The one mechanism: edits become torch hooks on the modules of a live model, and come off without a trace."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.errors import FitError, SiteError
from sparselens.models.attention_function import AttentionSwitch, Heads
from sparselens.models.families import Bind, Binder
from sparselens.models.sites import ATTENTION_KINDS, split

SwapFn = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class Stop(BaseException):
    """Ends a forward pass early. Not an `Exception`, so that model code cannot swallow it."""


@dataclass(frozen=True)
class Denoising:
    """Where a masked diffusion model is in writing an answer.

    Attributes:
        step: forward passes made before this one, over all blocks of the answer.
        steps: forward passes in all.
        prompt: tokens of the prompt, at the start of each row.
    """

    step: int
    steps: int
    prompt: int


@dataclass
class Pass:
    """What is known about the forward pass under way.

    ids, positions `[b, pos]` int64 and mask `[b, pos]` bool (real tokens) cover the tokens of this pass; `past` is
    the number of cached positions before them and `step` counts passes since `past` was 0. `cached` tells whether
    the pass was called with a cache, to be filled or to be read. `denoising` is set where a diffusion model writes.
    """

    ids: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    past: int = 0
    step: int = -1
    cached: bool = False
    denoising: Denoising | None = None


@dataclass(frozen=True)
class Context:
    """Handed to the function of an edit: the site, and the pass under way."""

    site: str
    run: Pass

    @property
    def mask(self) -> Tensor | None:
        """Real tokens of this pass, bool `[b, pos]`; None when the caller ran the native model without ids."""
        return self.run.mask

    @property
    def ids(self) -> Tensor | None:
        return self.run.ids

    @property
    def positions(self) -> Tensor | None:
        return self.run.positions

    @property
    def past(self) -> int:
        return self.run.past

    @property
    def step(self) -> int:
        return self.run.step

    @property
    def denoising(self) -> Denoising | None:
        return self.run.denoising


@dataclass(frozen=True)
class Edit:
    """Look at or change the value at a site.

    Args:
        site: canonical name.
        fn: `(value, context) -> new value, or None to leave it`. It must not change the value in place.
        attends: it decides what the layer attends to, as an `Attend` does: there can be one of them at a site.
    """

    site: str
    fn: Callable[[Tensor, Context], Tensor | None] = field(repr=False)
    attends: bool = False


@dataclass(frozen=True)
class Swap:
    """Compute a linear layer another way, for the length of an attachment.

    Args:
        site: canonical name of what the layer reads, such as `blocks.3.mlp.gate.hook_in`; see `LiveModel.linear`.
        fn: `(x, original, context) -> output`; `original(x)` is the layer as it was, or the swap put on before.
            Edits of the layer's input come before it, edits of its output after it.
    """

    site: str
    fn: Callable[[Tensor, Callable[[Tensor], Tensor], Context], Tensor] = field(repr=False)


@dataclass(frozen=True)
class Weight:
    """Put another tensor in the place of a parameter. The parameter itself is kept and comes back as it was.

    Args:
        module: whose parameter it is.
        name: its name there, such as "weight".
        value: the tensor to use; its shape may differ. Where two modules share a parameter, only this one changes.
    """

    module: nn.Module = field(repr=False)
    name: str
    value: Tensor = field(repr=False)


@dataclass(frozen=True)
class Attend:
    """Compute the attention of a layer another way, for the length of an attachment; not on a TransformerLens bridge,
    which has an attention of its own.

    Args:
        site: the layer's mask, such as `blocks.3.attn.hook_mask`.
        fn: `(heads, context) ->` the output `[b, heads, q, d_head]`; or a bool keep mask `[b, heads, q, k]`, which is
            taken as an edit of the mask; or None to leave the layer as it is.
    """

    site: str
    fn: Callable[[Heads, Context], Tensor | None] = field(repr=False)


Change = Edit | Swap | Weight | Attend


class Engine:
    """Puts edits on one module tree. Shared by every `LiveModel` that wraps the same module.

    Args:
        model: the transformers module whose forward is called.
        binder: site kind -> where it sits.
        find: path in the binder -> module.
        hook_out: how the output of a module is edited; nnsight has its own way.
        swap_forward: how the forward of a module is exchanged; nnsight has its own way.
    """

    def __init__(
        self,
        model: nn.Module,
        binder: Binder,
        find: Callable[[str], nn.Module],
        hook_out: "Callable[[nn.Module, list], Any] | None" = None,
        swap_forward: "Callable[[nn.Module, SwapFn], Any] | None" = None,
    ):
        self.model = model
        self.binder = binder
        self.find = find
        self.hook_out = hook_out or hook_output
        self.swap_forward = swap_forward or SwappedForward
        self.lock = threading.RLock()
        self.run = Pass()
        self.given_mask: Tensor | None = None
        self._stack: list[list[Change]] = []
        self._handles: list[Any] = []
        self._attention = AttentionSwitch(model)

    @contextmanager
    def attach(self, changes: Sequence[Change]) -> Iterator[None]:
        """Put `changes` on for the length of the context; nests. Other threads wait (the hooks are the module's)."""
        with self.lock:
            self._stack.append(list(changes))
            try:
                self._install()
                yield
            finally:
                self._stack.pop()
                self._install()

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Take everything off for the length of the context."""
        with self.lock:
            stack, self._stack = self._stack, []
            try:
                self._install()
                yield
            finally:
                self._stack = stack
                self._install()

    @property
    def touches_attention(self) -> bool:
        """Whether an edit now on sits inside the attention function."""
        changes = [c for level in self._stack for c in level]
        return any(split(c.site)[0] in ATTENTION_KINDS for c in changes if isinstance(c, Edit | Attend))

    def linear(self, site: str) -> nn.Module | None:
        """The linear layer that reads a site; None if the site is not the input of just one such layer."""
        kind, layer = split(site)
        bind = self.binder[kind]
        path = bind.path.replace("{i}", str(layer))
        # a bridge has a hook point before the layer, and the layer inside its own module
        found: Any = self.find(path.removesuffix(".hook_in"))
        found = getattr(found, "original_component", found)
        reads = bind.where == "in" or path.endswith(".hook_in")
        weight = getattr(found, "weight", None)
        return found if reads and torch.is_tensor(weight) and weight.dim() == 2 else None

    def _install(self) -> None:
        """Make the module equal to the stack of changes, outermost first."""
        self._take_off()
        changes = [c for level in self._stack for c in level]
        if not changes:
            return
        try:
            for weight in (c for c in changes if isinstance(c, Weight)):
                self._handles.append(_Replaced(weight))
            for swap in (c for c in changes if isinstance(c, Swap)):
                self._handles.append(self._swapped(swap))
            # last: edits of outputs go around swaps
            self._register([c for c in changes if isinstance(c, Edit | Attend)])
        except BaseException:
            self._take_off()
            raise

    def _take_off(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._attention.close()

    def _swapped(self, swap: Swap) -> Any:
        layer, context = self.linear(swap.site), Context(swap.site, self.run)
        if layer is None:
            raise SiteError(f"{swap.site} is not the input of a linear layer, so there is none to compute otherwise.")
        return self.swap_forward(layer, lambda x, original: swap.fn(x, original, context))

    def _register(self, edits: list[Edit | Attend]) -> None:
        attending = [edit.site for edit in edits if isinstance(edit, Attend) or edit.attends]
        if len(set(attending)) < len(attending):
            raise FitError("two attachments compute the attention of the same layer: take one off, or give them other "
                           "layers with at=..., or other phases with sl.attention.Pair.")
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        groups: dict[tuple[str, str], list[tuple[Bind, Edit]]] = {}
        inside: dict[str, list[tuple[str, Callable[[Any], Tensor | None]]]] = {}
        for edit in edits:
            kind, layer = split(edit.site)
            bind = self.binder[kind]
            path = bind.path.replace("{i}", str(layer))
            if bind.where == "attention":
                call = self._call(edit)
                name = "attend" if isinstance(edit, Attend) else kind.rsplit("hook_", 1)[1]
                inside.setdefault(path, []).append((name, call))
            elif isinstance(edit, Attend):
                raise SiteError(f"{edit.site}: the attention of this model cannot be exchanged, only its mask edited.")
            else:
                groups.setdefault((path, bind.where), []).append((bind, edit))
        for (path, where), members in groups.items():
            module = self.find(path)
            calls = [(bind.view, self._call(edit)) for bind, edit in members]
            self._handles.append(hook_input(module, calls) if where == "in" else self.hook_out(module, calls))
        if inside:
            self._attention.open({self.find(p): calls for p, calls in inside.items()})

    def _call(self, edit: Edit | Attend) -> Callable[[Any], Tensor | None]:
        context = Context(edit.site, self.run)
        return lambda value: edit.fn(value, context)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Note what this pass is about: called before every forward of the model while edits are on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask = kwargs.get("attention_mask")
        run = self.run
        run.ids, run.past, run.positions = ids, past, kwargs.get("position_ids")
        run.step = run.step + 1 if past else 0
        run.cached = cache is not None or kwargs.get("use_cache") is True
        run.mask = None
        if ids is not None:
            run.mask = torch.ones_like(ids, dtype=torch.bool)
            if mask is not None and mask.dim() == 2:
                run.mask = mask[:, -ids.shape[1] :].bool()
            if self.given_mask is not None and self.given_mask.shape == ids.shape:
                run.mask = self.given_mask


class _Replaced:
    """A parameter exchanged for another tensor; `remove()` puts the parameter back."""

    def __init__(self, weight: Weight):
        self.owner, self.name = weight.module._parameters, weight.name
        self.before = self.owner[weight.name]
        self.owner[weight.name] = nn.Parameter(weight.value, requires_grad=False)

    def remove(self) -> None:
        self.owner[self.name] = self.before


class SwappedForward:
    """A module whose forward is `fn(x, original)`; `remove()` undoes it."""

    def __init__(self, module: nn.Module, fn: SwapFn):
        self.module, self.before = module, module.__dict__.get("forward")
        original = module.forward
        module.__dict__["forward"] = lambda x: fn(x, original)

    def remove(self) -> None:
        if self.before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.before


def _apply(value: Tensor, calls: list[tuple[Any, Callable]]) -> Tensor | None:
    """Run the calls in order over a value; None when nothing changed."""
    changed = False
    for view, call in calls:
        shown = view.get(value) if view is not None else value
        new = call(shown)
        if new is not None:
            value = view.put(value, new) if view is not None else new
            changed = True
    return value if changed else None


def hook_input(module: nn.Module, calls: list) -> Any:
    """Edit the first tensor that a module is called with; returns a handle with `remove()`."""

    def hook(_module, args, kwargs):
        positional = bool(args)
        key = None if positional else next(k for k, v in kwargs.items() if torch.is_tensor(v))
        new = _apply(args[0] if positional else kwargs[key], calls)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if positional else (args, {**kwargs, key: new})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def edited_output(output: Any, calls: list) -> Any:
    """A module's output (a tensor, or a tuple that starts with one) after the calls; None when nothing changed."""
    whole = torch.is_tensor(output)
    new = _apply(output if whole else output[0], calls)
    if new is None:
        return None
    return new if whole else (new, *output[1:])


def hook_output(module: nn.Module, calls: list) -> Any:
    """Edit what a module returns; returns a handle with `remove()`."""
    return module.register_forward_hook(lambda _module, _args, output: edited_output(output, calls))


_ENGINES: "weakref.WeakKeyDictionary[nn.Module, Engine]" = weakref.WeakKeyDictionary()


def engine_for(model: nn.Module, make: Callable[[], Engine]) -> Engine:
    """The engine of a module: one for all wrappers of it, so that edits of two wrappers know of each other."""
    if model not in _ENGINES:
        _ENGINES[model] = make()
    return _ENGINES[model]

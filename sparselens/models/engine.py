"""The one mechanism: edits become torch hooks on the modules of a live model, and come off without a trace."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.models.attention_function import AttentionSwitch
from sparselens.models.families import Bind, Binder
from sparselens.models.sites import ATTENTION_KINDS, split


class Stop(BaseException):
    """Ends a forward pass early. Not an `Exception`, so that model code cannot swallow it."""


@dataclass
class Pass:
    """What is known about the forward pass under way.

    ids, positions `[b, pos]` int64 and mask `[b, pos]` bool (real tokens) cover the tokens of this pass; `past` is
    the number of cached positions before them and `step` counts passes since `past` was 0.
    """

    ids: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    past: int = 0
    step: int = -1


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


@dataclass(frozen=True)
class Edit:
    """Look at or change the value at a site.

    Args:
        site: canonical name.
        fn: `(value, context) -> new value, or None to leave it`. It must not change the value in place.
    """

    site: str
    fn: Callable[[Tensor, Context], Tensor | None] = field(repr=False)


class Engine:
    """Puts edits on one module tree. Shared by every `LiveModel` that wraps the same module.

    Args:
        model: the transformers module whose forward is called.
        binder: site kind -> where it sits.
        find: path in the binder -> module.
        hook_out: how the output of a module is edited; nnsight has its own way.
    """

    def __init__(
        self,
        model: nn.Module,
        binder: Binder,
        find: Callable[[str], nn.Module],
        hook_out: "Callable[[nn.Module, list], Any] | None" = None,
    ):
        self.model = model
        self.binder = binder
        self.find = find
        self.hook_out = hook_out or hook_output
        self.lock = threading.RLock()
        self.run = Pass()
        self.given_mask: Tensor | None = None
        self._stack: list[list[Edit]] = []
        self._handles: list[Any] = []
        self._attention = AttentionSwitch(model)

    @contextmanager
    def attach(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Put `edits` on for the length of the context; nests. Other threads wait (the hooks are the module's)."""
        with self.lock:
            self._stack.append(list(edits))
            try:
                self._install()
                yield
            finally:
                self._stack.pop()
                self._install()

    @property
    def touches_attention(self) -> bool:
        """Whether an edit now on sits inside the attention function."""
        return any(split(e.site)[0] in ATTENTION_KINDS for edits in self._stack for e in edits)

    def _install(self) -> None:
        """Make the hooks on the module equal to the stack of edits, outermost first."""
        while self._handles:
            self._handles.pop().remove()
        self._attention.close()
        edits = [e for level in self._stack for e in level]
        if not edits:
            return
        try:
            self._register(edits)
        except BaseException:
            while self._handles:
                self._handles.pop().remove()
            self._attention.close()
            raise

    def _register(self, edits: list[Edit]) -> None:
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        groups: dict[tuple[str, str], list[tuple[Bind, Edit]]] = {}
        inside: dict[str, list[tuple[str, Callable[[Tensor], Tensor | None]]]] = {}
        for edit in edits:
            kind, layer = split(edit.site)
            bind = self.binder[kind]
            path = bind.path.replace("{i}", str(layer))
            if bind.where == "attention":
                call = self._call(edit)
                inside.setdefault(path, []).append((kind.rsplit("hook_", 1)[1], call))
            else:
                groups.setdefault((path, bind.where), []).append((bind, edit))
        for (path, where), members in groups.items():
            module = self.find(path)
            calls = [(bind.view, self._call(edit)) for bind, edit in members]
            self._handles.append(hook_input(module, calls) if where == "in" else self.hook_out(module, calls))
        if inside:
            self._attention.open({self.find(p): calls for p, calls in inside.items()})

    def _call(self, edit: Edit) -> Callable[[Tensor], Tensor | None]:
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
        run.mask = None
        if ids is not None:
            run.mask = torch.ones_like(ids, dtype=torch.bool)
            if mask is not None and mask.dim() == 2:
                run.mask = mask[:, -ids.shape[1] :].bool()
            if self.given_mask is not None and self.given_mask.shape == ids.shape:
                run.mask = self.given_mask


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

"""The three ways a model can be open: plain transformers, a TransformerLens bridge, an nnsight wrapper.

Each is only a choice of module to call and of where the sites sit; everything else is written once.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.errors import InputError
from sparselens.models.attention_function import edited_mask
from sparselens.models.engine import Engine, SwapFn, SwappedForward, edited_output, engine_for, hook_output
from sparselens.models.families import Bind, Binder, Flat, bind_transformers

BACKENDS = ("torch", "transformer_lens", "nnsight")
_B = "blocks.{i}."


@dataclass(frozen=True)
class Opened:
    """A native model made ready: the module that runs, its engine, and the module-path names of its sites."""

    backend: str
    native: Any
    module: Any
    engine: Engine
    paths: dict[tuple[str, str], str]


def sizes(config: Any) -> tuple[int, int]:
    """Layers and query heads, whatever the family calls them."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return config.num_hidden_layers, config.num_attention_heads


def detect(native: Any) -> str:
    """Name of the backend that a native model belongs to, without importing libraries the user has not."""
    origins = {c.__module__.split(".", 1)[0] for c in type(native).__mro__}
    if "transformer_lens" in origins:
        return "transformer_lens"
    if "nnsight" in origins:
        return "nnsight"
    if isinstance(native, nn.Module):
        return "torch"
    raise InputError(
        f"cannot wrap a {type(native).__name__}: give a transformers model, a TransformerLens bridge or "
        "an nnsight model."
    )


def open_native(native: Any, tokenizer: Any, backend: str | None) -> Opened:
    """Open a native model on a backend. A plain transformers model may be put on any of the three.

    Raises:
        InputError: the model is compiled, bridged already, or cannot go on that backend.
    """
    found = detect(native)
    wanted = backend or found
    if wanted not in BACKENDS:
        raise InputError(f"backend={backend!r} is unknown; valid are {', '.join(BACKENDS)}.")
    if found == "torch":
        _refuse_unhookable(native)
        native = {
            "torch": lambda: native,
            "transformer_lens": lambda: boot_bridge(native, tokenizer),
            "nnsight": lambda: boot_nnsight(native, tokenizer),
        }[wanted]()
    elif found != wanted:
        raise InputError(f"a {type(native).__name__} is open on the {found} backend already, not on {wanted!r}.")
    return {"torch": _open_torch, "transformer_lens": _open_bridge, "nnsight": _open_nnsight}[wanted](native)


def _refuse_unhookable(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise InputError(
            "a compiled model ignores hooks added later, silently. Wrap the model before torch.compile "
            "(for torch.compile(m) that is m._orig_mod)."
        )
    if any(type(m).__module__.startswith("transformer_lens") for m in model.modules()):
        raise InputError(
            "this transformers model was taken over by a TransformerLens bridge; wrap the bridge itself, "
            "or load the model anew."
        )


def _open_torch(model: nn.Module) -> Opened:
    binder = bind_transformers(model, *sizes(model.config))
    engine = engine_for(model, lambda: Engine(model, binder, model.get_submodule))
    return Opened("torch", model, model, engine, _paths(binder))


def _paths(binder: Binder) -> dict[tuple[str, str], str]:
    """Module paths as further names of sites; where two kinds share a path, the first bound keeps it."""
    found: dict[tuple[str, str], str] = {}
    for kind, bind in binder.items():
        if bind.where != "attention" and bind.view is None:
            found.setdefault((bind.path, bind.where), kind)
    return found


def boot_nnsight(model: nn.Module, tokenizer: Any) -> Any:
    """Wrap a transformers model for nnsight. The tokenizer is copied: nnsight changes its padding side."""
    try:
        from nnsight import TransformersModel
    except ImportError as error:
        raise InputError("backend='nnsight' needs nnsight 0.8 or newer: pip install 'sparselens[nnsight]'.") from error
    return TransformersModel(model, tokenizer=copy.deepcopy(tokenizer), task="text-generation")


def _open_nnsight(native: Any) -> Opened:
    model = native._module
    binder = bind_transformers(model, *sizes(model.config))
    make = lambda: Engine(model, binder, model.get_submodule, hook_nnsight_output, swap_nnsight_forward)  # noqa: E731
    engine = engine_for(model, make)
    return Opened("nnsight", native, model, engine, _paths(binder))


class _Body:
    """Another body for a module that nnsight runs, so that a trace's `.output` shows the change (torch hooks run
    after nnsight has read the output). `remove()` undoes it.
    """

    def __init__(self, state: Any, body: Any):
        self.state, self.before, state.body = state, state.body, body

    def remove(self) -> None:
        self.state.body = self.before


def hook_nnsight_output(module: nn.Module, calls: list) -> Any:
    """Edit what a module returns, where nnsight sees it; returns a handle with `remove()`."""
    state = module.__dict__.get("__nnsight__")
    if state is None:
        return hook_output(module, calls)
    body = state.body

    def edited(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = body(module, *args, **kwargs)
        new = edited_output(output, calls)
        return output if new is None else new

    return _Body(state, edited)


def swap_nnsight_forward(module: nn.Module, fn: SwapFn) -> Any:
    """Exchange the forward of a module, where nnsight sees it; returns a handle with `remove()`."""
    state = module.__dict__.get("__nnsight__")
    if state is None:
        return SwappedForward(module, fn)
    body = state.body
    return _Body(state, lambda module, x: fn(x, lambda value: body(module, value)))


def boot_bridge(model: Any, tokenizer: Any, own: bool = False) -> Any:
    """Boot a TransformerLens bridge. A bridge rewrites the module it boots on, so it gets a copy unless `own`."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise InputError(
            "backend='transformer_lens' needs TransformerLens 4 or newer: pip install 'sparselens[transformer_lens]'."
        ) from error
    taken = model if own else copy.deepcopy(model)
    taken.config.architectures = taken.config.architectures or [type(model).__name__]
    name = taken.config.name_or_path or type(model).__name__
    return TransformerBridge.boot_transformers(name, hf_model=taken, tokenizer=copy.deepcopy(tokenizer))


def _open_bridge(bridge: Any) -> Opened:
    model = bridge.original_model
    binder = {kind: bind for kind, bind in _BRIDGE.items() if _serves(bridge, bind)}
    _drop_foreign(bridge, binder)
    engine = engine_for(model, lambda: Engine(model, binder, lambda path: follow(bridge, path)))
    return Opened("transformer_lens", bridge, model, engine, {})


def follow(root: Any, path: str) -> Any:
    """Walk a dotted path through attributes and list indices."""
    for step in path.split("."):
        root = root[int(step)] if step.isdigit() else getattr(root, step)
    return root


def _serves(bridge: Any, bind: Bind) -> bool:
    try:
        return isinstance(follow(bridge, bind.path.replace("{i}", "0")), nn.Module)
    except (AttributeError, IndexError, KeyError):
        return False


def _drop_foreign(bridge: Any, binder: Binder) -> None:
    """Take out names that mean something else here: expert layers reuse MLP names, parallel blocks have no middle."""
    mlp = getattr(bridge.blocks[0], "mlp", None)
    if mlp is not None and "moe" in type(mlp).__name__.lower():
        for kind in [k for k in binder if ".mlp." in k and k != _B + "mlp.hook_in"]:
            del binder[kind]
    if not hasattr(mlp, "gate"):
        binder.pop(_B + "mlp.hook_pre_linear", None)
        if _B + "mlp.hook_pre" in binder:
            binder[_B + "mlp.hook_pre"] = Bind(_B + "mlp.in.hook_out", "out")
    for kind, norm in ((_B + "hook_attn_out", "ln1_post"), (_B + "hook_mlp_out", "ln2_post")):
        if getattr(bridge.blocks[0], norm, None) is not None:  # Gemma 2 and 3 norm what they write
            binder[kind] = _hook(f"{_B}{norm}.hook_out")
    if getattr(bridge.original_model.config, "use_parallel_residual", False):
        binder.pop(_B + "hook_resid_mid", None)


class ScoresView:
    """Scores of the bridge with masked entries shown as -inf, whatever number the bridge masks with."""

    def get(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(~self.keep(scores), -torch.inf)

    def put(self, scores: Tensor, new: Tensor) -> Tensor:
        empty = (new == -torch.inf).all(-1, keepdim=True)  # a padding query: leave the bridge's own row
        return torch.where(empty, scores, new)

    @staticmethod
    def keep(scores: Tensor) -> Tensor:
        return scores > torch.finfo(scores.dtype).min / 2


class MaskView(ScoresView):
    """The keep mask that the bridge's masked scores imply; a new mask is applied to the scores."""

    def get(self, scores: Tensor) -> Tensor:
        return self.keep(scores)

    def put(self, scores: Tensor, new: Tensor) -> Tensor:
        keep = edited_mask([("mask", lambda _: new)], self.keep(scores), scores.shape[1])
        return super().put(scores, scores.masked_fill(~keep, -torch.inf))


def _hook(path: str, view: Any = None) -> Bind:
    return Bind(path, "out", view)


_A, _M = _B + "attn.", _B + "mlp."
#: Hook points of a TransformerLens 4 bridge. Query, key, value and z come with heads apart in some families.
_BRIDGE: Binder = {
    "hook_embed": _hook("embed.hook_out"),
    _B + "hook_resid_pre": _hook(_B + "hook_in"),
    _A + "hook_in": _hook(_B + "ln1.hook_out"),
    **{f"{_A}{x}.hook_in": _hook(f"{_A}{x}.hook_in") for x in "qkv"},
    **{f"{_A}hook_{x}": _hook(f"{_A}{x}.hook_out", Flat()) for x in "qkv"},
    _A + "hook_rot_q": _hook(_A + "hook_rot_q"),
    _A + "hook_rot_k": _hook(_A + "hook_rot_k"),
    _A + "hook_mask": _hook(_A + "hook_attn_scores", MaskView()),
    _A + "hook_attn_scores": _hook(_A + "hook_attn_scores", ScoresView()),
    _A + "hook_pattern": _hook(_A + "hook_pattern"),
    _A + "hook_z": _hook(_A + "o.hook_in", Flat()),
    _B + "hook_attn_out": _hook(_A + "hook_out"),
    _B + "hook_resid_mid": _hook(_B + "ln2.hook_in"),
    _M + "hook_in": _hook(_M + "hook_in"),
    _M + "gate.hook_in": _hook(_M + "gate.hook_in"),
    _M + "hook_pre": _hook(_M + "gate.hook_out"),
    _M + "in.hook_in": _hook(_M + "in.hook_in"),
    _M + "hook_pre_linear": _hook(_M + "in.hook_out"),
    _M + "hook_post": _hook(_M + "out.hook_in"),
    _B + "hook_mlp_out": _hook(_M + "hook_out"),
    _B + "hook_resid_post": _hook(_B + "hook_out"),
    "ln_final.hook_out": _hook("ln_final.hook_out"),
    "unembed.hook_in": _hook("unembed.hook_in"),
    "unembed.hook_out": _hook("unembed.hook_out"),
}

"""Where each site sits in a transformers module: found from the module tree, checked later by `verify`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.errors import InputError

_B = "blocks.{i}."
_ATTN = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")


@dataclass(frozen=True)
class Part:
    """One of q, k, v inside a fused projection output `[b, pos, 3*heads*d_head]`.

    `layout` is "thirds" (GPT-2: all q, then all k, then all v) or "per_head" (GPT-NeoX: q, k, v of head 0, then of
    head 1, ...).
    """

    index: int
    layout: str
    n_heads: int

    def get(self, fused: Tensor) -> Tensor:
        if self.layout == "thirds":
            return fused.chunk(3, dim=-1)[self.index]
        split = fused.unflatten(-1, (self.n_heads, 3, -1))
        return split[..., self.index, :].flatten(-2)

    def put(self, fused: Tensor, new: Tensor) -> Tensor:
        if self.layout == "thirds":
            parts = list(fused.chunk(3, dim=-1))
            parts[self.index] = new
            return torch.cat(parts, dim=-1)
        parts = list(fused.unflatten(-1, (self.n_heads, 3, -1)).unbind(-2))
        parts[self.index] = new.unflatten(-1, (self.n_heads, -1))
        return torch.stack(parts, dim=-2).flatten(-3)


@dataclass(frozen=True)
class Flat:
    """Heads kept apart by the host `[b, pos, heads, d_head]`, shown flat as `[b, pos, heads*d_head]`."""

    def get(self, value: Tensor) -> Tensor:
        return value.flatten(-2) if value.dim() == 4 else value

    def put(self, value: Tensor, new: Tensor) -> Tensor:
        return new.reshape(value.shape)


@dataclass(frozen=True)
class Bind:
    """How a site is reached: a module path (`{i}` = layer), its input or output, and an optional view of it.

    `where` is "in", "out", or "attention" (inside the attention function of the module at `path`).
    """

    path: str
    where: str
    view: Any = None


Binder = dict[str, Bind]


def find_layers(model: Any, n_layers: int) -> str:
    """Path of the list of blocks: the shortest-named `ModuleList` with one entry a layer.

    Raises:
        InputError: there is none, so the model is not a decoder that sparselens knows how to read.
    """
    hits = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not hits:
        raise InputError(
            f"{type(model).__name__}: found no list of {n_layers} blocks; "
            "sparselens reads decoder-only language models of transformers."
        )
    return min(hits, key=len)


def _child(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((n for n in names if getattr(module, n, None) is not None), None)


def bind_transformers(model: Any, n_layers: int, n_heads: int) -> Binder:
    """Sites of a plain transformers causal language model, from the shape of its module tree."""
    layers = find_layers(model, n_layers)
    root = layers.rsplit(".", 1)[0] if "." in layers else ""
    block = model.get_submodule(layers)[0]
    at = layers + ".{i}"
    sites: Binder = {_B + "hook_resid_pre": Bind(at, "in"), _B + "hook_resid_post": Bind(at, "out")}
    attn, mlp = _child(block, _ATTN), _child(block, _MLP)
    if attn:
        sites |= _attention(getattr(block, attn), f"{at}.{attn}", n_heads)
    if mlp:
        sites |= _mlp(getattr(block, mlp), f"{at}.{mlp}")
    if attn and mlp:
        sites |= _residual(block, at, attn, mlp, bool(getattr(model.config, "use_parallel_residual", False)))
    sites["hook_embed"] = Bind(_name_of(model, model.get_input_embeddings()), "out")
    if model.get_output_embeddings() is not None:
        unembed = _name_of(model, model.get_output_embeddings())
        sites |= {"unembed.hook_in": Bind(unembed, "in"), "unembed.hook_out": Bind(unembed, "out")}
    norm = _child(model.get_submodule(root), ("norm", "ln_f", "final_layer_norm", "final_layernorm"))
    if norm:
        sites["ln_final.hook_out"] = Bind(f"{root}.{norm}".lstrip("."), "out")
    return sites


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(n for n, m in model.named_modules() if m is wanted)


def _attention(attn: nn.Module, at: str, n_heads: int) -> Binder:
    a = _B + "attn."
    sites: Binder = {a + "hook_in": Bind(at, "in"), _B + "hook_attn_out": Bind(at, "out")}
    for letter in "qkv":
        if hasattr(attn, f"{letter}_proj"):
            sites[f"{a}{letter}.hook_in"] = Bind(f"{at}.{letter}_proj", "in")
            sites[f"{a}hook_{letter}"] = Bind(f"{at}.{letter}_proj", "out")
    fused = _child(attn, ("c_attn", "query_key_value"))
    if fused:
        layout = "thirds" if fused == "c_attn" else "per_head"
        for index, letter in enumerate("qkv"):  # one projection: its input, attn.hook_in, cannot be edited for q alone
            sites[f"{a}hook_{letter}"] = Bind(f"{at}.{fused}", "out", Part(index, layout, n_heads))
    out = _child(attn, ("o_proj", "out_proj", "c_proj", "dense"))
    if out:
        sites[a + "hook_z"] = Bind(f"{at}.{out}", "in")
    for kind in ("rot_q", "rot_k", "mask", "attn_scores", "pattern"):
        sites[f"{a}hook_{kind}"] = Bind(at, "attention")
    return sites


def _mlp(mlp: nn.Module, at: str) -> Binder:
    m = _B + "mlp."
    sites: Binder = {m + "hook_in": Bind(at, "in"), _B + "hook_mlp_out": Bind(at, "out")}
    if getattr(mlp, "experts", None) is not None:  # experts are fused tensors: nothing to hook inside
        return sites
    up = _child(mlp, ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in"))
    down = _child(mlp, ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out"))
    act = _child(mlp, ("act_fn", "act", "activation_fn"))
    if up:
        sites[m + "in.hook_in"] = Bind(f"{at}.{up}", "in")
    if getattr(mlp, "gate_proj", None) is not None:
        sites[m + "gate.hook_in"] = Bind(f"{at}.gate_proj", "in")
        sites[m + "hook_pre"] = Bind(f"{at}.gate_proj", "out")
        sites[m + "hook_pre_linear"] = Bind(f"{at}.{up}", "out")
    elif up:
        sites[m + "hook_pre"] = Bind(f"{at}.{up}", "out")
    if act and isinstance(getattr(mlp, act), nn.Module):
        sites[m + "hook_act"] = Bind(f"{at}.{act}", "out")
    if down:
        sites[m + "hook_post"] = Bind(f"{at}.{down}", "in")
    return sites


def _residual(block: nn.Module, at: str, attn: str, mlp: str, parallel: bool) -> Binder:
    """Where the stream is written; Gemma 2 and 3 and OLMo 2 norm the writes, so the write is the norm's output."""
    has: Callable[[str], bool] = lambda name: getattr(block, name, None) is not None  # noqa: E731
    if has("post_feedforward_layernorm"):
        middle = f"{at}.pre_feedforward_layernorm" if has("pre_feedforward_layernorm") else f"{at}.{mlp}"
        return {
            _B + "hook_attn_out": Bind(f"{at}.post_attention_layernorm", "out"),
            _B + "hook_mlp_out": Bind(f"{at}.post_feedforward_layernorm", "out"),
            _B + "hook_resid_mid": Bind(middle, "in"),
        }
    norm = _child(block, ("post_attention_layernorm", "ln_2"))
    return {_B + "hook_resid_mid": Bind(f"{at}.{norm}", "in")} if norm and not parallel else {}

"""The closed table of sites: every named place in a forward pass, what it means and what else it is called.

Resolver, documentation and tests all derive from `KINDS`. Canonical names are those of TransformerLens.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparselens.errors import SiteError, closest


@dataclass(frozen=True)
class Kind:
    """A row of the site table. `{i}` in a name stands for the layer."""

    name: str
    shape: str
    meaning: str
    aliases: tuple[str, ...] = ()

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.name


_B = "blocks.{i}."
#: In execution order. Shapes: b = rows, pos = tokens, q/k = query and key positions, heads = query heads.
KINDS: tuple[Kind, ...] = (
    Kind("hook_embed", "b pos d_model", "output of the token embedding", ("embed", "embed.hook_out")),
    Kind(_B + "hook_resid_pre", "b pos d_model", "residual stream entering the block", (_B + "hook_in",)),
    Kind(
        _B + "attn.hook_in",
        "b pos d_model",
        "what the attention layer reads (after its norm)",
        (_B + "ln1.hook_out",),
    ),
    Kind(_B + "attn.q.hook_in", "b pos d_model", "input of the query projection"),
    Kind(_B + "attn.hook_q", "b pos heads*d_head", "queries before rotation, flat", (_B + "attn.q.hook_out",)),
    Kind(_B + "attn.k.hook_in", "b pos d_model", "input of the key projection"),
    Kind(_B + "attn.hook_k", "b pos kv_heads*d_head", "keys before rotation, flat", (_B + "attn.k.hook_out",)),
    Kind(_B + "attn.v.hook_in", "b pos d_model", "input of the value projection"),
    Kind(_B + "attn.hook_v", "b pos kv_heads*d_head", "values, flat", (_B + "attn.v.hook_out",)),
    Kind(_B + "attn.hook_rot_q", "b heads pos d_head", "queries as the attention uses them (rotated)"),
    Kind(_B + "attn.hook_rot_k", "b kv_heads k d_head", "keys as the attention uses them (rotated)"),
    Kind(
        _B + "attn.hook_mask",
        "b heads q k",
        "boolean keep mask (True = may look), causality and padding included",
    ),
    Kind(_B + "attn.hook_attn_scores", "b heads q k", "scaled scores before the softmax; masked ones are -inf"),
    Kind(_B + "attn.hook_pattern", "b heads q k", "attention weights after the softmax; rows sum to 1"),
    Kind(
        _B + "attn.hook_z",
        "b pos heads*d_head",
        "what the output projection reads, flat",
        (_B + "attn.o.hook_in",),
    ),
    Kind(
        _B + "hook_attn_out",
        "b pos d_model",
        "what attention adds to the residual stream",
        (_B + "attn.hook_out",),
    ),
    Kind(
        _B + "hook_resid_mid",
        "b pos d_model",
        "residual stream after attention was added",
        (_B + "ln2.hook_in",),
    ),
    Kind(_B + "mlp.hook_in", "b pos d_model", "what the MLP reads (after its norm)", (_B + "ln2.hook_out",)),
    Kind(_B + "mlp.gate.hook_in", "b pos d_model", "input of the gate projection (gated MLPs)"),
    Kind(
        _B + "mlp.hook_pre",
        "b pos d_mlp",
        "what the activation function reads: the gate's output in a gated MLP",
        (_B + "mlp.gate.hook_out",),
    ),
    Kind(_B + "mlp.hook_act", "b pos d_mlp", "output of the activation function"),
    Kind(_B + "mlp.in.hook_in", "b pos d_model", "input of the up projection"),
    Kind(_B + "mlp.hook_pre_linear", "b pos d_mlp", "output of the up projection in a gated MLP"),
    Kind(_B + "mlp.hook_post", "b pos d_mlp", "what the down projection reads", (_B + "mlp.out.hook_in",)),
    Kind(
        _B + "hook_mlp_out",
        "b pos d_model",
        "what the MLP adds to the residual stream",
        (_B + "mlp.hook_out",),
    ),
    Kind(_B + "hook_resid_post", "b pos d_model", "residual stream leaving the block", (_B + "hook_out",)),
    Kind("ln_final.hook_out", "b pos d_model", "output of the final norm", ("final_norm",)),
    Kind("unembed.hook_in", "b pos d_model", "what the unembedding reads"),
    Kind(
        "unembed.hook_out",
        "b pos d_vocab",
        "output of the unembedding (logits before any soft cap)",
        ("logits",),
    ),
)
BY_NAME: dict[str, Kind] = {k.name: k for k in KINDS}
ATTENTION_KINDS = frozenset(k.name for k in KINDS if "rot_" in k.name or k.shape == "b heads q k")
_ALIASES = {alias: k.name for k in KINDS for alias in k.aliases}
_LAYER = re.compile(r"^blocks\.(\d+)\.")


def split(name: str) -> tuple[str, int | None]:
    """`"blocks.3.hook_resid_post"` -> `("blocks.{i}.hook_resid_post", 3)`."""
    found = _LAYER.match(name)
    if not found:
        return name, None
    return _LAYER.sub(_B, name), int(found[1])


def expand(kind: str, n_layers: int) -> list[str]:
    """All site names of a kind in a model with `n_layers` layers."""
    return [kind.replace("{i}", str(i)) for i in range(n_layers)] if "{i}" in kind else [kind]


def order(name: str) -> tuple[int, int]:
    """Sort key: execution order in the forward pass."""
    kind, layer = split(name)
    rank = next(r for r, k in enumerate(KINDS) if k.name == kind)
    if layer is None:
        return (-1 if rank == 0 else 10**9, rank)
    return (layer, rank)


def module_alias(name: str) -> tuple[str, str]:
    """Normalise a module path alias: `"model.layers[3].output"` -> `("model.layers.3", "out")`."""
    path = re.sub(r"\[(\d+)\]", r".\1", name)
    if path.endswith((".input", ".inputs")):
        return path.rsplit(".", 1)[0], "in"
    return path.removesuffix(".output"), "out"


class SiteTable:
    """The sites that one model serves, and the resolver of names.

    Args:
        available: kind names that the model's backend can serve.
        n_layers: number of blocks.
        paths: module path and direction ("in" or "out") -> kind, for path aliases; `{i}` marks the layer.
    """

    def __init__(self, available: Iterable[str], n_layers: int, paths: dict[tuple[str, str], str]):
        self.n_layers = n_layers
        self.available = set(available)
        self.paths = paths
        self.disabled: dict[str, str] = {}

    def disable(self, kind: str, reason: str) -> None:
        """Take a kind out of service; asking for it then raises `SiteError` with the reason."""
        self.available.discard(kind)
        self.disabled[kind] = reason

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a glob, in execution order.

        Raises:
            SiteError: nothing matches.
        """
        every = sorted((s for k in self.available for s in expand(k, self.n_layers)), key=order)
        if pattern in ("*", ""):
            return every
        if not any(c in pattern for c in "*?["):
            return [self.resolve(pattern)]
        hits = [s for s in every if fnmatch.fnmatchcase(s, pattern)] or self._alias_glob(pattern, every)
        if not hits:
            raise SiteError(
                f"no site matches {pattern!r}.{closest(pattern, every)} See m.sites() for all sites of this model."
            )
        return hits

    def _alias_glob(self, pattern: str, every: list[str]) -> list[str]:
        hits = {
            s
            for alias, kind in _ALIASES.items()
            if kind in self.available
            for a, s in zip(expand(alias, self.n_layers), expand(kind, self.n_layers), strict=True)
            if fnmatch.fnmatchcase(a, pattern)
        }
        return [s for s in every if s in hits]

    def resolve(self, name: Any) -> str:
        """Canonical name of a site given by any of its names.

        Raises:
            SiteError: unknown name, layer out of range, or a site this model does not serve.
        """
        if not isinstance(name, str):
            raise SiteError(f"a site is named by a string, got {type(name).__name__}: {name!r}")
        kind, layer = split(name)
        kind = _ALIASES.get(kind, kind)
        if kind not in BY_NAME:
            kind, layer = self._from_path(name)
        if layer is not None and layer >= self.n_layers:
            raise SiteError(f"{name!r}: this model has layers 0 to {self.n_layers - 1}.")
        if kind in self.disabled:
            raise SiteError(f"{name!r} is switched off for this model: {self.disabled[kind]}")
        if kind not in self.available:
            valid = self.names()
            raise SiteError(f"this model has no site {name!r} ({BY_NAME[kind].meaning}).{closest(name, valid)}")
        return kind.replace("{i}", str(layer)) if layer is not None else kind

    def _from_path(self, name: str) -> tuple[str, int | None]:
        path, where = module_alias(name)
        for (template, direction), kind in self.paths.items():
            pattern = re.escape(template).replace(re.escape("{i}"), r"(\d+)")
            found = re.fullmatch(rf"(?:\w+\.)?{pattern}", path) or re.fullmatch(pattern, _with_root(path, template))
            if found and direction == where:
                return kind, int(found[1]) if found.groups() else None
        valid = self.names() + [a for k in _ALIASES for a in expand(k, 1)]
        raise SiteError(f"unknown site {name!r}.{closest(name, valid)} See m.sites() for all sites of this model.")


def _with_root(path: str, template: str) -> str:
    """Put the base model's prefix before a path that lacks it, as in sparsify's `"layers.3"`."""
    root = template.split(".", 1)[0]
    return path if path.startswith(root + ".") else f"{root}.{path}"

"""One tiny forward pass that checks what the site table promises, and switches off what does not hold."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparselens.models.sites import order

if TYPE_CHECKING:
    from sparselens.models.live import LiveModel

_B = "blocks.{i}."
_A, _M = _B + "attn.", _B + "mlp."


class Check(NamedTuple):
    """One identity: relative error over the probed layers, and whether it holds."""

    identity: str
    error: float
    holds: bool


#: identity -> sites it needs, sites that go off when it fails
_IDENTITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "next resid_pre = resid_post": (
        ("hook_resid_pre", "hook_resid_post"),
        ("hook_resid_pre", "hook_resid_post"),
    ),
    "resid_mid = resid_pre + attn_out": (
        ("hook_resid_mid", "hook_resid_pre", "hook_attn_out"),
        ("hook_resid_mid", "hook_attn_out"),
    ),
    "resid_post = resid_mid + mlp_out": (
        ("hook_resid_post", "hook_resid_mid", "hook_mlp_out"),
        ("hook_resid_mid", "hook_mlp_out"),
    ),
    "resid_post = resid_pre + attn_out + mlp_out": (
        ("hook_resid_post", "hook_resid_pre", "hook_attn_out", "hook_mlp_out"),
        ("hook_attn_out", "hook_mlp_out"),
    ),
    "pattern = softmax(scores)": (
        ("attn.hook_pattern", "attn.hook_attn_scores"),
        ("attn.hook_pattern", "attn.hook_attn_scores", "attn.hook_mask"),
    ),
    "z = pattern v": (
        ("attn.hook_z", "attn.hook_pattern", "attn.hook_v"),
        ("attn.hook_z", "attn.hook_pattern", "attn.hook_v"),
    ),
    "mlp.post = act * pre_linear": (
        ("mlp.hook_post", "mlp.hook_act", "mlp.hook_pre_linear"),
        ("mlp.hook_post", "mlp.hook_act", "mlp.hook_pre_linear"),
    ),
}


_TOLERANCE, _ROUNDINGS = 1e-3, 4


def verify(m: "LiveModel") -> list[Check]:
    """Probe the identities of the site table on six tokens at the first, middle and last block.

    A kind that the pass never reaches, or whose identity fails, is disabled on this model: asking for it raises
    `SiteError` with the reason. The error is relative to the largest value of the left-hand side. It may be 1e-3, or
    four times the distance between neighbouring numbers of a shorter format: 0.004 in float16, 0.03 in bfloat16.
    """
    layers = sorted({0, 1, m.n_layers // 2, m.n_layers - 1} & set(range(m.n_layers)))
    ids = torch.arange(6)[None] % m.vocab_size + min(3, m.vocab_size - 6)
    batch = next(m.batches(ids))
    got = m._read(batch, sorted((s for i in layers for s in _at_layer(m, i)), key=order))
    for kind in [k for k in m.table.available if k.replace("{i}", "0") not in got]:
        m.table.disable(kind, "the forward pass of this model never reaches it.")
    wanted = {_B + s for needs, _ in _IDENTITIES.values() for s in needs} & m.table.available
    tolerance = max(_TOLERANCE, *(_ROUNDINGS * torch.finfo(x.dtype).eps for x in got.values() if x.is_floating_point()))
    checks = []
    for identity, (needs, blame) in _IDENTITIES.items():
        if not {_B + s for s in needs} <= wanted:
            continue
        error = max(_error(identity, i, got, m) for i in layers)
        holds = error <= tolerance
        checks.append(Check(identity, error, holds))
        if not holds:
            for site in blame:
                m.table.disable(_B + site, f"on this model {identity!r} does not hold (relative error {error:.2g}).")
    return checks


def _at_layer(m: "LiveModel", layer: int) -> list[str]:
    """All sites of one block; with block 0 come those outside the blocks."""
    return [k.replace("{i}", str(layer)) for k in m.table.available if "{i}" in k or layer == 0]


def _error(identity: str, i: int, got: dict[str, Tensor], m: "LiveModel") -> float:
    def at(site: str, layer: int = i) -> Tensor:
        return got[f"blocks.{layer}.{site}"].float()

    if identity.startswith("next"):
        if f"blocks.{i + 1}.hook_resid_pre" not in got:
            return 0.0
        return _relative(at("hook_resid_pre", i + 1), at("hook_resid_post"))
    if identity.startswith("pattern"):
        return _relative(at("attn.hook_pattern"), torch.softmax(at("attn.hook_attn_scores"), -1))
    if identity.startswith("z ="):
        v = at("attn.hook_v").unflatten(-1, (m.n_kv_heads, -1)).transpose(1, 2)
        v = v.repeat_interleave(m.n_heads // m.n_kv_heads, 1)
        return _relative(at("attn.hook_z"), (at("attn.hook_pattern") @ v).transpose(1, 2).flatten(-2))
    if identity.startswith("mlp.post"):
        return _relative(at("mlp.hook_post"), at("mlp.hook_act") * at("mlp.hook_pre_linear"))
    left, right = identity.split(" = ")
    return _relative(at(f"hook_{left}"), sum((at(f"hook_{s}") for s in right.split(" + ")), torch.zeros(())))


def _relative(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / left.abs().max().clamp(min=1e-12))

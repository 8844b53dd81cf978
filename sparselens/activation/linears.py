"""The linear layers of a model that a sparsifier can act on: where they are, their weights, their sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.attach import Sites
from sparselens.errors import FitError, InputError, SiteError, closest
from sparselens.models.live import LiveModel
from sparselens.models.sites import expand, order, split

_B = "blocks.{i}."
#: Projection -> kind of the site that it reads, in execution order.
PROJECTIONS: dict[str, str] = {
    "q": _B + "attn.q.hook_in",
    "k": _B + "attn.k.hook_in",
    "v": _B + "attn.v.hook_in",
    "o": _B + "attn.hook_z",
    "gate": _B + "mlp.gate.hook_in",
    "up": _B + "mlp.in.hook_in",
    "down": _B + "mlp.hook_post",
}
_PROJ = {kind: proj for proj, kind in PROJECTIONS.items()}


def projection(site: str) -> str:
    """Which projection reads a site: "q" for `blocks.3.attn.q.hook_in`."""
    return _PROJ[split(site)[0]]


@dataclass(frozen=True)
class Linear:
    """A linear layer of a live model, `y = x W^T + b`.

    Attributes:
        site: what it reads; its name everywhere in this room.
        layer: index of its block.
        proj: "q", "k", "v", "o", "gate", "up" or "down".
        module: the layer itself.
        transposed: whether its parameter is kept as `[in, out]` (a `Conv1D`).
    """

    site: str
    layer: int
    proj: str
    module: nn.Module = field(repr=False)
    transposed: bool

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The weight as it is at this moment, `[out, in]`, a view."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach().T if self.transposed else weight.detach()

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, "bias", None)

    @property
    def d_in(self) -> int:
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        return self.weight.shape[0]

    @property
    def numel(self) -> int:
        """Weights of the layer, its bias not counted."""
        return self.weight.numel()


def linears(model: LiveModel, at: Sites = None) -> list[Linear]:
    """The projections of a model, in execution order.

    A family that fuses several projections into one layer serves those that stand alone (GPT-2 on plain transformers:
    o, up and down); layers of experts are not served.

    Args:
        model: a live model.
        at: only those that read these sites.

    Raises:
        FitError: there is none, or one of them is not a plain linear layer (a quantised one).
        SiteError: a site in `at` that no linear layer reads.
    """
    if at is None:
        kinds = [kind for kind in PROJECTIONS.values() if kind in model.table.available]
        sites = sorted((site for kind in kinds for site in expand(kind, model.n_layers)), key=order)
    else:
        sites = model.resolve_all(at)
        for site in sites:
            if split(site)[0] not in _PROJ:
                raise SiteError(
                    f"{site} is not the input of a projection, so nothing can be left out there. There are the inputs "
                    f"of {', '.join(PROJECTIONS)}, such as {linears(model)[0].site}."
                )
    if not sites:
        raise FitError(f"{type(model.module).__name__} has none of the projections {', '.join(PROJECTIONS)}.")
    return [_linear(model, site) for site in sites]


def _linear(model: LiveModel, site: str) -> Linear:
    try:
        module = model.linear(site)
    except SiteError as error:
        raise FitError(f"{site}: the layer that reads it holds no plain weight. {_QUANTISED}") from error
    kind, layer = split(site)
    weight: Tensor = module.weight  # type: ignore[assignment]
    if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point() or weight.itemsize < 2:
        raise FitError(f"{site}: the {type(module).__name__} there keeps its weight as {weight.dtype}. {_QUANTISED}")
    return Linear(site, layer or 0, _PROJ[kind], module, type(module).__name__ == "Conv1D")


_QUANTISED = "A quantised layer cannot be sparsified: load the model with its weights dequantised."


def checked_sparsity(sparsity: Any) -> float:
    """The number as it is, if it is a sparsity.

    Raises:
        InputError: not a number from 0 up to, but not including, 1.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not isfinite(sparsity):
        raise InputError(f"sparsity={sparsity!r} is no number: give the share of the input to leave out, such as 0.5.")
    if not 0 <= sparsity < 1:
        hint = f" Did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
        raise InputError(f"sparsity={sparsity:g} is not in [0, 1): 0 leaves out nothing, 0.5 half of the input.{hint}")
    return float(sparsity)


def spread(
    sparsity: float | int | Mapping[str, float],
    model: LiveModel,
    layers: list[Linear],
    default: float = 0.0,
    what: str = "sparsity",
) -> dict[str, float]:
    """The sparsity (or another number) of each layer, by site.

    Args:
        sparsity: one number for all, or projection ("k"), site or glob ("blocks.0.*") -> number; of several names for
            one layer the last counts.
        model: the model.
        layers: its layers.
        default: for layers not named.
        what: the number's name, for errors.

    Raises:
        InputError: a name that is neither a projection nor a site of `layers`.
    """
    if not isinstance(sparsity, Mapping):
        return {linear.site: float(sparsity) for linear in layers}
    found = {linear.site: default for linear in layers}
    for name, value in sparsity.items():
        named = [linear.site for linear in layers if linear.proj == name]
        if not named:
            try:
                named = [site for site in model.resolve_all(name) if site in found]
            except SiteError:
                named = []
        if not named:
            valid = [*dict.fromkeys(linear.proj for linear in layers), *found]
            raise InputError(
                f"{what} is given for {name!r}, which is no projection and no input of one here."
                f"{closest(name, valid)}"
            )
        found |= dict.fromkeys(named, value)
    return found


def column_norms(weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_in"]:
    """L2 norm of each column of `W`, which belongs to one input channel, in float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, dim=0, dtype=dtype).float()


def stamp(weight: Tensor) -> tuple[int, int]:
    """Differs when a tensor has been exchanged, moved, or changed in place (by other means than `.data`)."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version

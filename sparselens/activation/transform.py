"""WINA's orthogonalising transform (Chen et al., 2025): the same function, with orthogonal columns in k and gate."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.activation.linears import PROJECTIONS, Linear, linears, stamp
from sparselens.attach import Sites
from sparselens.errors import FitError
from sparselens.models.engine import Change, Context, Edit, Weight
from sparselens.models.live import LiveModel

_B = "blocks.{i}."
_PRE, _ATTN, _MID, _MLP = (_B + kind for kind in ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out"))
_PROBE = 8  # tokens on which the transform is compared with the model when it is made
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; else 0.1


class Orthogonal:
    """Rotates the residual stream so that in every block the weights of k and gate have orthogonal columns.

    An attachment that leaves the outputs as they are, up to rounding. The gain of each RMSNorm goes into the layers
    that read it; the stream before attention is turned into the right singular basis of k, the stream before the MLP
    into that of gate, and the layers that write the stream are turned along. Between two bases the shortcut is
    multiplied by a `[d_model, d_model]` matrix, twice a block: these are extra weights to read. What is attached to
    the residual stream beside it sees the rotated stream.

    It is computed once for a model, in float64, and again when its weights have changed. Tied embeddings are untied
    while it is on.

    Raises:
        FitError: the model is not a plain pre-norm one with RMSNorm, separate k, and a gated MLP.
    """

    def edits(self, model: LiveModel, at: Sites = None) -> Sequence[Change]:
        """What to install. It is made for a whole model, so `at` has no meaning."""
        return rotation(model).changes()


@dataclass(frozen=True)
class Rotation:
    """The transform of one model.

    Attributes:
        weights: layer, name of the parameter, new value.
        attn, mlp: per block `Q^T Q' - 1`, which turns the stream into the next basis, `[d, d]` float32.
    """

    weights: list[tuple[nn.Module, str, Tensor]]
    attn: list[Tensor]
    mlp: list[Tensor]

    def changes(self) -> list[Change]:
        slot = _Stream()
        found: list[Change] = [Weight(*weight) for weight in self.weights]
        for i, (attn, mlp) in enumerate(zip(self.attn, self.mlp, strict=True)):
            for before, after, turn in ((_PRE, _ATTN, attn), (_MID, _MLP, mlp)):
                found.append(Edit(before.replace("{i}", str(i)), slot.put))
                found.append(Edit(after.replace("{i}", str(i)), slot.turned(turn)))
        return found

    def of(self, linear: Linear) -> Tensor:
        """The new weight of a layer."""
        return next(value for owner, name, value in self.weights if owner is linear.module and name == "weight")

    @property
    def numel(self) -> int:
        """Weights that the shortcuts add."""
        return sum(turn.numel() for turn in (*self.attn, *self.mlp))


class _Stream:
    """The residual stream from before a layer to its output. Blocks run one after the other: one slot serves all."""

    def __init__(self) -> None:
        self.value: Any = None

    def put(self, x: Tensor, _context: Context) -> None:
        self.value = x

    def turned(self, turn: Tensor) -> Any:
        def add(y: Tensor, _context: Context) -> Tensor:
            x, self.value = self.value, None
            return (y.float() + x.float() @ turn.to(y.device)).to(y.dtype)

        return add


_MADE: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple, Rotation]]" = weakref.WeakKeyDictionary()


def rotation(model: LiveModel) -> Rotation:
    """The transform of a model with the weights it has now. Raises `FitError` as `Orthogonal` says."""
    parts = _Parts(model)
    now = tuple(stamp(parameter) for module in parts.modules for parameter in module.parameters())
    if model.module not in _MADE or _MADE[model.module][0] != now:
        with torch.no_grad():
            made = _make(parts)
        _probe(model, made)
        _MADE[model.module] = now, made
    return _MADE[model.module][1]


class _Parts:
    """The modules that the transform changes."""

    def __init__(self, model: LiveModel):
        self.model = model
        missing = [kind for kind in (*PROJECTIONS.values(), _PRE, _ATTN, _MID, _MLP, "ln_final.hook_out")
                   if kind not in model.table.available]
        if missing:
            raise self._unfit(f"it does not serve {missing[0]}")
        self.linear = {(linear.layer, linear.proj): linear for linear in linears(model)}
        engine = model._engine
        place = engine.binder[_PRE].path.removesuffix(".hook_in")
        blocks = [_inner(engine.find(place.replace("{i}", str(i)))) for i in range(model.n_layers)]
        self.norms = [(self._norm(block, "input_layernorm"), self._norm(block, "post_attention_layernorm"))
                      for block in blocks]
        if any(getattr(block, "post_feedforward_layernorm", None) is not None for block in blocks):
            raise self._unfit("it norms what its layers write")
        self.final = _inner(engine.find(engine.binder["ln_final.hook_out"].path.removesuffix(".hook_out")))
        self.embed, self.head = (_inner(module) for module in (model.module.get_input_embeddings(),
                                                               model.module.get_output_embeddings()))
        self.modules = [*(linear.module for linear in self.linear.values()), *(n for pair in self.norms for n in pair),
                        self.final, self.embed, self.head]

    def _norm(self, block: Any, name: str) -> nn.Module:
        found = _inner(getattr(block, name, None))
        if "RMSNorm" not in type(found).__name__:
            raise self._unfit(f"its blocks have no RMSNorm {name!r}")
        return found

    def _unfit(self, why: str) -> FitError:
        return FitError(f"the orthogonalising transform does not fit {type(self.model.module).__name__}: {why}. It "
                        "needs RMSNorm before attention and MLP, separate q, k, v and a gated MLP, as Llama has.")

    @property
    def one_plus(self) -> bool:
        """Gemma's norms multiply by (1 + weight)."""
        return "gemma" in type(self.model.module).__name__.lower()

    def gain(self, norm: nn.Module) -> Tensor:
        weight: Tensor = norm.weight.detach().double()  # type: ignore[operator,union-attr]
        return 1 + weight if self.one_plus else weight


def _inner(module: Any) -> Any:
    """A module inside the wrapper of a bridge."""
    return getattr(module, "original_component", module)


def right_basis(weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_in d_in"]:
    """V of the full singular value decomposition `W = U S V^T`, largest first, in float64.

    As the eigenvectors of `W^T W`, which takes a fifth of the time; the null space is told from the rest all the same.
    """
    weight = weight.double()
    return torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(-1)


def _make(parts: _Parts) -> Rotation:
    """Rows are tokens: the stream `r` becomes `r Q`, and a layer that reads it gets `W Q`."""
    n = parts.model.n_layers
    read = lambda i, proj: parts.linear[i, proj].weight.double() * parts.gain(  # noqa: E731
        parts.norms[i][proj in ("gate", "up")])
    q_attn = [right_basis(read(i, "k")) for i in range(n)]
    q_mlp = [right_basis(read(i, "gate")) for i in range(n)]
    after = [*q_attn[1:], q_attn[-1]]  # the last block goes back to its own basis
    new: list[tuple[nn.Module, str, Tensor]] = []

    def put(module: nn.Module, name: str, value: Tensor) -> None:
        new.append((module, name, value.to(getattr(module, name).dtype).contiguous()))

    def write(linear: Linear, basis: Tensor) -> None:
        put(linear.module, "weight", basis.T @ linear.weight.double())
        if linear.bias is not None:
            put(linear.module, "bias", linear.bias.detach().double() @ basis)

    for i in range(n):
        for proj, basis in (("q", q_attn), ("k", q_attn), ("v", q_attn), ("gate", q_mlp), ("up", q_mlp)):
            put(parts.linear[i, proj].module, "weight", read(i, proj) @ basis[i])
        write(parts.linear[i, "o"], q_mlp[i])
        write(parts.linear[i, "down"], after[i])
    put(parts.embed, "weight", parts.embed.weight.detach().double() @ q_attn[0])
    put(parts.head, "weight", (parts.head.weight.detach().double() * parts.gain(parts.final)) @ after[-1])
    for norm in (*(norm for pair in parts.norms for norm in pair), parts.final):
        weight: Tensor = norm.weight.detach()  # type: ignore[assignment,operator]
        put(norm, "weight", torch.zeros_like(weight) if parts.one_plus else torch.ones_like(weight))
    turns = [[(a.T @ b - torch.eye(len(a), dtype=a.dtype, device=a.device)).float() for a, b in zip(x, y, strict=True)]
             for x, y in ((q_attn, q_mlp), (q_mlp, after))]
    return Rotation(new, *turns)


def _probe(model: LiveModel, made: Rotation) -> None:
    """Compare the transformed model with the model, on a few tokens.

    Raises:
        FitError: they differ, so the model does something that the transform does not know of.
    """
    ids = torch.arange(_PROBE)[None] * (model.vocab_size // _PROBE)
    clean = model.run(ids).logits.float()
    with model._engine.attach(made.changes()):
        off = float((model.run(ids).logits.float() - clean).abs().max())
    if not off <= _CLOSE.get(model.dtype, 0.1) * float(clean.abs().max()):
        raise FitError(f"the orthogonalising transform does not fit {type(model.module).__name__}: its logits moved by "
                       f"{off:.2g}. The model scales or mixes its residual stream in a way of its own.")

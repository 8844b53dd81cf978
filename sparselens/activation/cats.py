"""CATS (Lee et al., 2024, arXiv 2404.08763): of a gated MLP, only units whose gate is large are computed."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparselens.activation.gates import Gate
from sparselens.activation.linears import PROJECTIONS, Linear, linears
from sparselens.activation.sparse_linear import SparseLinear
from sparselens.activation.sparsifier import Sparsifier
from sparselens.attach import Sites
from sparselens.errors import FitError, InputError, closest
from sparselens.models.engine import Context, Edit
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    from sparselens.activation.calibration import Calibration

SHARES = ("gate", "model")
PRE = "blocks.{i}.mlp.hook_pre"


class CATS(Sparsifier):
    """Sets `g_j = act(x W_gate)_j` to zero where `|g_j|` is small; `y = (g * x W_up) W_down`.

    The gate projection stays dense. Of up, the rows of units that are left out need not be read, of down the columns.
    All other layers stay dense too, so there is a cap on what of the whole model can be left out.

    Args:
        sparsity: share of the gate's units to leave out; or site or glob of the down projection -> share.
        of: "gate" as said; "model" takes `sparsity` as a share of the weights of all linear layers in the blocks, as
            the other methods have it. It must then be one number, below the cap.
        gate, dense_prefix, phase, calibration, speed: as for `Sparsifier`. The paper uses gate="threshold".
    """

    def __init__(
        self,
        sparsity: float | int | Mapping[str, float] = 0.5,
        *,
        of: str = "gate",
        gate: str = "topk",
        dense_prefix: int | float = 8,
        phase: str = "both",
        calibration: "Calibration | None" = None,
        speed: str = "auto",
    ):
        if of not in SHARES:
            raise InputError(f"of={of!r} is unknown; valid are {', '.join(SHARES)}.{closest(str(of), SHARES)}")
        if of == "model" and isinstance(sparsity, Mapping):
            raise InputError("of='model' needs one number as sparsity: the share of the whole model's weights.")
        self.of = of
        super().__init__(sparsity, gate=gate, dense_prefix=dense_prefix, phase=phase, calibration=calibration,
                         speed=speed)

    def layers(self, model: LiveModel, at: Sites = None) -> list[SparseLinear]:
        if PROJECTIONS["gate"] not in model.table.available:
            raise FitError(f"CATS needs an MLP with a gate; {type(model.module).__name__} has none. TEAL fits it.")
        ups = {linear.layer: linear for linear in linears(model) if linear.proj == "up"}
        downs = [linear for linear in linears(model, at) if linear.proj == "down"]
        if not downs:
            raise FitError("CATS acts on the inputs of the down projections, such as blocks.0.mlp.hook_post: none of "
                           "them is among the sites given as `at`.")
        share = self.shares(model, downs)
        slot = _Slot(activation_function(model))
        return [_Down(down, ups[down.layer], self.gate_for(down, share[down.site]), slot)
                for down in downs if share[down.site]]

    def shares(self, model: LiveModel, found: list[Linear]) -> dict[str, float]:
        share = super().shares(model, found)
        if self.of == "gate":
            return share
        every = linears(model)
        cap = sum(one.numel for one in every if one.proj in ("up", "down")) / sum(one.numel for one in every)
        if not float(self.sparsity) < cap:  # type: ignore[arg-type]
            raise FitError(f"CATS can leave out less than {cap:.1%} of this model's weights (up and down alone), so "
                           f"not {self.sparsity:.0%}.")
        return {site: value / cap for site, value in share.items()}

    def gate_for(self, linear: Linear, sparsity: float) -> Gate:
        return self.gate_at(PRE.replace("{i}", str(linear.layer)), linear.d_in, sparsity, False)


class _Slot:
    """The gate of the block under way. Blocks run one after the other, so one slot serves all."""

    def __init__(self, act: Callable[[Tensor], Tensor]):
        self.act = act
        self.value: Any = None

    def put(self, pre: Tensor, _context: Context) -> None:
        self.value = self.act(pre)


class _Down(SparseLinear):
    """The down projection, whose input channels are chosen by the gate."""

    def __init__(self, linear: Linear, up: Linear, gate: Gate, slot: _Slot):
        super().__init__(linear, gate)
        self.slot, self.skips = slot, (up, linear)

    def looks(self) -> list[Edit]:
        return [Edit(PRE.replace("{i}", str(self.linear.layer)), self.slot.put)]

    def signal(self, x: Tensor) -> Tensor:
        return self.slot.value.reshape(x.shape)

    def row(self, x: Tensor) -> Tensor:
        kept = x.masked_fill(~self.keep(x), 0)
        return self.columns.threshold(kept, None, 0.0, self.linear.bias)[0]


def activation_function(model: LiveModel) -> Callable[[Tensor], Tensor]:
    """The function between the gate projection and the product with up."""
    from transformers.activations import ACT2FN

    config: Any = model.module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    return ACT2FN[name]

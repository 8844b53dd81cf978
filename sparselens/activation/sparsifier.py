"""What all sparsifiers of linear layers share: which layers, how sparse, which tokens, how it is computed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparselens.activation.gates import GATES, Gate, Threshold, TopK, n_kept
from sparselens.activation.linears import Linear, checked_sparsity, linears, spread
from sparselens.activation.sparse_linear import SparseLinear, Watcher
from sparselens.activation.transform import Orthogonal, rotation
from sparselens.activation.unembedding import fast_unembedding
from sparselens.activation.window import Window
from sparselens.attach import Attachment, Sites, changes_of
from sparselens.errors import InputError, closest
from sparselens.models.engine import Change
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    from sparselens.activation.calibration import Calibration
    from sparselens.activation.channels import Channels
    from sparselens.activation.counting import Counted

ALLOCATIONS = ("uniform", "greedy")
SPEEDS = ("auto", "mask")
TRANSFORMS = (None, "orthogonal")


class Sparsifier:
    """Leaves out, token by token, the input channels of linear layers that matter least. An attachment.

    Args:
        sparsity: share of the input channels to leave out, from 0 up to (not including) 1; or projection, site or
            glob -> share, where layers not named stay dense (`{"gate": 0.5, "blocks.0.*": 0}`; the last that names a
            layer counts). With `allocation="greedy"`, of the weights of each block.
        gate: "topk" keeps the same number of channels for every token; "threshold" keeps scores above a number, which
            needs `calibration`.
        dense_prefix: first tokens of each row that stay dense: a count, or a share of the row.
        phase: where it acts: "prefill" (passes over several tokens), "decode" (one at a time) or "both".
        calibration: from `sl.calibrate`.
        allocation: "uniform" (the same sparsity in all layers), or "greedy" (shared out within each block, as
            `sl.activation.allocate` found).
        transform: "orthogonal" rotates the model first, so that the weight columns of k and gate are orthogonal; see
            `Orthogonal`. On small models this costs more than it brings: measure. A calibration must then be made
            with `Orthogonal()` on the model.
        speed: "auto" reads only the kept weight columns when a single token is computed and there is a kernel for it
            (a second copy of the weights is made for that), and the unembedding, which stays dense, by a kernel
            too; "mask" always multiplies with zeros, which saves nothing.

    Raises:
        InputError: an argument out of its range, or a threshold without calibration.
    """

    def __init__(
        self,
        sparsity: float | int | Mapping[str, float] = 0.5,
        *,
        gate: str = "topk",
        dense_prefix: int | float = 8,
        phase: str = "both",
        calibration: "Calibration | None" = None,
        allocation: str = "uniform",
        transform: str | None = None,
        speed: str = "auto",
    ):
        for name, value, valid in (("gate", gate, GATES), ("allocation", allocation, ALLOCATIONS),
                                   ("transform", transform, TRANSFORMS), ("speed", speed, SPEEDS)):
            if value not in valid:
                raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(map(str, valid))}."
                                 f"{closest(str(value), map(str, valid))}")
        self.sparsity: float | int | Mapping[str, float] = (
            {str(name): checked_sparsity(share) for name, share in sparsity.items()}
            if isinstance(sparsity, Mapping)
            else checked_sparsity(sparsity)
        )
        self.gate, self.allocation, self.speed, self.calibration = gate, allocation, speed, calibration
        self.transform = transform
        self.dense_prefix, self.phase = Window(dense_prefix, phase).dense_prefix, phase
        self._check_calibration()

    def _check_calibration(self) -> None:
        asked = [f"{k}={v!r}" for k, v in (("gate", self.gate), ("allocation", self.allocation))
                 if v in ("threshold", "greedy")]
        if asked and self.calibration is None:
            raise InputError(
                f"{' and '.join(asked)} needs to know how large the inputs of the layers are: make "
                f"cal = sl.calibrate(model, texts) and pass calibration=cal, or use gate='topk' with "
                "allocation='uniform', which need none."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sparsity}, gate={self.gate!r}, dense_prefix={self.dense_prefix})"

    @property
    def key(self) -> str:
        """The method, as a calibration keeps searches by it."""
        return f"{type(self).__name__}-{self.gate}" + (f"-{self.transform}" if self.transform else "")

    @property
    def ground(self) -> list[Attachment]:
        """What is put on the model first, and changes nothing by itself."""
        return [Orthogonal()] if self.transform else []

    def weighted(self, proj: str) -> bool:
        """Whether the score of a projection's channels is `|x_j| * ||W_:,j||` rather than `|x_j|`."""
        return False

    def edits(self, model: LiveModel, at: Sites = None) -> Sequence[Change]:
        """What to install: nothing for layers of sparsity 0. `at`: only at these inputs of linear layers."""
        return self.changes(model, at)

    def watched(self, watcher: Watcher) -> "Watched":
        """The same attachment, with somebody who is shown what every layer does."""
        return Watched(self, watcher)

    def counted(self, model: LiveModel) -> "Counted":
        """The same attachment, counting what it does; for reports."""
        from sparselens.activation.counting import Counted, Tally

        return Counted(self, Tally(model, rotation(model).numel if self.transform else 0))

    def channels(self, model: LiveModel, texts: Any, layer: int, proj: str, *, max_tokens: int = 256) -> "Channels":
        """Which channels survive for each token of some texts, in one layer. See `Channels`."""
        from sparselens.activation.channels import channels

        return channels(self, model, texts, layer, proj, max_tokens)

    def layers(self, model: LiveModel, at: Sites = None) -> list[SparseLinear]:
        """The layers computed sparsely, in execution order; those of sparsity 0 are left out."""
        found = linears(model, at)
        share = self.shares(model, found)
        return [self.layer(linear, share[linear.site]) for linear in found if share[linear.site]]

    def shares(self, model: LiveModel, found: list[Linear]) -> dict[str, float]:
        """The sparsity of each of some layers, by site."""
        if self.calibration is not None:
            self.calibration.check(model, found, rotation(model).of if self.transform else None)
        if self.allocation == "greedy":
            return self.calibration.shares(self, model, found)  # type: ignore[union-attr]
        return spread(self.sparsity, model, found)

    def layer(self, linear: Linear, sparsity: float) -> SparseLinear:
        """One layer at one sparsity."""
        return SparseLinear(linear, self.gate_for(linear, sparsity), self.weighted(linear.proj))

    def gate_for(self, linear: Linear, sparsity: float) -> Gate:
        """The gate of one layer."""
        return self.gate_at(linear.site, linear.d_in, sparsity, self.weighted(linear.proj))

    def gate_at(self, site: str, d_in: int, sparsity: float, weighted: bool) -> Gate:
        """The gate for scores at a site, of `d_in` channels."""
        if self.gate == "topk" or self.calibration is None:
            return TopK(n_kept(sparsity, d_in))
        return Threshold(self.calibration.threshold(site, sparsity, weighted))

    def changes(self, model: LiveModel, at: Sites = None, watcher: Watcher | None = None) -> list[Change]:
        """What to install, with somebody to show it to. See `edits`."""
        layers, window = self.layers(model, at), Window(self.dense_prefix, self.phase)
        swaps = [layer.swap(window, self.speed, watcher) for layer in layers]
        if swaps and at is None and watcher is None and self.speed != "mask":
            swaps += fast_unembedding(model)
        return [*changes_of(self.ground, model), *(look for layer in layers for look in layer.looks()), *swaps]


class Watched:
    """A sparsifier together with a watcher of what it does, as an attachment."""

    def __init__(self, sparsifier: Sparsifier, watcher: Watcher):
        self.sparsifier, self.watcher = sparsifier, watcher

    def edits(self, model: LiveModel, at: Sites = None) -> Sequence[Change]:
        return self.sparsifier.changes(model, at, self.watcher)

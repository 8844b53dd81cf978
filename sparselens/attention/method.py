"""What all sparse attentions share: what a method is asked, when it acts, and how it is put on a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.attention.executors import checked_executor
from sparselens.attention.pattern import Allowed, Pattern
from sparselens.errors import InputError, closest
from sparselens.models.attention_function import safe_softmax
from sparselens.models.engine import Change, Denoising
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    from sparselens.attention.applied import Counted, Recorder
    from sparselens.attention.look import Masks

PHASES = ("prefill", "decode", "both")


@dataclass(frozen=True)
class Layer:
    """What a method chooses a pattern for: the queries and keys of one layer in one pass.

    Attributes:
        query: `[b, heads, q, d_head]`, rotated.
        key: `[b, kv_heads, k, d_head]`, rotated; the queries are those of the last positions.
        allowed: what may be looked at; queries of padding may look at nothing.
        index: which layer.
        scale: what scores are multiplied with.
        state: what the method keeps of this layer from pass to pass; emptied when a new text begins.
        denoising: where a diffusion model is in writing, if one is.
    """

    query: Float[Tensor, "b h q d"]
    key: Float[Tensor, "b kv k d"]
    allowed: Allowed
    index: int
    scale: float
    state: dict[str, Any] = field(default_factory=dict)
    denoising: Denoising | None = None

    @property
    def n_kv(self) -> int:
        return self.key.shape[1]

    @property
    def real_keys(self) -> Bool[Tensor, "b k"]:
        """Keys that some query may look at: all but padding."""
        b, n_k = self.query.shape[0], self.allowed.n_k
        if self.allowed.mask is None:
            return torch.ones(b, n_k, dtype=torch.bool, device=self.query.device)
        return self.allowed.mask.any(1).any(-2).expand(b, -1)

    @property
    def real_queries(self) -> Bool[Tensor, "b q"]:
        """Queries that may look at some key: all but padding."""
        b, n_q = self.query.shape[0], self.allowed.n_q
        if self.allowed.mask is None:
            return torch.ones(b, n_q, dtype=torch.bool, device=self.query.device)
        return self.allowed.mask.any(1).any(-1).expand(b, -1)

    def part(self, start: int, stop: int) -> "Layer":
        """The same for some of the queries."""
        allowed = self.allowed.part(start, stop)
        query, key = self.query[:, :, start:stop], self.key[:, :, : allowed.n_k]
        return replace(self, query=query, key=key, allowed=allowed)

    def keys(self) -> Float[Tensor, "b h k d"]:
        """Keys, one for each query head."""
        return self.key.repeat_interleave(self.query.shape[1] // self.n_kv, 1)

    def last_rows(self, count: int) -> tuple[Int[Tensor, "b a"], Bool[Tensor, "b a"]]:
        """Indices of the last `count` real queries of each row, and which of them there are."""
        b, n_q = self.query.shape[0], self.allowed.n_q
        count = min(count, n_q)
        if self.allowed.mask is None:
            rows = torch.arange(n_q - count, n_q, device=self.query.device).expand(b, -1)
            return rows, torch.ones_like(rows, dtype=torch.bool)
        real = self.real_queries
        last = (real * torch.arange(1, n_q + 1, device=real.device)).amax(-1, keepdim=True)
        rows = last - count + torch.arange(count, device=real.device)
        inside = rows.clamp(min=0)
        return inside, (rows >= 0) & real.gather(1, inside)

    def attention(self, rows: Int[Tensor, "b a"], there: Bool[Tensor, "b a"]) -> Float[Tensor, "b h a k"]:
        """Attention weights of chosen queries over all keys, in float32; zeros where there is no such query."""
        index = rows[:, None, :, None]
        query = self.query.gather(2, index.expand(-1, self.query.shape[1], -1, self.query.shape[3]))
        scores = (query.float() @ self.keys().float().transpose(2, 3)) * self.scale
        if self.allowed.mask is not None:
            mask = self.allowed.mask.expand(rows.shape[0], -1, -1, -1)
            keep = mask.gather(2, index.expand(-1, mask.shape[1], -1, mask.shape[3])) & there[:, None, :, None]
        elif self.allowed.causal:
            keep = torch.arange(self.allowed.n_k, device=rows.device) <= index + self.allowed.offset
        else:
            return torch.softmax(scores, -1)
        return safe_softmax(scores.masked_fill(~keep, -torch.inf))


class SparseAttention:
    """A method that chooses which keys are looked at. An attachment.

    `prefill` passes are those over several tokens, `decode` passes those over one token after a cache. In a pass
    without a cache every token counts as prefill, unless `prompt` says how many do.

    Args:
        budget: share of the allowed pairs of tokens to keep, above 0 and up to 1, where it keeps all; None for the
            sizes of the paper.
        phase: when it acts; "both" where the method can do both. By default what the method is for.
        executor: how it is computed: "auto" (what is expected to be fastest), "masked", "gather" or "flex".
        prompt: in a pass without a cache, tokens of a row that count as its prompt; later ones are computed as if they
            had been decoded one by one. For scoring a text in one pass.

    Raises:
        InputError: an argument out of its range.
    """

    phases: ClassVar[tuple[str, ...]] = ("prefill",)

    def __init__(
        self,
        budget: float | int | None = None,
        *,
        phase: str | None = None,
        executor: str = "auto",
        prompt: int | None = None,
    ):
        self.budget = None if budget is None else checked_budget(budget)
        self.phase = self.phases[0] if phase is None else phase
        if self.phase not in self.phases:
            valid = ", ".join(self.phases)
            near = closest(str(phase), self.phases)
            raise InputError(f"phase={phase!r}: {type(self).__name__} can act in {valid}.{near}")
        self.executor, self.prompt = checked_executor(executor), checked_count("prompt", prompt)

    def __repr__(self) -> str:
        said = "paper's sizes" if self.budget is None else f"{self.budget:g}"
        return f"{type(self).__name__}({said}, phase={self.phase!r})"

    def prefill(self, layer: Layer) -> Pattern | None:
        """The pattern of a pass over several tokens; None to leave it dense."""
        return self.decode(layer)

    def decode(self, layer: Layer) -> Pattern:
        """The pattern of queries that are each computed alone, as when decoding: query blocks of one token."""
        raise NotImplementedError

    def observe(self, layer: Layer) -> None:
        """Look at a prompt before it is decoded from."""

    @property
    def prefills(self) -> "SparseAttention | None":
        """The method for prefill passes."""
        return self if self.phase != "decode" else None

    @property
    def decodes(self) -> "SparseAttention | None":
        """The method for decode passes."""
        return self if self.phase != "prefill" else None

    def edits(self, model: LiveModel, at: Any = None) -> Sequence[Change]:
        """What to install; `at`: masks of the layers to make sparse, all by default."""
        from sparselens.attention.applied import Applied

        return Applied(self, model, at).changes()

    def counted(self, model: LiveModel) -> "Counted":
        """The same attachment, counting what it does; for reports."""
        from sparselens.attention.applied import Counted

        return Counted(self, model)

    def recorded(self) -> "Recorder":
        """The same attachment, keeping the patterns of the last pass over several tokens."""
        from sparselens.attention.applied import Recorder

        return Recorder(self)

    def masks(
        self,
        model: LiveModel,
        text: Any,
        *,
        tile: int | None = None,
        lost: bool = True,
        marks: Mapping[str, Any] | None = None,
    ) -> "Masks":
        """Which keys each head keeps for one text, and what attention it loses; of marked tokens too. See `Masks`."""
        from sparselens.attention.look import masks

        return masks(self, model, text, tile=tile, lost=lost, marks=marks)


class Pair(SparseAttention):
    """One method for prompts and another for decoding.

    Args:
        prefill, decode: the methods; None leaves that phase dense.
        executor, prompt: as for `SparseAttention`.

    Raises:
        InputError: a method that cannot act in its phase.

    Example:
        >>> m.attach(sl.attention.Pair(prefill=sl.VerticalSlash(1 / 8), decode=sl.Quest(1 / 8)))
    """

    phases = ("both",)

    def __init__(
        self,
        prefill: SparseAttention | None = None,
        decode: SparseAttention | None = None,
        *,
        executor: str = "auto",
        prompt: int | None = None,
    ):
        super().__init__(None, executor=executor, prompt=prompt)
        for phase, method in (("prefill", prefill), ("decode", decode)):
            if method is not None and not {phase, "both"} & set(method.phases):
                valid = ", ".join(method.phases)
                raise InputError(f"{type(method).__name__} cannot act in {phase}: it can in {valid}.")
        if prefill is None and decode is None:
            raise InputError("a pair of nothing: give prefill=..., decode=..., or both.")
        self._pair = (prefill, decode)

    def __repr__(self) -> str:
        return f"Pair(prefill={self._pair[0]}, decode={self._pair[1]})"

    @property
    def prefills(self) -> SparseAttention | None:
        return self._pair[0]

    @property
    def decodes(self) -> SparseAttention | None:
        return self._pair[1]


def checked_budget(budget: Any) -> float:
    """`budget`, if it is a share above 0 and up to 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise InputError(f"budget={budget!r} is out of range: give the share of pairs to keep, above 0 and up to 1.")
    return float(budget)


def checked_count(name: str, value: Any, least: int = 1) -> Any:
    """`value`, if it is None or a count of at least `least`.

    Raises:
        InputError: it is neither.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"{name}={value!r} is out of range: give a whole number of at least {least}.")
    return value


def nearest(low: int, high: int, density: Any, budget: float, rows: Tensor) -> Int[Tensor, "b"]:
    """The count between `low` and `high` whose density is nearest to a budget, for each row of a batch, by bisection.

    Args:
        low, high: least and largest count.
        density: counts `[b]` -> densities `[b]`, which grow with them.
        budget: the density wanted.
        rows: any tensor `[b, ...]`.
    """
    lows, highs = (torch.full((rows.shape[0],), end, device=rows.device) for end in (low, high))
    while bool((highs - lows > 1).any()):
        middle = (lows + highs) // 2
        above = density(middle) > budget
        lows, highs = torch.where(above, lows, middle), torch.where(above, middle, highs)
    return torch.where((density(lows) - budget).abs() <= (density(highs) - budget).abs(), lows, highs)

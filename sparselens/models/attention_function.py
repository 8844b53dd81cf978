"""An attention function that shows and takes edits of masks, scores and patterns, for as long as it is open."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparselens.errors import SiteError

# (kind, function); kind: rot_q, rot_k, mask, attn_scores, pattern, and attend, whose function takes `Heads`
Call = tuple[str, Callable[[Any], Tensor | None]]
_LAID_OPEN = ("mask", "attn_scores", "pattern")


@dataclass(frozen=True)
class Heads:
    """What one attention layer is about to compute with.

    Attributes:
        query: `[b, heads, q, d_head]`, rotated.
        key, value: `[b, kv_heads, k, d_head]`, rotated, cached ones included.
        mask: bool keep mask `[b|1, heads|1, q, k]` with causality and padding; None where `causal` says it all.
        causal: whether query i sees keys up to `i + k - q` only (with `mask`: already in it).
        scale: what scores are multiplied with.
        plain: False where somebody looks at masks, scores or patterns of this layer, or the model caps its scores:
            only a mask can then be given back.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    plain: bool = True


class AttentionSwitch:
    """Routes the attention of one transformers model through `_forward` while open, and back when closed.

    The function is registered together with the mask function of the implementation it stands in for: without one,
    transformers builds no mask at all and padding is silently attended to.
    """

    def __init__(self, model: Any):
        self.model = model
        self.name = f"sparselens_{id(self):x}"
        self.edits: dict[nn.Module, list[Call]] = {}
        self.previous: Any = None

    def open(self, edits: dict[nn.Module, list[Call]]) -> None:
        """Register and select the function.

        Raises:
            SiteError: the model does not look its attention up in transformers' registry.
        """
        if not getattr(self.model, "_supports_attention_backend", False):
            raise SiteError(
                f"{type(self.model).__name__} computes attention in its own way; masks, scores and patterns "
                "cannot be reached on it. Sites at the projections (q, k, v, z) work."
            )
        from transformers import AttentionInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

        self.edits, self.previous = edits, self.model.config._attn_implementation
        AttentionInterface.register(self.name, self._forward)
        AttentionMaskInterface.register(self.name, ALL_MASK_ATTENTION_FUNCTIONS[self.previous])
        self.model.set_attn_implementation(self.name)

    def close(self) -> None:
        """Select the previous implementation again and take our names out of the registries."""
        if self.previous is None:
            return
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        self.model.set_attn_implementation(self.previous)
        AttentionInterface._global_mapping.pop(self.name, None)
        AttentionMaskInterface._global_mapping.pop(self.name, None)
        self.edits, self.previous = {}, None

    def _forward(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        calls = self.edits.get(module)
        if not calls:
            return self._original(module)(module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
            raise SiteError(
                "this model adds learned sinks or a position bias to its attention; "
                "its masks, scores and patterns cannot be reached."
            )
        query = run(calls, "rot_q", query)
        key = run(calls, "rot_k", key)
        said = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if said is None else said)
        attend = [call for kind, call in calls if kind == "attend"]
        if attend:
            heads = heads_of(query, key, value, attention_mask, causal, kwargs)
            looked_at = any(kind in _LAID_OPEN for kind, _ in calls) or kwargs.get("output_attentions")
            plain = not looked_at and kwargs.get("softcap") is None
            new = attend[0](replace(heads, plain=plain))
            if new is not None and new.dtype != torch.bool:
                return new.transpose(1, 2).contiguous(), None
            calls = ([] if new is None else [("mask", lambda _: new)]) + calls
        keep = keep_mask(attention_mask, query, key, causal)
        keep = edited_mask(calls, keep, query.shape[1])
        return open_attention(calls, query, key, value, keep, kwargs)

    def _original(self, module: nn.Module) -> Callable:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.previous, eager)


def run(calls: list[Call], kind: str, value: Tensor) -> Tensor:
    """Apply the calls of one kind in order."""
    for name, call in calls:
        if name == kind:
            new = call(value)
            value = value if new is None else new
    return value


def heads_of(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, kwargs: dict[str, Any]
) -> Heads:
    """The arguments of an attention function of transformers as `Heads`."""
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return Heads(query, key, value, None if mask is None else as_keep(mask, key), causal, scale)


def as_keep(mask: Tensor, key: Tensor) -> Tensor:
    """Bool keep mask from a bool or an additive one, cut to the keys there are."""
    mask = mask[..., : key.shape[2]]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def keep_mask(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool = True) -> Tensor:
    """Boolean keep mask `[b|1, 1, q, k]` from what transformers passed: None (causal, or all), bool, or additive."""
    if mask is None:
        n_q, n_k = query.shape[2], key.shape[2]
        keep = torch.ones(n_q, n_k, dtype=torch.bool, device=query.device)
        return (keep.tril(n_k - n_q) if causal else keep)[None, None]
    return as_keep(mask, key)


def edited_mask(calls: list[Call], keep: Tensor, n_heads: int) -> Tensor:
    """Apply mask edits. A mask can only take away: the result is ANDed with causality and padding. A row that
    would keep nothing keeps its diagonal, so that no softmax runs over nothing.
    """
    if not any(name == "mask" for name, _ in calls):
        return keep
    base = keep.expand(-1, n_heads, -1, -1)
    keep = run(calls, "mask", base)
    if keep.dtype != torch.bool:
        raise SiteError(f"an edit at attn.hook_mask must return a bool keep mask (True = may look), got {keep.dtype}.")
    keep = keep & base
    n_q, n_k = keep.shape[-2:]
    diagonal = torch.eye(n_q, n_k, dtype=torch.bool, device=keep.device).roll(n_k - n_q, -1)
    empty = ~keep.any(-1, keepdim=True)
    return keep | (empty & diagonal & base)


def open_attention(
    calls: list[Call], query: Tensor, key: Tensor, value: Tensor, keep: Tensor, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Attention with scores and pattern laid open. Returns output `[b, q, heads, d_head]` and pattern."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = kwargs.get("output_attentions") or any(name in ("attn_scores", "pattern") for name, _ in calls)
    if softcap is None and not asked:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = run(calls, "attn_scores", scores.masked_fill(~keep, -torch.inf))
    pattern = safe_softmax(scores).to(query.dtype)
    pattern = run(calls, "pattern", pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def safe_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis in float32 at least; a row of -inf (a padding query) gives zeros, not NaN."""
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1, dtype=dtype).masked_fill(empty, 0.0)

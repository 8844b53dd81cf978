"""Shapes of models, as far as their cost depends on them: attention, feed-forward, and what a token asks of each."""

from dataclasses import dataclass, replace
from typing import Any

from sparselens.errors import InputError, closest


@dataclass(frozen=True)
class Attention:
    """Layers of one kind of attention. Made by `gqa`, `mla`, `mfa` and `lightning`.

    Attributes:
        kind: "GQA", "MLA", "MFA" or "lightning".
        layers: how many.
        heads: query heads.
        core_flops: operations of scores and values, for one query and one attended token, a layer.
        kv_numbers: numbers kept in the cache for one token, a layer.
        projections: weights of the projections but the last, a layer.
        output: weights of the output projection, a layer.
        kv_bytes: bytes of one cached number.
        window: attended tokens at most; None is all.
        state_flops, state_bytes: for a query at any length, a layer: attention with a state in place of a cache.
    """

    kind: str
    layers: int
    heads: int
    core_flops: int
    kv_numbers: int
    projections: int
    output: int
    kv_bytes: float = 1.0
    window: int | None = None
    state_flops: int = 0
    state_bytes: int = 0

    def attended(self, context: int) -> int:
        """Tokens that a query at the end of `context` attends to."""
        return context if self.window is None else min(context, self.window)

    @property
    def intensity(self) -> float:
        """Operations per byte of cache: 128 for MFA of Step-3, 512 for MLA, 32 for Qwen3-235B, with 8-bit caches."""
        return self.core_flops / (self.kv_numbers * self.kv_bytes) if self.kv_numbers else 0.0


def gqa(
    layers: int, d: int, heads: int, kv_heads: int, head: int, *, kv_bytes: float = 1.0, window: int | None = None
) -> Attention:
    """Grouped-query attention: `heads` query heads share `kv_heads` keys and values (one is MQA, `heads` is MHA)."""
    inner = d * head * (heads + 2 * kv_heads)
    numbers = 2 * kv_heads * head
    return Attention("GQA", layers, heads, 4 * heads * head, numbers, inner, heads * head * d, kv_bytes, window)


def mla(
    layers: int, d: int, heads: int, q_rank: int, *, latent: int = 512, rope: int = 64, head: int = 128
) -> Attention:
    """Multi-head latent attention (DeepSeek-V3), decoded in its absorbed form.

    Step-3 counts `latent + rope` numbers for the scores and for the values, although values have `latent` only.
    """
    inner = d * q_rank + q_rank * heads * (head + rope) + d * (latent + rope) + latent * heads * 2 * head
    return Attention("MLA", layers, heads, 4 * heads * (latent + rope), latent + rope, inner, heads * head * d)


def mfa(layers: int, d: int, heads: int, head: int, q_rank: int) -> Attention:
    """Multi-matrix factorisation attention: one key and one value, large query heads of low rank (2412.19255)."""
    inner = d * q_rank + q_rank * heads * head + 2 * d * head
    return Attention("MFA", layers, heads, 4 * heads * head, 2 * head, inner, heads * head * d)


def lightning(layers: int, d: int, heads: int, head: int) -> Attention:
    """Linear attention of MiniMax-M1: a float32 state `[heads, head, head]`, read and written for each token."""
    state = heads * head * head
    inner, output = 4 * d * heads * head, heads * head * d
    return Attention("lightning", layers, heads, 0, 0, inner, output, state_flops=10 * state, state_bytes=8 * state)


@dataclass(frozen=True)
class FeedForward:
    """Gated feed-forward layers of one kind. A dense layer has one expert, always active.

    Attributes:
        layers: how many.
        width: hidden units of one expert.
        active: experts that a token passes, shared ones counted.
        experts: experts there are, shared ones counted.
        matrices: weight matrices of an expert; 3 when gated.
    """

    layers: int
    width: int
    active: int = 1
    experts: int = 1
    matrices: int = 3


@dataclass(frozen=True)
class Shape:
    """A model as the cost formulas see it. Embedding and unembedding are left out, as in Step-3.

    Attributes:
        name: of the model.
        d: width of the residual stream.
        attention, ffn: its layers, by kind.
    """

    name: str
    d: int
    attention: tuple[Attention, ...]
    ffn: tuple[FeedForward, ...]

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return sum(one.layers for one in self.attention)

    def kv_bytes(self, context: int, density: float = 1.0) -> float:
        """Bytes that one token reads from the cache (or moves to and from states) at `context` tokens."""
        return sum(
            a.layers * (density * a.kv_numbers * a.kv_bytes * a.attended(context) + a.state_bytes)
            for a in self.attention
        )

    def core_flops(self, context: int, density: float = 1.0) -> float:
        """Operations of scores and values for one token."""
        return sum(a.layers * (density * a.core_flops * a.attended(context) + a.state_flops) for a in self.attention)

    @property
    def linear_flops(self) -> float:
        """Operations of the attention projections for one token."""
        return 2.0 * sum(a.layers * (a.projections + a.output) for a in self.attention)

    @property
    def ffn_flops(self) -> float:
        """Operations of the feed-forward layers for one token."""
        return 2.0 * sum(f.layers * f.active * f.matrices * self.d * f.width for f in self.ffn)

    @property
    def ffn_weights(self) -> float:
        """Weights of all experts."""
        return float(sum(f.layers * f.experts * f.matrices * self.d * f.width for f in self.ffn))

    def with_cache(self, kv_bytes: float) -> "Shape":
        """The same model with so many bytes for each cached number."""
        return replace(self, attention=tuple(replace(a, kv_bytes=kv_bytes) for a in self.attention))


def _presets() -> dict[str, Shape]:
    """The models of Step-3, tables 2 to 6. Numbers of experts are those of the models' own configurations."""
    made = (
        Shape("dsv3", 7168, (mla(61, 7168, 128, 1536),), (FeedForward(58, 2048, 9, 257), FeedForward(3, 18432))),
        Shape("kimi-k2", 7168, (mla(61, 7168, 64, 1536),), (FeedForward(60, 2048, 9, 385), FeedForward(1, 18432))),
        Shape("qwen3-235b", 4096, (gqa(94, 4096, 64, 4, 128),), (FeedForward(94, 1536, 8, 128),)),
        Shape("qwen3-32b", 5120, (gqa(64, 5120, 64, 8, 128),), (FeedForward(64, 25600),)),
        Shape(
            "llama4-maverick", 5120,
            (gqa(12, 5120, 40, 8, 128, kv_bytes=2.0), gqa(36, 5120, 40, 8, 128, window=8192)),
            (FeedForward(24, 8192, 2, 129), FeedForward(24, 16384)),
        ),
        Shape(
            "minimax-m1", 6144,
            (gqa(10, 6144, 64, 8, 128, kv_bytes=2.0), lightning(70, 6144, 64, 128)), (FeedForward(80, 9216, 2, 32),),
        ),
        Shape("ernie45", 8192, (gqa(54, 8192, 64, 8, 128),), (FeedForward(51, 3584, 8, 64), FeedForward(3, 28672))),
        Shape("pangu-pro", 5120, (gqa(48, 5120, 40, 8, 128),), (FeedForward(48, 1344, 12, 68),)),
        Shape("step3", 7168, (mfa(61, 7168, 64, 256, 2048),), (FeedForward(56, 5120, 4, 49), FeedForward(5, 18432))),
    )
    return {one.name: one for one in made}


PRESETS = _presets()


def shape(model: Any) -> Shape:
    """The shape of a model: a name of `PRESETS`, a `Shape` as it is, or a live or transformers model.

    A model's own cache is counted with the bytes of its weights.

    Raises:
        InputError: an unknown name, or a model with experts or without the usual sizes in its configuration.
    """
    if isinstance(model, Shape):
        return model
    if isinstance(model, str):
        if model not in PRESETS:
            raise InputError(f"no model {model!r}: there are {', '.join(PRESETS)}, or give a live model or a "
                             f"costs.Shape(...).{closest(model, PRESETS)}")
        return PRESETS[model]
    return _read(getattr(model, "module", model))


def _read(module: Any) -> Shape:
    config = getattr(module, "config", None)
    if config is None:
        raise InputError(f"cannot read the shape of a {type(module).__name__}: give a live model, a transformers "
                         f"model, a costs.Shape(...) or one of {', '.join(PRESETS)}.")
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError("this model has experts, whose sizes are not read from a configuration: describe it with "
                         "costs.Shape(name, d, attention=(costs.gqa(...),), ffn=(costs.FeedForward(...),)).")
    d, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or d // heads
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    gated = any("gate_proj" in name for name, _ in module.named_parameters())
    size = next(module.parameters()).element_size()
    name = getattr(config, "name_or_path", "") or type(module).__name__
    return Shape(name, d, (gqa(layers, d, heads, kv_heads, head, kv_bytes=float(size)),),
                 (FeedForward(layers, width, matrices=3 if gated else 2),))

"""Multi-matrix factorisation attention, and the attentions it is compared with: multi-head, grouped and multi-query.

MFA (arXiv 2412.19255; used in Step-3, 2507.19427) has one key and one value, many large query heads, and queries of
low rank: a small cache with as much going on in the scores as in attentions with a large one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.attention.rotary import rotate
from sparselens.errors import InputError


class KVCache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
        key: `[b, kv_heads, n, head_dim]`, rotated.
        value: `[b, kv_heads, n, head_dim]`.
    """

    key: Float[Tensor, "b kv n d"]
    value: Float[Tensor, "b kv n d"]


class SelfAttention(nn.Module):
    """Attention with rotary positions, no biases, and a cache: the usual kinds, by the number of key heads.

    Args:
        d_model: width of the input.
        n_heads: query heads.
        n_kv_heads: `n_heads` is multi-head attention, 1 is multi-query, between is grouped-query.
        head_dim: numbers of a head; `d_model / n_heads` by default.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(
        self, d_model: int, n_heads: int, n_kv_heads: int | None = None, head_dim: int | None = None,
        causal: bool = True,
    ):
        super().__init__()
        n_kv_heads, head_dim = n_kv_heads or n_heads, head_dim or d_model // n_heads
        if n_heads % n_kv_heads:
            raise InputError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}.")
        if head_dim % 2:
            raise InputError(f"head_dim={head_dim} is odd: rotary positions turn pairs of numbers.")
        self.n_heads, self.n_kv_heads, self.head_dim, self.causal = n_heads, n_kv_heads, head_dim, causal
        self.q_proj = self._query_path(d_model)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=False)

    def _query_path(self, d_model: int) -> nn.Module:
        return nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)

    @property
    def cache_numbers(self) -> int:
        """Numbers kept for each token."""
        return 2 * self.n_kv_heads * self.head_dim

    def cache_bytes(self, tokens: int, number_bytes: float = 2.0) -> float:
        """Bytes of the cache of one row of `tokens`."""
        return tokens * self.cache_numbers * number_bytes

    def forward(self, x: Float[Tensor, "b pos d"]) -> Float[Tensor, "b pos d"]:
        """Attend, all positions at once."""
        return self.extend(x, None)[0]

    def extend(
        self, x: Float[Tensor, "b pos d"], cache: KVCache | None
    ) -> tuple[Float[Tensor, "b pos d"], KVCache]:
        """Attend for new tokens that follow those of `cache`. Returns the output and the longer cache.

        Raises:
            InputError: a cache for an attention that is not causal: earlier tokens would have seen the new ones.
        """
        if cache is not None and not self.causal:
            raise InputError("an attention that sees both sides cannot go on from a cache; run all tokens at once.")
        past, new = 0 if cache is None else cache.key.shape[2], x.shape[1]
        at = torch.arange(past, past + new, device=x.device)
        query = rotate(self._split(self.q_proj(x), self.n_heads), at)
        key = rotate(self._split(self.k_proj(x), self.n_kv_heads), at)
        value = self._split(self.v_proj(x), self.n_kv_heads)
        if cache is not None:
            key, value = torch.cat([cache.key, key], 2), torch.cat([cache.value, value], 2)
        keep = None
        if self.causal and new > 1:
            keep = torch.ones(new, past + new, dtype=torch.bool, device=x.device).tril(past)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), KVCache(key, value)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class MFA(SelfAttention):
    """Multi-matrix factorisation attention.

    `q = RMSNorm(x W_down) W_up` with `W_down [d_model, q_rank]`, `W_up [q_rank, n_heads * head_dim]`; one key and one
    value. Rotary positions on the whole head. The cache has `2 * head_dim` numbers for each token.

    Args:
        d_model: width of the input.
        n_heads, head_dim: query heads; a head may be larger than `d_model / n_heads`.
        q_rank: rank of all queries together.
        causal: whether a token sees only itself and those before it.
        norm: normalise between the two query matrices, as Step-3 does.
    """

    def __init__(
        self, d_model: int, n_heads: int = 8, head_dim: int = 64, q_rank: int = 96, causal: bool = True,
        norm: bool = True,
    ):
        if q_rank < 1:
            raise InputError(f"q_rank={q_rank}: queries need a rank of at least 1.")
        self._rank, self._norm = q_rank, norm
        super().__init__(d_model, n_heads, 1, head_dim, causal)

    def _query_path(self, d_model: int) -> nn.Module:
        norm = nn.RMSNorm(self._rank, eps=1e-6) if self._norm else nn.Identity()
        up = nn.Linear(self._rank, self.n_heads * self.head_dim, bias=False)
        return nn.Sequential(nn.Linear(d_model, self._rank, bias=False), norm, up)

    @property
    def effective_rank(self) -> int:
        """Numbers of all query heads together, the "total effective rank" of the report."""
        return self.n_heads * self.head_dim

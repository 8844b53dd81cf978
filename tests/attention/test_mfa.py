"""MFA and the attentions beside it: identities, caches, sizes."""

import pytest
import torch
import torch.nn.functional as F

from sparselens.attention.mfa import MFA, KVCache, SelfAttention
from sparselens.attention.rotary import rotate
from sparselens.errors import InputError

EMPTY = KVCache(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8))
LAYERS = {
    "mha": lambda: SelfAttention(32, 4),
    "gqa": lambda: SelfAttention(32, 4, 2),
    "mqa": lambda: SelfAttention(32, 4, 1),
    "mfa": lambda: MFA(32, 4, 16, 12),
}


def test_identity_query_path_is_multi_query_attention():
    mfa = MFA(32, n_heads=4, head_dim=16, q_rank=64, norm=False)
    mqa = SelfAttention(32, 4, 1, 16)
    mfa.q_proj[2].weight.data = torch.eye(64)
    mqa.q_proj.weight.data = mfa.q_proj[0].weight.data
    for name in ("k_proj", "v_proj", "o_proj"):
        getattr(mqa, name).weight.data = getattr(mfa, name).weight.data
    x = torch.randn(2, 9, 32)
    assert torch.allclose(mfa(x), mqa(x), atol=1e-6)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_token_by_token_with_a_cache_is_all_at_once(name: str):
    layer, x = LAYERS[name](), torch.randn(2, 11, 32)
    whole, cache, parts = layer(x), None, []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 11)):
        out, cache = layer.extend(x[:, start:stop], cache)
        parts.append(out)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert isinstance(cache, KVCache)
    assert sum(part.numel() for part in cache) == 2 * 11 * layer.cache_numbers
    assert layer.cache_bytes(11) == 11 * layer.cache_numbers * 2


def test_multi_head_attention_by_hand():
    layer, x = SelfAttention(32, 4, 2), torch.randn(1, 7, 32)
    q, k, v = (proj(x).unflatten(-1, (-1, 8)).transpose(1, 2) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = rotate(q, torch.arange(7)), rotate(k, torch.arange(7))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf)
    out = layer.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(x), out, atol=1e-5)


def test_queries_of_mfa_by_hand():
    layer, x = MFA(32, 4, 16, 12), torch.randn(2, 3, 32)
    low = x @ layer.q_proj[0].weight.T
    low = low / (low.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(layer.q_proj(x), low @ layer.q_proj[2].weight.T, atol=1e-5)
    assert torch.linalg.matrix_rank(layer.q_proj(torch.randn(1, 200, 32))[0], atol=1e-4) == 12


def test_sizes():
    d, n, c, r = 32, 4, 16, 12
    layer = MFA(d, n, c, r)
    assert sum(p.numel() for p in layer.parameters()) == d * r + r + r * n * c + 2 * d * c + n * c * d
    assert layer.cache_numbers == 2 * c and layer.effective_rank == n * c
    assert [LAYERS[name]().cache_numbers for name in ("mha", "gqa", "mqa")] == [64, 32, 16]


def test_rotary_depends_on_distance_only_and_halves_meet_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    here = rotate(q, torch.arange(5)) @ rotate(k, torch.arange(5)).transpose(2, 3)
    there = rotate(q, torch.arange(5) + 37.5) @ rotate(k, torch.arange(5) + 37.5).transpose(2, 3)
    assert torch.allclose(here, there, atol=1e-4)
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    angles = torch.cat([angles, angles], -1)[None]
    theirs = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())[0]
    assert torch.allclose(theirs, rotate(q, torch.arange(5)), atol=1e-6)


def test_both_sides_are_seen_without_causality():
    layer, x = SelfAttention(32, 4, causal=False), torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 5] += 1
    assert (layer(x)[:, 0] - layer(changed)[:, 0]).abs().max() > 1e-4
    assert torch.equal(LAYERS["mfa"]()(x).isfinite().all(), torch.tensor(True))
    assert F.mse_loss(layer(x), layer(x)) == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SelfAttention(32, 4, 3), "n_kv_heads=3"),
        (lambda: SelfAttention(30, 2), "head_dim=15"),
        (lambda: MFA(32, q_rank=0), "q_rank=0"),
        (lambda: SelfAttention(32, 4, causal=False).extend(torch.zeros(1, 1, 32), EMPTY), "both sides"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()

"""Routing attention: against dense attention and its own mask, causality, clusters that are found."""

import pytest
import torch
import torch.nn.functional as F

from sparselens.attention.clusters import Centroids, membership, normalised, pairs, top_members
from sparselens.attention.rotary import rotate
from sparselens.attention.routing import RoutingAttention
from sparselens.errors import InputError


def layer(**settings) -> RoutingAttention:
    return RoutingAttention(16, **({"n_heads": 2, "local_heads": 0, "clusters": 3, "window": 8} | settings)).double()


def draw(n: int = 24, b: int = 2):
    return torch.randn(b, n, 16, dtype=torch.float64)


def by_mask(attn: RoutingAttention, x, keep):
    """Attention under a mask, with the layer's weights."""
    query, key, value = attn._heads(x)
    at = torch.arange(x.shape[1])
    out = F.scaled_dot_product_attention(rotate(query, at), rotate(key, at), value, attn_mask=keep)
    return attn.o_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("merge", ["mean", "union"])
def test_one_cluster_of_all_tokens_is_dense(causal: bool, merge: str):
    x = draw()
    every = torch.ones(24, 24, dtype=torch.bool)
    every = every.tril() if causal else every
    attn = layer(clusters=1, window=24, shared_qk=False, causal=causal, merge=merge)
    assert torch.allclose(attn(x)[0], by_mask(attn, x, every), atol=1e-10)
    shared = layer(clusters=1, window=24, causal=causal, merge=merge)
    others = every & ~torch.eye(24, dtype=torch.bool)
    others[0, 0] |= causal  # the first token sees only itself
    assert torch.allclose(shared(x)[0], by_mask(shared, x, others), atol=1e-10)


def test_mean_and_union_agree_where_each_token_is_in_one_cluster():
    attn = layer(clusters=3, window=8, shared_qk=False)
    x = draw(b=1)
    attn(x)
    blocks = torch.arange(24) // 8
    scores = F.one_hot(blocks, 3).double()[None, None].expand(1, 2, -1, -1)
    from sparselens.attention.routing import _averaged

    query, key, value = attn._heads(x)
    members = top_members(scores, 8)
    assert members[0, 0].tolist() == [list(range(s, s + 8)) for s in (0, 8, 16)]
    mean = _averaged(query, key, value, members, members, True, False)
    keep = pairs(scores, scores, 8, "topw", True)
    assert torch.equal(keep[0, 0], (blocks[:, None] == blocks).tril())
    assert torch.allclose(mean, F.scaled_dot_product_attention(query, key, value, attn_mask=keep), atol=1e-10)


def test_mean_over_clusters_by_loops():
    attn = layer(clusters=4, window=7, shared_qk=False)
    x = draw(n=15, b=1)
    out = attn(x)[0]
    query, key, value = attn._heads(x)
    turned, keys, total = rotate(query, torch.arange(15)), rotate(key, torch.arange(15)), torch.zeros_like(value)
    ours = top_members(attn.centroids.scores(normalised(query)), 7)
    theirs = top_members(attn.centroids.scores(normalised(key)), 7)
    for h in range(2):
        for i in range(15):
            found = []
            for c in range(4):
                if i in ours[0, h, c]:
                    js = [j for j in theirs[0, h, c].tolist() if j <= i]
                    weights = torch.softmax(keys[0, h, js] @ turned[0, h, i] / 8**0.5, 0) if js else None
                    found.append(weights @ value[0, h, js] if js else value[0, h, i])
            if found:
                total[0, h, i] = torch.stack(found).mean(0)
    assert torch.allclose(out, attn.o_proj(total.transpose(1, 2).flatten(2)), atol=1e-10)


@pytest.mark.parametrize("assign", ["argmax", "causal_topw", "topw"])
def test_what_later_tokens_can_change(assign: str):
    attn = layer(assign=assign, local_heads=1)
    x = draw()
    attn(x)
    leak = attn.leakage(x, 12)
    assert (leak == 0) is (assign != "topw")
    short = attn.eval()(x[:, :12])[0]
    if assign != "topw":
        assert torch.allclose(short, attn(x)[0][:, :12], atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"shared_qk": False}, {"assign": "argmax"}, {"assign": "causal_topw"}])
def test_masks_are_causal_and_no_row_is_empty(settings: dict):
    attn = layer(local_heads=1, **settings)
    x = draw()
    attn(x)
    keep = attn.keeps(x)
    assert keep.shape == (2, 2, 24, 24)
    assert bool(keep.any(-1).all()) and not bool(keep.triu(1).any())
    local = keep[0, 0]
    assert [int(row.nonzero()[0]) for row in local[[0, 7, 8, 15, 16, 23]]] == [0, 0, 0, 0, 8, 8]
    if settings.get("assign"):
        mask = torch.cat([keep[:, :1], attn._pairs(*[attn.centroids.scores(normalised(p[:, 1:])) for p in
                                                     attn._heads(x)[:2]])], 1)
        assert torch.allclose(attn.eval()(x)[0], by_mask(attn, x, mask), atol=1e-10)


def test_clusters_have_the_size_asked_for_and_density_follows():
    scores = torch.randn(2, 3, 64, 8)
    assert (membership(scores, 8, "topw").sum(2) == 8).all()
    assert (membership(scores, 8, "argmax").sum(3) == 1).all()
    assert (membership(scores, 99, "topw").sum(2) == 64).all()
    whole = pairs(scores, scores, 8, "topw", False).float().mean()
    assert 0.6 * 8 * 8**2 / 64**2 < whole <= 8 * 8**2 / 64**2 + 1 / 64


def test_centroids_move_by_the_closed_form():
    centroids = Centroids(1, 2, 3, decay=0.9).double()
    first = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)[None]
    centroids.sums.copy_(first)
    centroids.counts.fill_(1.0)
    x = torch.tensor([[2.0, 0, 0], [3, 0, 1], [0, 4, 0]], dtype=torch.float64)[None, None]
    centroids.update(x)
    assert torch.allclose(centroids.counts, torch.tensor([[0.9 + 0.2, 0.9 + 0.1]], dtype=torch.float64))
    sums = torch.stack([0.9 * first[0, 0] + 0.1 * (x[0, 0, 0] + x[0, 0, 1]), 0.9 * first[0, 1] + 0.1 * x[0, 0, 2]])
    assert torch.allclose(centroids.sums[0], sums)
    assert torch.allclose(centroids.means[0], sums / centroids.counts[0, :, None], rtol=1e-4)


def test_separate_clouds_are_found():
    generator = torch.Generator().manual_seed(0)
    centres = 4 * F.one_hot(torch.arange(5), 8).float()
    label = torch.randint(5, (4, 1, 200), generator=generator)
    x = normalised(centres[label] + 0.3 * torch.randn(4, 1, 200, 8, generator=generator))
    centroids = Centroids(1, 5, 8, decay=0.9)
    centroids.start(x)
    for _ in range(200):
        centroids.update(x)
    found = centroids.scores(x).argmax(-1).flatten()
    table = torch.zeros(5, 5).index_put((found, label.flatten()), torch.ones(800), accumulate=True)
    assert table.max(1).values.sum() / 800 > 0.95 and (table.sum(1) > 0).all()


def test_loss_pulls_queries_and_not_centroids():
    attn = layer(commit=1.0)
    x = draw()
    loss = attn(x)[1]
    loss.backward()
    assert attn.q_proj.weight.grad.abs().max() > 0 and attn.v_proj.weight.grad is None
    assert not attn.centroids.sums.requires_grad
    query = normalised(attn._heads(x)[0])
    fresh = layer(commit=1.0)
    fresh.load_state_dict(attn.state_dict())
    distances = (query[:, :, :, None] - fresh.centroids.means[None, :, None]).square().mean(-1)
    nearest = fresh.centroids.scores(query).argmax(-1, keepdim=True)
    assert torch.allclose(fresh.commitment(query), distances.gather(-1, nearest).mean())


def test_centroids_rest_outside_training():
    attn = layer()
    x = draw()
    attn.eval()(x)
    before = attn.centroids.sums.clone()
    attn(x)
    assert torch.equal(attn.centroids.sums, before)
    attn.train()(x)
    assert not torch.equal(attn.centroids.sums, before)
    assert 0 < attn.coverage(x) <= 1 and layer(assign="argmax", clusters=3).train() is not None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: RoutingAttention(15, 2), "d_model=15"),
        (lambda: RoutingAttention(16, 2, 3), "local_heads=3"),
        (lambda: RoutingAttention(16, 2, 1, window=0), "window of at least 1"),
        (lambda: RoutingAttention(16, 2, 1, assign="top"), "Closest: topw"),
        (lambda: RoutingAttention(16, 2, 1, merge="sum"), "merge='sum'"),
        (lambda: RoutingAttention(16, 2, 1, clusters=0), "at least one cluster"),
        (lambda: layer().keeps(draw()), "no centroids yet"),
        (lambda: membership(torch.zeros(1, 1, 2, 2), 1, "causal_topw"), "fixed|given by"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()

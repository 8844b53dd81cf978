"""ASA: the order of tokens, the probe, what is kept, and the pooled keys."""

import pytest
import torch

import sparselens as sl
from sparselens.attention.blade import attend_with_pools, block_importance, gilbert_order
from sparselens.attention.method import Layer
from sparselens.attention.pattern import Allowed, Pattern, full
from sparselens.errors import InputError
from sparselens.models.attention_function import Heads


def both_ways(n: int, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, h, n, 8, generator=generator) for h in (4, 2))
    return Layer(query, key, Allowed(n, n, causal=False), 3, 8**-0.5)


def cells(w: int, h: int, d: int) -> torch.Tensor:
    order = torch.tensor(gilbert_order(w, h, d))
    return torch.stack([order % w, order // w % h, order // (w * h)], -1)


@pytest.mark.parametrize("grid", [(5, 4, 3), (8, 8, 8), (7, 1, 2), (16, 16, 8), (1, 1, 1), (6, 2, 2), (2, 10, 4)])
def test_the_order_visits_every_cell_once_by_short_steps(grid):
    w, h, d = grid
    assert sorted(gilbert_order(*grid)) == list(range(w * h * d))
    if w * h * d > 1:
        steps = cells(*grid).diff(dim=0).abs().sum(-1)
        assert steps.max() <= (1 if all(n % 2 == 0 for n in grid) else 2)


def test_the_order_of_a_video_has_the_published_number_of_diagonal_steps():
    assert int((cells(45, 30, 13).diff(dim=0).abs().sum(-1) > 1).sum()) == 151  # of CogVideoX; of Wan 76


def test_blocks_along_the_order_are_compact():
    def diagonal(points):
        blocks = points.view(-1, 16, 3).float()
        return float((blocks.amax(1) - blocks.amin(1)).norm(dim=-1).mean())

    raster = torch.stack([torch.arange(512) % 8, torch.arange(512) // 8 % 8, torch.arange(512) // 64], -1)
    assert diagonal(cells(8, 8, 8)) == pytest.approx(3.3, abs=0.2)
    assert diagonal(raster) == pytest.approx(7.1, abs=0.2)


def test_a_probe_of_all_tokens_is_max_pooled_attention():
    layer = both_ways(64)
    weights = torch.softmax(layer.query @ layer.keys().transpose(2, 3) * layer.scale, -1)
    wanted = weights.unflatten(-1, (-1, 16)).amax(-1).unflatten(-2, (-1, 16)).amax(-2)
    torch.testing.assert_close(block_importance(layer, 16, 16), wanted / wanted.sum(-1, keepdim=True))


@pytest.mark.parametrize("n", [1, 127, 128, 130])
def test_rows_keep_between_the_least_and_the_most(n):
    layer = both_ways(n)
    kept = sl.ASA(block=16, sample=4, r_min=0.2, r_max=0.5).prefill(layer).keep.sum(-1)
    blocks = -(-n // 16)
    assert (kept >= max(1, int(0.2 * blocks))).all() and (kept <= max(1, int(0.5 * blocks))).all()
    assert sl.ASA(block=16, r_min=1, r_max=1).prefill(layer).keep.all()
    few, many = (sl.ASA(block=16, tau=t, r_min=0, r_max=1).prefill(layer).keep.sum() for t in (0.2, 0.9))
    assert few <= many and (few < many or n < 16)


def test_the_crossing_block_is_kept():
    layer = both_ways(128)
    importance = block_importance(layer, 16, 4)
    keep = sl.ASA(block=16, sample=4, tau=0.6, r_min=0, r_max=1).prefill(layer).keep
    held = (importance * keep).sum(-1)
    assert (held >= 0.6 - 1e-5).all()
    least = importance.masked_fill(~keep, 2).amin(-1)
    assert (held - least < 0.6 + 1e-5).all()


def test_the_same_seed_gives_the_same_mask():
    layer = both_ways(128)
    make = lambda seed: sl.ASA(0.3, block=16, sample=4, seed=seed).prefill(layer)  # noqa: E731
    assert make(0) == make(0) and make(0) != make(1)
    official = sl.ASA(0.3, block=16, sample=4, probe="official").prefill(layer)
    assert official.keep.shape == (2, 4, 8, 8)
    shared = sl.ASA(0.3, block=16, sample=4, share_group=True).prefill(layer).keep
    assert torch.equal(shared[:, 0], shared[:, 1])


def pools(n: int = 48) -> tuple[Heads, Allowed, Pattern]:
    heads = Heads(*(torch.randn(1, 2, n, 8) for _ in range(3)), None, False, 0.3)
    allowed = Allowed(n, n, causal=False)
    keep = torch.rand(1, 2, -(-n // 16), -(-n // 16)) < 0.4
    return heads, allowed, Pattern(keep, (16, 16)).repaired_for(allowed)


def test_pooled_keys_are_one_softmax_with_the_kept_ones():
    heads, allowed, pattern = pools()
    out = attend_with_pools(heads, pattern, allowed, 8)
    keep = pattern.rows(allowed)
    scores = (heads.query @ heads.key.transpose(2, 3) * 0.3).masked_fill(~keep, -torch.inf)
    means = heads.key.unflatten(2, (-1, 8)).mean(3)
    pooled_scores = heads.query @ means.transpose(2, 3) * 0.3
    first, second = scores.logsumexp(-1), pooled_scores.logsumexp(-1)
    alpha = torch.sigmoid(first - second - torch.tensor(8.0).log())[..., None]
    one = torch.softmax(scores, -1) @ heads.value
    two = torch.softmax(pooled_scores, -1) @ heads.value.unflatten(2, (-1, 8)).mean(3)
    torch.testing.assert_close(out, alpha * one + (1 - alpha) * two, atol=1e-5, rtol=1e-5)


def test_keys_that_are_equal_inside_each_pool_make_pools_exact():
    heads, allowed, pattern = pools(44)  # the last pool is smaller
    index = torch.arange(44) // 8 * 8
    heads = Heads(heads.query, heads.key[:, :, index], heads.value[:, :, index], None, False, 0.3)
    nothing = Pattern(torch.zeros_like(pattern.keep), (16, 16))
    dense = torch.softmax(heads.query @ heads.key.transpose(2, 3) * 0.3, -1) @ heads.value
    torch.testing.assert_close(attend_with_pools(heads, nothing, allowed, 8), dense, atol=1e-5, rtol=1e-5)
    without = attend_with_pools(heads, full(allowed, 1, 2, (16, 16)), allowed, 8, log_bias=False)
    torch.testing.assert_close(without[:, :, :40], dense[:, :, :40], atol=0.05, rtol=0.1)


def test_pools_are_refused_where_they_would_show_the_future():
    heads, _, pattern = pools()
    with pytest.raises(InputError, match="may not see"):
        attend_with_pools(heads, pattern, Allowed(48, 48), 8)


def test_settings_out_of_range_are_refused():
    for wrong in (dict(probe="max"), dict(tau=0), dict(r_min=0.5, r_max=0.2)):
        with pytest.raises(InputError):
            sl.ASA(**wrong)

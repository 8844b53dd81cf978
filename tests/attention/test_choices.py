"""What each method promises about the keys it keeps."""

import pytest
import torch

import sparselens as sl
from sparselens.attention.block_sparse import block_density
from sparselens.attention.method import Layer
from sparselens.attention.pattern import Allowed
from sparselens.attention.quest import bounds, page_ranges
from sparselens.attention.snapkv import always, importance
from sparselens.attention.vertical_slash import Lines, by_distance

N, H, KV, D = 200, 4, 2, 8


def layer(n: int = N, n_q: int | None = None, pad: int = 0, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    n_q = n if n_q is None else n_q
    mask = None
    if pad:
        mask = torch.ones(2, 1, n_q, n, dtype=torch.bool).tril(n - n_q)
        mask[1, :, :, n - pad :] = False
        mask[1, :, n_q - pad :] = False
    query, key = (torch.randn(2, heads, m, D, generator=generator) for heads, m in ((H, n_q), (KV, n)))
    return Layer(query, key, Allowed(n_q, n, True, mask), 0, D**-0.5)


def truth(ask: Layer) -> torch.Tensor:
    scores = ask.query @ ask.keys().transpose(2, 3) * ask.scale
    return torch.softmax(scores.masked_fill(~ask.allowed.rows(), -torch.inf), -1).nan_to_num(0.0)


@pytest.mark.parametrize("pad", [0, 30])
def test_lines_sum_columns_and_distances(pad):
    ask = layer(pad=pad)
    lines = Lines(ask, 50)
    for b, end in ((0, N), (1, N - pad)):
        weights = truth(ask)[b, :, end - 50 : end]
        torch.testing.assert_close(lines.columns[b], weights.sum(1), atol=1e-5, rtol=1e-4)
        for o in (0, 1, 7, 120):
            wanted = sum(weights[:, r, end - 50 + r - o] for r in range(50) if end - 50 + r - o >= 0)
            torch.testing.assert_close(lines.distances[b, :, o], wanted, atol=1e-5, rtol=1e-4)


def test_lines_of_a_short_text():
    short = Lines(layer(5), 256)
    assert short.columns.shape[-1] == 5 and torch.isfinite(short.distances).all()


@pytest.mark.parametrize("pad", [0, 30])
@pytest.mark.parametrize("sizes", [(1, 1), (20, 70), (200, 3)])
def test_density_of_lines_is_counted_density(pad, sizes):
    ask = layer(pad=pad)
    lines = Lines(ask, 50)
    kept, pairs = lines.pattern("exact", *sizes).pairs(ask.allowed)
    torch.testing.assert_close(lines.density("exact", *sizes), kept.sum(-1) / pairs.sum(-1))


def test_vertical_slash_keeps_first_columns_and_near_distances_and_the_kernel_keeps_more():
    ask = layer()
    exact = sl.VerticalSlash(vertical=10, slash=70, window=50).prefill(ask).rows(ask.allowed)
    kernel = sl.VerticalSlash(vertical=10, slash=70, window=50, granularity="kernel64").prefill(ask)
    assert (kernel.rows(ask.allowed) | ~exact).all() and kernel.rows(ask.allowed).sum() > exact.sum()
    rows, keys = torch.arange(N)[:, None], torch.arange(N)
    forced = ((keys < 4) | (rows - keys < 64)) & (keys <= rows)
    assert exact[..., forced].all()


@pytest.mark.parametrize(("n", "n_q"), [(1, 1), (9, 9), (9, 4), (9, 1)])
def test_a_mask_of_distances(n, n_q):
    distances = torch.rand(2, 3, n) < 0.5
    keep = by_distance(distances, n_q)
    for i in range(n_q):
        for j in range(n):
            away = i + n - n_q - j
            wanted = distances[..., away] if away >= 0 else torch.zeros(2, 3, dtype=torch.bool)
            assert torch.equal(keep[..., i, j], wanted)


def test_kernel_squares_are_those_of_their_definition():
    ask = layer(130)
    lines = Lines(ask, 50)
    got = lines.pattern("kernel64", 5, 40)
    columns, distances = lines.chosen(5, 40)
    for i in range(got.keep.shape[2]):
        wanted = columns[0, 0].clone()
        for o in distances[0, 0].nonzero().flatten().tolist():
            end = (i + 1) * 64
            wanted[max(end - 64 - o, 0) : max(min(end - o, 130), 0)] = True
        assert torch.equal(got.keep[0, 0, i], wanted)


def test_flex_prefill_sizes_grow_with_alpha_and_differ_between_heads():
    lines = Lines(layer(), 200)
    small, large = (lines.sizes(a, 1)[0] for a in (0.3, 0.9))
    assert (small < large).all() and len(set(large.flatten().tolist())) > 1
    sizes = lines.sizes(0.65, 50)
    head = lines.columns[0, 0].sort(descending=True).values.cumsum(0) / 200
    assert sizes[0][0, 0] == max(50, 1 + int((head <= 0.65).sum()))
    assert (lines.sizes(0.0, 7)[0] == 7).all()


@pytest.mark.parametrize(("top", "n"), [(3, 13), (5, 13), (20, 13)])
def test_block_density_formula_is_counted_density(top, n):
    ask = layer(n * 16)
    pattern = sl.BlockSparse(top=top).prefill(ask)
    assert pattern.block_density(ask.allowed) == pytest.approx(block_density(top, n))
    assert pattern.keep.diagonal(dim1=2, dim2=3).all() and pattern.keep[..., 0].all()
    assert pattern.keep.diagonal(-1, 2, 3).all()


def test_block_sparse_keeps_the_best_means():
    ask = layer(N)
    pattern = sl.BlockSparse(top=5).prefill(ask)
    q, k = (torch.stack([x[s : s + 16].mean(0) for s in range(0, N, 16)]) for x in (ask.query[0, 3], ask.key[0, 1]))
    scores = q @ k.T
    row = 9
    free = [j for j in range(row) if j not in (0, row - 1)]
    best = sorted(free, key=lambda j: -scores[row, j])[:2]
    assert set(pattern.keep[0, 3, row].nonzero().flatten().tolist()) == {0, row - 1, row, *best}


@pytest.mark.parametrize("make", [sl.VerticalSlash, sl.FlexPrefill, sl.SinkWindow, sl.RandomBlocks, sl.TopKOracle,
                                  lambda b: sl.BlockSparse(b, block=4), lambda b: sl.Quest(b, phase="prefill")])
@pytest.mark.parametrize("budget", [0.125, 0.3, 0.7])
@pytest.mark.parametrize("pad", [0, 60])
def test_density_is_near_the_budget(make, budget, pad):
    ask = layer(N, pad=pad)
    kept, pairs = make(budget).prefill(ask).pairs(ask.allowed)
    assert (kept.sum(-1) / pairs.sum(-1)).tolist() == pytest.approx([budget] * 2, abs=0.06)


def test_the_oracle_keeps_the_largest_weights():
    ask = layer(40)
    keep, weights = sl.TopKOracle(0.25).prefill(ask).keep, truth(ask)
    assert (weights.masked_fill(~keep, 2).amin(-1)[:, :, 8:] >= weights.masked_fill(keep, -1).amax(-1)[:, :, 8:]).all()


def test_no_quest_bound_is_below_a_score_of_its_page():
    ask = layer()
    low, high = page_ranges(ask.key, ask.real_keys, 16)
    scores = ask.query @ ask.keys().transpose(2, 3)
    pages = torch.nn.functional.pad(scores, (0, -N % 16), value=-1e9).unflatten(-1, (-1, 16)).amax(-1)
    assert (bounds(ask.query, low, high) >= pages - 1e-5).all()


def test_quest_page_statistics_are_kept_up_to_date():
    quest, state, whole = sl.Quest(0.5), {}, layer()
    for n in range(150, N + 1):
        ask = Layer(whole.query[:, :, n - 1 : n], whole.key[:, :, :n], Allowed(1, n), 0, 1.0, state)
        kept = quest.ranges(ask)
        for ours, fresh in zip(kept, page_ranges(ask.key, ask.real_keys, 16), strict=True):
            assert torch.equal(ours, fresh)
    other = layer(seed=1)  # another cache of the same length: nothing of the first may be used
    ask = Layer(other.query[:, :, -1:], other.key, Allowed(1, N), 0, 1.0, state)
    assert torch.equal(quest.ranges(ask)[0], page_ranges(ask.key, ask.real_keys, 16)[0])


def test_quest_shares_pages_in_a_group_and_reads_its_own():
    ask = layer()
    shared = sl.Quest(0.3, phase="prefill").prefill(ask).keep
    assert torch.equal(shared[:, 0], shared[:, 1]) and not torch.equal(shared[:, 1], shared[:, 2])
    alone = sl.Quest(0.3, phase="prefill", share_pages=False).prefill(ask).keep
    assert not torch.equal(alone[:, 0], alone[:, 1])
    assert shared[:, :, torch.arange(N), torch.arange(N) // 16].all()
    assert int(sl.Quest(tokens=64).decode(ask).keep[0, 0, -1].sum()) == 5  # four full pages and its own


@pytest.mark.parametrize("pad", [0, 30])
def test_snapkv_keeps_its_capacity_and_ada_keeps_the_same_in_all(pad):
    ask = layer(pad=pad)
    for make in (sl.SnapKV, sl.AdaSnapKV):
        state = {}
        thing = make(capacity=64)
        thing.observe(Layer(ask.query, ask.key, ask.allowed, 0, ask.scale, state))
        kept = state["kept"] & ask.real_keys[:, None]
        assert kept.sum((1, 2)).tolist() == [64 * KV] * 2
        must = always(ask.real_keys, torch.tensor([64, 64]))
        assert (kept | ~must[:, None]).all() and must.sum(-1).tolist() == [36, 36]
        if make is sl.SnapKV:
            assert (kept.sum(-1) == 64).all()
        else:
            assert (kept.sum(-1) >= 36).all() and len(set(kept.sum(-1).flatten().tolist())) > 1


def test_importance_is_smoothed_attention_of_the_last_queries():
    ask = layer()
    weights = truth(ask)[0, :2, -50:].mean(0).sum(0)
    wanted = torch.nn.functional.pad(weights, (10, 10)).unfold(0, 21, 1).sum(-1) / 21
    torch.testing.assert_close(importance(ask, 50)[0, 0], wanted, atol=1e-5, rtol=1e-4)


def test_random_blocks_fall_the_same_way_whatever_comes_after():
    ask = layer()
    lot = sl.RandomBlocks(0.3)
    whole, one = lot.prefill(ask).keep, lot.decode(ask.part(150, 151)).keep
    assert torch.equal(whole[:, :, 150:151, :10], one) and not whole[:, :, 150, 10:].any()
    assert not torch.equal(whole, sl.RandomBlocks(0.3, seed=1).prefill(ask).keep)
    share = sl.RandomBlocks(0.3).prefill(layer(800)).keep[:, :, 700:].float().mean((0, 1, 2))
    assert share[:40].std() < 0.05  # no block is favoured

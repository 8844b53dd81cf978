"""Combiner against its definition, computed key by key, and its identities."""

import math

import pytest
import torch

from sparselens.attention.combiner import Combiner, combine, effective
from sparselens.attention.regions import PLANS, divide, partition, without_summaries
from sparselens.errors import InputError

CAUSAL = sorted(PLANS)
ALL = [(plan, True) for plan in CAUSAL] + [(plan, False) for plan in CAUSAL if plan != "logsparse"]
LENGTHS = (1, 2, 7, 16, 24, 29)
SPAN = 4


def draw(n: int, d: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, n, d, generator=generator, dtype=torch.float64) for _ in range(3))


def covered(plan: str, n: int, causal: bool, i: int) -> tuple[set[int], list[set[int]]]:
    """Direct keys and regions of query `i`, straight from the paper's words."""
    ok = range(i + 1) if causal else range(n)
    row, column = (lambda j: j // SPAN), (lambda j: j % SPAN)
    if plan in ("fixed", "axial_rowmajor"):
        direct = {j for j in ok if row(j) == row(i)}
        return direct, [{j for j in ok if row(j) == r} for r in range(n) if r != row(i)]
    if plan == "logsparse":
        regions, end = [], i
        for level in range(n.bit_length()):
            if i >> level & 1:  # blocks of 1, 2, 4 ... tokens, from the query backwards
                regions.append(set(range(end - 2**level, end)))
                end -= 2**level
        assert end == 0
        return {i}, regions
    direct = {j for j in ok if row(j) == row(i) or column(j) == column(i)}
    down = [{j for j in ok if column(j) == u and row(j) < row(i)} for u in range(SPAN) if u != column(i)]
    if not causal:
        down += [{j for j in ok if column(j) == u and row(j) > row(i)} for u in range(SPAN) if u != column(i)]
    across = []
    for t in range(row(i) if causal else row(n - 1) + 1):
        if t == row(i):
            continue
        across += [{j for j in ok if row(j) == t and column(j) < column(i)},
                   {j for j in ok if row(j) == t and column(j) > column(i)}]
    return direct, {"axial_vertical": down, "axial_horizontal": across, "mixture": down + across}[plan]


def by_hand(q, k, v, plan: str, causal: bool, pool: str, bias: bool):
    """Output and attention over keys of one head, by loops: q, k, v `[n, d]`."""
    n, d = q.shape
    reduce = (lambda x: x.max(0).values) if pool == "max" else (lambda x: x.mean(0))
    attention = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        direct, regions = covered(plan, n, causal, i)
        scores, spread = [], []
        for j in sorted(direct):
            scores.append(float(q[i] @ k[j]) / math.sqrt(d))
            spread.append({j: 1.0})
        for region in filter(None, regions):
            js = sorted(region)
            if plan == "axial_rowmajor":
                own = min(js[0] - js[0] % SPAN + i % SPAN, n - 1)  # a short last row may lack the column
                ask, answer = q[own], k[own]
            else:
                ask, answer = reduce(q[js]), reduce(k[js])
            inside = torch.softmax(k[js] @ ask / math.sqrt(d), 0)
            scores.append(float(q[i] @ answer) / math.sqrt(d) + (math.log(len(js)) if bias else 0.0))
            spread.append(dict(zip(js, inside.tolist(), strict=True)))
        for weight, keys in zip(torch.softmax(torch.tensor(scores, dtype=torch.float64), 0), spread, strict=True):
            for j, share in keys.items():
                attention[i, j] += float(weight) * share
    return attention @ v, attention


@pytest.mark.parametrize(("plan", "causal"), ALL)
@pytest.mark.parametrize(("pool", "bias"), [("max", False), ("mean", True)])
def test_equals_its_definition(plan: str, causal: bool, pool: str, bias: bool):
    for n in LENGTHS:
        q, k, v = draw(n)
        division = divide(plan, n, SPAN, causal)
        out, weights = combine(q, k, v, division, pool=pool, log_size_bias=bias)
        attention = effective(weights, division)
        for b, h in ((0, 0), (1, 2)):
            expected, mine = by_hand(q[b, h], k[b, h], v[b, h], plan, causal, pool, bias)
            assert torch.allclose(out[b, h], expected, atol=1e-10)
            assert torch.allclose(attention[b, h], mine, atol=1e-10)


@pytest.mark.parametrize(("plan", "causal"), ALL)
def test_every_allowed_key_and_no_other_has_weight(plan: str, causal: bool):
    for n in LENGTHS:
        q, k, v = draw(n)
        division = divide(plan, n, SPAN, causal)
        out, weights = combine(q, k, v, division)
        attention = effective(weights, division)
        allowed = torch.ones(n, n, dtype=torch.bool).tril() if causal else torch.ones(n, n, dtype=torch.bool)
        assert torch.allclose(attention.sum(-1), torch.ones(n, dtype=torch.float64))
        assert bool((attention[..., allowed] > 0).all()) and bool((attention[..., ~allowed] == 0).all())
        assert torch.allclose(attention @ v, out, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_a_division_by_labels(causal: bool):
    labels = torch.tensor([2, 0, 0, 2, 7, 0, 7, 2, 2, 0])
    n = len(labels)
    division = partition(labels, causal)
    for i in range(n):
        ok = range(i + 1) if causal else range(n)
        assert set(division.direct[i].tolist()) - {-1} == {j for j in ok if labels[j] == labels[i]}
        (group,) = division.groups
        regions = [frozenset(group.members[r].tolist()) - {-1} for r in group.slots[i].tolist() if r >= 0]
        wanted = [frozenset(j for j in ok if labels[j] == label) for label in (0, 2, 7) if label != labels[i]]
        assert sorted(map(sorted, regions)) == sorted(map(sorted, filter(None, wanted)))
    q, k, v = draw(n)
    attention = effective(combine(q, k, v, division)[1], division)
    allowed = torch.ones(n, n, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    assert torch.equal(attention[0, 0] > 0, allowed)
    assert torch.allclose(attention.sum(-1), torch.ones(n, dtype=torch.float64))


def dense(q, k, v, causal: bool = True):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def test_one_span_is_dense_attention():
    q, k, v = draw(16)
    for causal in (True, False):
        out, _ = combine(q, k, v, divide("fixed", 16, 16, causal))
        assert torch.allclose(out, dense(q, k, v, causal), atol=1e-12)


def test_two_tokens_of_logsparse_are_dense():
    q, k, v = draw(2)
    out, _ = combine(q, k, v, divide("logsparse", 2, 1, True))
    assert torch.allclose(out, dense(q, k, v), atol=1e-12)


def test_equal_keys_and_queries_in_a_region_are_dense_with_the_bias():
    q, k, v = draw(24)
    same = torch.arange(24) // SPAN * SPAN
    k, pooled = k[:, :, same], q[:, :, same]
    division = divide("fixed", 24, SPAN, True)
    out, _ = combine(pooled, k, v, division, log_size_bias=True)
    assert torch.allclose(out, dense(pooled, k, v), atol=1e-12)
    without, _ = combine(pooled, k, v, division)
    assert not torch.allclose(without, dense(pooled, k, v), atol=1e-3)


def test_blocks_of_the_effective_attention_have_rank_one():
    q, k, v = draw(24)
    division = divide("fixed", 24, SPAN, True)
    attention = effective(combine(q, k, v, division)[1], division)
    for start in (0, 8):
        block = attention[0, 0, start + SPAN : start + 2 * SPAN, start : start + SPAN]
        assert torch.linalg.svdvals(block)[1] < 1e-12


def test_number_of_scores_for_each_query():
    for plan, most in (("fixed", 8 + 64 // 8 - 1), ("logsparse", 1 + 6)):
        division = divide(plan, 64, 8, True)
        count = (division.direct >= 0).sum(1) + sum((g.slots >= 0).sum(1) for g in division.groups)
        assert int(count.max()) == most


def test_without_summaries_each_region_is_one_key():
    division = without_summaries(divide("fixed", 12, 4, True))
    assert [set(row.tolist()) - {-1} for row in division.direct[[3, 4, 9]]] == [
        {0, 1, 2, 3}, {3, 4}, {3, 7, 8, 9},
    ]
    axial = without_summaries(divide("axial_rowmajor", 12, 4, True))
    assert set(axial.direct[10].tolist()) - {-1} == {2, 6, 8, 9, 10}


LAYERS = [
    *({"plan": plan} for plan in CAUSAL),
    {"plan": "axial_rowmajor", "summary": "wsum"},
    {"plan": "axial_rowmajor", "summary": "none"},
    {"plan": "mixture", "average": True},
    {"plan": "fixed", "regions": False},
    {"plan": "logsparse", "pool": "mean", "log_size_bias": True},
]


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_layer_is_causal_and_starts_of_rows_agree(settings: dict):
    layer = Combiner(16, 2, span=SPAN, **settings).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    whole = layer(x)
    assert torch.allclose(layer(x[:, :10]), whole[:, :10], atol=1e-10)  # so token by token equals all at once
    changed = x.clone()
    changed[:, 13:] += 1.0
    assert torch.equal(layer(changed)[:, :13], whole[:, :13])
    attention = layer.effective_attention(x)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 2, 21, dtype=torch.float64))
    value = layer.v_proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
    assert torch.allclose(layer.o_proj((attention @ value).transpose(1, 2).flatten(2)), whole, atol=1e-10)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_decoding_with_a_cache_is_all_at_once(settings: dict):
    layer = Combiner(16, 2, span=SPAN, **settings).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    cache = layer.cache(30)  # with room to spare: planned for a longer text
    parts = [layer.extend(x[:, :6], cache)] + [layer.extend(x[:, i : i + 1], cache) for i in range(6, 21)]
    assert torch.allclose(torch.cat(parts, 1), layer(x), atol=1e-10) and len(cache) == 21
    with pytest.raises(InputError, match="21 tokens and 10 new ones"):
        layer.extend(x[:, :10], cache)


def test_a_region_is_summed_up_once():
    layer = Combiner(16, 2, "fixed", span=SPAN)
    cache = layer.cache(16)
    layer.extend(torch.randn(1, 9, 16), cache)
    first = cache.regions[0][0][0][0]
    layer.extend(torch.randn(1, 7, 16), cache)
    assert sorted(cache.regions[0][0]) == [0, 1, 2] and cache.regions[0][0][0][0] is first
    with pytest.raises(InputError, match="both sides"):
        Combiner(16, 2, causal=False).cache(8)


def test_gradients_reach_every_weight():
    for settings in LAYERS:
        layer = Combiner(16, 2, span=SPAN, **settings)
        layer(torch.randn(1, 16, 16)).square().sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_decomposition_adds_up():
    layer = Combiner(16, 2, "fixed", span=SPAN)
    x = torch.randn(1, 12, 16)
    found = layer.decompose(x, 9, head=1)
    frame = found.to_frame()
    assert frame["weight"].sum() == pytest.approx(1, abs=1e-6)
    assert frame.loc[frame["kind"] == "region", ["first", "last"]].values.tolist() == [[0, 3], [4, 7]]
    attention = layer.effective_attention(x)[0, 1, 9]
    assert found.direct == pytest.approx(float(attention[8:10].sum()), abs=1e-6)
    assert found.plot().get_xlabel() == "token"
    assert "region" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Combiner(16, 2, "fixd"), "Closest: fixed"),
        (lambda: Combiner(16, 2, span=0), "at least one token"),
        (lambda: Combiner(16, 2, "logsparse", causal=False), "causal attention"),
        (lambda: Combiner(16, 3), "n_heads=3"),
        (lambda: Combiner(16, 2, pool="min"), "pool='min'"),
        (lambda: Combiner(16, 2, summary="sum"), "Closest: wsum"),
        (lambda: Combiner(16, 2, average=True), "plan='mixture'"),
        (lambda: Combiner(16, 2).decompose(torch.zeros(1, 4, 16), 4), "0 to 3"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()

"""R-Sparse: the exact checks of its definition, on matrices and on live models."""

import warnings

import pytest
import torch

import sparselens as sl
from sparselens.activation.gates import Threshold, TopK
from sparselens.activation.kernels import BACKENDS, Columns
from sparselens.activation.linears import PROJECTIONS, column_norms, linears
from sparselens.activation.low_rank import Factors, low_rank
from sparselens.activation.r_sparse import RSparse, _RankAware, split_budget
from sparselens.errors import FileFormatError, InputError, NotFiniteError
from tests import tiny
from tests.models.test_engine import same, state

TEXTS = ["The quick brown fox jumps", "a b c d", "hello there my friend of old"]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


@pytest.fixture(scope="module")
def calibration(m):
    return sl.calibrate(m, TEXTS, progress=False)


def q_of(m, layer=0):
    return linears(m, f"blocks.{layer}.attn.q.hook_in")[0]


def rank_aware(linear, gate, rank, weighted=True):
    return _RankAware(linear, gate, weighted, rank, Factors())


def product(layer, x):
    """The layer on some tokens, by masks."""
    return layer.product(x, layer.keep(x), layer.linear.module)


def close(a, b, bound=1e-5):
    return float((a - b).norm()) <= bound * float(b.norm()) + 1e-7


# --- factors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (32, 32), (5, 40)])
@pytest.mark.parametrize("rank", [0, 1, 4, 5])
def test_factors_are_the_truncated_svd(shape, rank):
    weight = torch.randn(shape)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    left, right = low_rank(weight, rank)
    assert left.shape == (shape[0], rank) and right.shape == (shape[1], rank)
    assert left.dtype == torch.float32
    assert close((left @ right.T).double(), (u[:, :rank] * s[:rank]) @ vh[:rank])


def test_small_singular_values_are_kept():
    basis = torch.linalg.qr(torch.randn(20, 20).double()).Q
    weight = ((basis * 10.0 ** -torch.arange(0, 5, 0.25, dtype=torch.double)) @ basis.T).float()
    left, right = low_rank(weight, 20)
    assert close(left @ right.T, weight, 1e-6)
    rest = weight.double() - (left[:, :12] @ right[:, :12].T).double()
    assert torch.linalg.matrix_norm(rest, 2) == pytest.approx(1e-3, rel=1e-2)  # the 13th singular value


def test_factors_follow_the_weight_and_are_made_once(monkeypatch):
    made = []
    real = low_rank
    monkeypatch.setattr("sparselens.activation.low_rank.low_rank", lambda w, r: made.append(r) or real(w, r))
    linear, factors = q_of(tiny.live("llama")), Factors()
    for rank, count in ((4, 1), (3, 1), (5, 2)):
        assert factors.of(linear, rank)[0].shape == (32, rank)
        assert len(made) == count
    linear.module.weight.data.mul_(2)
    with torch.no_grad():
        linear.module.weight.mul_(2)
    left, right = factors.of(linear, 5)
    assert len(made) == 3 and close(left @ right.T, (real(linear.weight, 5)[0] @ real(linear.weight, 5)[1].T))


def test_a_weight_that_is_not_finite_is_an_error():
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        low_rank(torch.tensor([[1.0, float("nan")]]), 1)


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(576, 576), (192, 576), (1536, 576), (576, 1536), (32, 32), (16, 32), (14336, 4096)])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.65, 0.9])
def test_no_layer_reads_more_than_its_budget_and_none_leaves_more_than_one_step(size, sparsity):
    d_out, d_in = size
    for i in range(101):
        rho = i / 100
        kept, rank = split_budget(d_out, d_in, sparsity, rho)
        read, allowed = kept * d_out + rank * (d_in + d_out), (1 - sparsity) * d_in * d_out
        assert read <= allowed + 1e-6 * d_out
        assert allowed - read < d_in + d_out
        assert rank != 1 or rho == 0


def test_the_budget_by_hand():
    assert split_budget(576, 576, 0.5, 0.95) == (273, 7)
    assert split_budget(576, 576, 0.5, 1.0) == (288, 0)
    assert split_budget(576, 576, 0.5, 0.0) == (0, 144)
    assert split_budget(576, 576, 0.9, 1.0) == (57, 0)
    assert split_budget(10, 10, 0.5, 0.01) == (1, 2)  # one channel at least when rho > 0


def test_layers_have_their_true_shapes_under_grouped_queries(m):
    rows = {row.proj: row for row in RSparse(0.5, rho=0.5).budgets(m).rows if row.layer == 0}
    assert set(rows) == set(PROJECTIONS)
    for linear in linears(m)[:7]:
        row = rows[linear.proj]
        assert (row.d_out, row.d_in) == tuple(linear.module.weight.shape)
        assert (row.kept, row.rank) == split_budget(row.d_out, row.d_in, 0.5, 0.5)
    assert rows["k"].d_out == 16 and rows["k"].rank < rows["q"].rank


def test_rho_by_projection_site_and_glob(m):
    recipe = RSparse(0.5, rho={"q": 0.5, "blocks.1.*": 0.25, "blocks.1.mlp.hook_post": 1.0})
    found = {row.site: row.rho for row in recipe.budgets(m).rows}
    assert found["blocks.0.attn.q.hook_in"] == 0.5 and found["blocks.0.attn.k.hook_in"] == 1.0
    assert found["blocks.1.attn.q.hook_in"] == 0.25 and found["blocks.1.mlp.hook_post"] == 1.0
    with pytest.raises(InputError, match="rho is given for 'bloks.*Closest"):
        RSparse(0.5, rho={"bloks.0.attn.q.hook_in": 0.5}).budgets(m)


def test_a_rank_too_low_to_use_is_said_and_its_share_goes_to_channels(m):
    recipe = RSparse(0.5, rho=0.95, dense_prefix=0)
    with pytest.warns(UserWarning, match="rank of 1 or less.*blocks.0.attn.q.hook_in"):
        recipe.edits(m)
    assert {(row.kept, row.rank) for row in recipe.budgets(m).rows if row.proj == "q"} == {(16, 0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RSparse(0.5, rho=1.0).edits(m)
        RSparse(0.5, rho=0.5).edits(m)


# --- the layer -----------------------------------------------------------------------------------------------------


def test_the_output_is_channels_plus_the_low_rank_rest(m):
    linear, x = q_of(m), torch.randn(2, 5, 32)
    left, right = low_rank(linear.weight, 6)
    norms = linear.weight.norm(dim=0)
    assert torch.allclose(column_norms(linear.weight), norms, rtol=1e-6)
    keep = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, (x.abs() * norms).topk(9).indices, True)
    expected = (x * keep) @ linear.weight.T + (x * ~keep) @ (left @ right.T).T
    assert close(product(rank_aware(linear, TopK(9), 6), x), expected)
    kept, dropped = x.masked_fill(~keep, 0), x.masked_fill(keep, 0)
    assert not (kept * dropped).any() and torch.equal(kept + dropped, x)


@pytest.mark.parametrize("proj", ["q", "k", "gate", "down"])
@pytest.mark.parametrize("k", [0, 1, 7, 31])
def test_full_rank_is_dense_whatever_the_mask(m, proj, k):
    linear = next(one for one in linears(m) if one.proj == proj)
    x = torch.randn(6, linear.d_in)
    layer = rank_aware(linear, TopK(k), min(linear.d_in, linear.d_out))
    assert close(product(layer, x), x @ linear.weight.T)


def test_a_weight_of_low_rank_is_exact_for_every_mask_and_token():
    m = tiny.live("llama")
    linear = q_of(m)
    with torch.no_grad():
        linear.module.weight.copy_(torch.randn(32, 3) @ torch.randn(3, 32))
    x = torch.randn(50, 32)
    for k in (0, 5, 20):
        assert close(product(rank_aware(linear, TopK(k), 3), x), x @ linear.weight.T, 2e-5)
    assert not close(product(rank_aware(linear, TopK(5), 2), x), x @ linear.weight.T, 1e-2)


def test_without_channels_it_is_the_svd_and_without_the_branch_the_channels(m):
    linear, x = q_of(m), torch.randn(6, 32)
    left, right = low_rank(linear.weight, 5)
    assert close(product(rank_aware(linear, TopK(0), 5), x), x @ (left @ right.T).T)
    layer = rank_aware(linear, TopK(9), 5)
    layer.factors.of(linear, 5)[0].zero_()  # nothing is counted twice: what is left is the channels alone
    assert torch.equal(product(layer, x), product(rank_aware(linear, TopK(9), 0), x))


def test_the_error_is_that_of_the_dropped_columns(m):
    linear, x = q_of(m), torch.randn(32)
    layer = rank_aware(linear, TopK(11), 4)
    left, right = low_rank(linear.weight, 4)
    rest, dropped = linear.weight - left @ right.T, ~layer.keep(x)
    by_columns = sum((x[j] * rest[:, j] for j in range(32) if dropped[j]), torch.zeros(32))
    assert close(x @ linear.weight.T - product(layer, x), by_columns)


def test_kept_tokens_are_dense_bit_for_bit(m):
    linear, x = q_of(m), torch.randn(6, 32)
    assert torch.equal(product(rank_aware(linear, TopK(32), 5), x), linear.module(x))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_kernel_computes_what_the_masks_do(m, name):
    for proj in ("q", "k", "gate", "down"):
        linear = next(one for one in linears(m) if one.proj == proj)
        for gate in (TopK(0), TopK(9), Threshold(2.0)):
            layer = rank_aware(linear, gate, 7)
            layer.make_columns = lambda one=layer: Columns(one.linear.weight, one.factors.of(one.linear, 7), name)
            x = torch.randn(1, 1, linear.d_in)
            assert close(layer.row(x), product(layer, x))


# --- on a model ----------------------------------------------------------------------------------------------------


def test_sparsity_0_installs_nothing_and_keeping_all_is_dense(m):
    clean = m.run(TEXTS).logits
    assert RSparse(0.0, rho=0.5).edits(m) == []
    with m.attach(RSparse(1e-9, rho=1.0, dense_prefix=0)):
        assert torch.equal(m.run(TEXTS).logits, clean)


def test_rho_1_by_magnitude_is_teal_with_the_same_threshold(m, calibration):
    settings = {"gate": "threshold", "calibration": calibration, "dense_prefix": 2}
    with m.attach(sl.TEAL(0.4, **settings)):
        teal = m.run(TEXTS).logits
    with m.attach(RSparse(0.4, rho=1.0, score_at_rho1="magnitude", **settings)):
        assert torch.equal(m.run(TEXTS).logits, teal)
    with m.attach(RSparse(0.4, rho=1.0, **settings)):
        ours = m.run(TEXTS).logits
    with m.attach(sl.WINA(0.4, scope="all", **settings)):
        assert torch.equal(m.run(TEXTS).logits, ours)
    assert not torch.equal(ours, teal)


def test_the_threshold_is_the_quantile_of_the_share_that_is_dropped(m, calibration):
    recipe = RSparse(0.5, rho={"q": 0.5, "down": 0.0}, gate="threshold", calibration=calibration)
    layers = {layer.linear.proj: layer for layer in recipe.layers(m)[:7]}
    site = layers["q"].linear.site
    assert layers["q"].gate == Threshold(calibration.threshold(site, 0.75, True))
    site = layers["gate"].linear.site
    assert layers["gate"].gate == Threshold(calibration.threshold(site, 0.5, True))
    assert layers["down"].gate == TopK(0) and layers["down"].rank > 0


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
def test_detached_is_untouched_and_a_cache_equals_none(backend):
    m = tiny.live("llama", backend)
    before, clean = state(m), m.run(TEXTS).logits
    recipe = RSparse(0.5, rho=0.6, dense_prefix=0)
    with m.attach(recipe):
        sparse = m.run(TEXTS).logits
        written = m.generate("The quick", max_new_tokens=6)
        by_hand = m.tokenizer("The quick")["input_ids"]
        start = len(by_hand)
        for _ in range(6):
            by_hand.append(int(m.run(torch.tensor([by_hand])).logits[0, -1].argmax()))
        assert written == m.tokenizer.decode(by_hand[start:], skip_special_tokens=True)
        with m.untouched():
            assert torch.equal(m.run(TEXTS).logits, clean)
    assert not torch.allclose(sparse, clean, atol=1e-3)
    assert same(before, state(m)) and torch.equal(m.run(TEXTS).logits, clean)


def test_the_report_counts_the_branch(m):
    recipe = RSparse(0.5, rho=0.5, dense_prefix=0)
    rows = recipe.budgets(m).rows
    with m.attach(recipe) as lens:
        report = lens.report(TEXTS)
    read, weights = sum(row.read for row in rows), sum(row.d_in * row.d_out for row in rows)
    assert report.to_frame()["sparsity"].iloc[0] == pytest.approx(1 - read / weights)
    assert 0.5 <= 1 - read / weights < 0.6


def test_gpt2_has_biases_and_stores_its_weights_the_other_way():
    m = tiny.live("gpt2")
    recipe = RSparse(0.5, rho=0.5, dense_prefix=0)
    for speed in ("mask", "auto"):
        recipe.speed = speed
        linear = linears(m)[1]
        layer = next(one for one in recipe.layers(m) if one.linear.site == linear.site)
        x = m.capture("a", linear.site)[linear.site]
        with m.attach(recipe, at=linear.site):
            y = m.capture("a", "blocks.0.mlp.hook_pre")["blocks.0.mlp.hook_pre"]
        left, right = low_rank(linear.weight, layer.rank)
        keep = layer.keep(x)
        expected = (x * keep) @ linear.weight.T + (x * ~keep) @ (left @ right.T).T + linear.bias
        assert close(y, expected)


# --- recipes -------------------------------------------------------------------------------------------------------


def test_recipes_come_back_from_their_file(m, calibration, tmp_path):
    rho = {linear.site: i / 20 for i, linear in enumerate(linears(m)[:21])}
    recipe = RSparse(0.4, rho=rho, score_at_rho1="magnitude", dense_prefix=0.25, phase="prefill")
    again = RSparse.load(recipe.save(tmp_path / "recipe.json"))
    assert (again.sparsity, again.rho, again.score_at_rho1) == (0.4, rho, "magnitude")
    assert (again.dense_prefix, again.phase, again.gate) == (0.25, "prefill", "topk")
    with m.attach(recipe):
        expected = m.run(TEXTS).logits
    with m.attach(again):
        assert torch.equal(m.run(TEXTS).logits, expected)
    path = RSparse(0.5, gate="threshold", calibration=calibration).save(tmp_path / "threshold.json")
    assert RSparse.load(path, calibration).calibration is calibration
    with pytest.raises(InputError, match="calibration"):
        RSparse.load(path)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", FileFormatError, "not valid JSON"),
        ("{}", FileFormatError, "not an R-Sparse recipe"),
        ('{"format": "sparselens R-Sparse recipe 1", "sparsity": 0.5, "roh": 1}', FileFormatError, "unknown .'roh'"),
        (None, InputError, "is not there"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, error, says):
    path = tmp_path / "recipe.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says):
        RSparse.load(path)


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan"), True, {"q": 2.0}])
def test_rho_must_be_a_share(rho):
    with pytest.raises(InputError, match=r"rho=.* is not in \[0, 1\]"):
        RSparse(0.5, rho=rho)


def test_other_bad_arguments():
    with pytest.raises(InputError, match="score_at_rho1='weight'.*Closest: weighted"):
        RSparse(0.5, score_at_rho1="weight")
    with pytest.raises(InputError, match="sparsity=1"):
        RSparse(1.0)


# --- landscape -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proj", ["q", "k", "down"])
def test_the_landscape_is_the_error_of_the_layer_at_every_point(m, proj):
    found = RSparse(0.5, rho=0.5).landscape(m, TEXTS, 1, proj)
    linear = next(one for one in linears(m) if one.layer == 1 and one.proj == proj)
    x = torch.cat([batch.values[~batch.first] for batch in m.stream(TEXTS, linear.site)])
    assert found.tokens == len(x)
    dense = x @ linear.weight.T
    for a, b in ((0, 0), (0, 3), (5, 0), (7, 4), (len(found.channels) - 2, len(found.ranks) - 1)):
        layer = rank_aware(linear, TopK(found.channels[a]), found.ranks[b])
        error = float((product(layer, x) - dense).norm() / dense.norm())
        assert float(found.error[a, b]) == pytest.approx(error, abs=1e-5)
    assert not found.error[-1].any()  # all channels
    assert found.error[0, 0] == 1  # nothing
    for rho, kept, rank, _ in found.line:
        assert (kept, rank) == split_budget(*linear.weight.shape, 0.5, rho)
    assert found.best[3] == min(error for *_, error in found.line)
    assert (found.budget.kept, found.budget.rank) == split_budget(*linear.weight.shape, 0.5, 0.5)


def test_the_landscape_finds_where_rank_is_better():
    m = tiny.live("llama")
    low, full = q_of(m, 0), q_of(m, 1)
    with torch.no_grad():
        low.module.weight.copy_(torch.randn(32, 3) @ torch.randn(3, 32))
        full.module.weight.copy_(torch.linalg.qr(torch.randn(32, 32)).Q)
    recipe = RSparse(0.5)
    assert recipe.landscape(m, TEXTS, 0, "q").best[0] < 0.9
    assert recipe.landscape(m, TEXTS, 0, "q").best[3] < 1e-6
    assert recipe.landscape(m, TEXTS, 1, "q").best[0] == 1.0


def test_views(m):
    recipe = RSparse(0.5, rho={"q": 0.2, "k": 0.5})
    found = recipe.landscape(m, TEXTS, 0, "q")
    assert len(found.to_frame()) == len(found.channels) * len(found.ranks)
    assert "least error" in found._repr_html_() and found.plot().get_xlabel() == "kept channels"
    budgets = recipe.budgets(m)
    assert list(budgets.to_frame()["proj"][:7]) == list(PROJECTIONS)
    assert "R-Sparse" in budgets._repr_html_()
    image = budgets.plot().images[0].get_array()
    assert image.shape == (7, 3) and image[0].tolist() == pytest.approx([0.2] * 3)


def test_bad_layers_of_a_landscape(m):
    with pytest.raises(InputError, match="proj='dwon'.*Closest: down"):
        RSparse(0.5).landscape(m, TEXTS, 0, "dwon")
    with pytest.raises(InputError, match="leaves blocks.0.attn.k.hook_in dense"):
        RSparse({"q": 0.5}).landscape(m, TEXTS, 0, "k")
    with pytest.raises(InputError, match="no tokens to measure on"):
        RSparse(0.5).landscape(m, ["a"], 0, "q")

"""Published tables, and what must hold of any cost: monotone, scaled by density, priced on the right card."""

from types import SimpleNamespace

import pytest

import sparselens as sl
from sparselens import costs
from sparselens.costs.pipeline import attention_seconds
from sparselens.costs.published import TABLE_8
from sparselens.errors import InputError
from tests import tiny


def test_every_published_figure_is_reproduced():
    frame = costs.validate()
    assert len(frame) == 36 + 10 + 4 * 15 + 6 + 4 + 3 + 3
    assert frame[~frame["within"]].to_dict("records") == []


def test_throughput_and_its_simulated_bound():
    frame = costs.validate_throughput()
    assert frame["at_50_ms"].round().tolist() == [3840, 3024, 2560]
    assert frame["tpot_ms"].round(1).tolist() == [47.5, 45.5, 48.4]
    assert (frame["share"] < 1).all()  # at full efficiency nothing measured may be faster
    assert len(frame) == len(TABLE_8)


def test_measured_layers_are_fitted_within_their_residuals():
    fits = {fit.card: fit for fit in costs.fit_layers()}
    for fit in fits.values():
        assert 0 < fit.compute <= 1 and 0 < fit.memory <= 1
        assert fit.to_frame()["error"].abs().max() < 0.15
    assert fits["H800"].memory > fits["H20"].memory


def test_network_stage_of_the_larger_variant():
    """3,072 tokens a micro-batch on 3 attention and 4 feed-forward servers at 40 GB/s a card: 275 microseconds."""
    ran = costs.afd("step3", 4096, 3 * 3072, attention=3, ffn=4, network=8 * 40e9)
    assert ran.stages["network"] == pytest.approx(275e-6, rel=0.002)


def test_pipeline_by_hand():
    ran = costs.afd("step3", 4096, 6144)
    kind = costs.PRESETS["step3"].attention[0]
    weights = 7168 * 2048 + 2048 * 64 * 256 + 2 * 7168 * 256 + 64 * 256 * 7168 / 8
    assert kind.projections + kind.output / 8 == weights
    assert ran.stages["attention"] == pytest.approx((128 * 512 * 4096 + weights) / 3.35e12)
    assert ran.stages["network"] == pytest.approx(3 * 7168 * 2048 / 400e9)
    assert ran.bottleneck == "network"
    assert ran.tpot_ms == pytest.approx(1e3 * 61 * 3 * ran.stages["network"])
    assert ran.tgs == pytest.approx(6144 / (ran.tpot_ms / 1e3) / 32)
    assert ran.to_frame()["busy"].max() == 1
    slower = costs.afd("step3", 4096, 6144, memory=0.5)
    assert slower.stages["attention"] == pytest.approx(2 * ran.stages["attention"])


def test_parameters_of_mfa():
    kind = costs.PRESETS["step3"].attention[0]
    d, r, n, c = 7168, 2048, 64, 256
    assert kind.projections + kind.output == d * r + r * n * c + 2 * d * c + n * c * d
    assert (kind.projections + kind.output) / 1e6 == pytest.approx(169.3, abs=0.1)


def test_multi_query_and_multi_head_are_ends_of_grouped_query():
    mha, mqa = costs.gqa(1, 64, 8, 8, 8), costs.gqa(1, 64, 8, 1, 8)
    assert mha.kv_numbers == 8 * mqa.kv_numbers == 2 * 64
    assert mha.core_flops == mqa.core_flops
    assert mha.projections == 3 * 64 * 64


@pytest.mark.parametrize("name", sorted(costs.PRESETS))
def test_cost_grows_with_context_and_shrinks_with_density(name: str):
    prices = [costs.decode_cost(name, n).attention("H800") for n in (1024, 8192, 65536)]
    assert prices == sorted(prices)
    it = costs.PRESETS[name]
    constant = it.kv_bytes(1000, 1e-12), it.core_flops(1000, 1e-12)
    for rho in (0.5, 0.1):
        assert it.kv_bytes(1000, rho) - constant[0] == pytest.approx(rho * (it.kv_bytes(1000) - constant[0]))
        assert it.core_flops(1000, rho) - constant[1] == pytest.approx(rho * (it.core_flops(1000) - constant[1]))
    assert costs.decode_cost(name, 8192, density=0.1).total() < costs.decode_cost(name, 8192).total()


def test_bytes_of_the_cache_double_without_the_operations():
    one = costs.PRESETS["step3"]
    two = one.with_cache(2.0)
    assert two.kv_bytes(8192) == 2 * one.kv_bytes(8192)
    assert two.core_flops(8192) == one.core_flops(8192)


def test_sixteen_bit_attention_uses_sixteen_bit_peak():
    kind = costs.PRESETS["dsv3"].attention[0]
    eight = attention_seconds(kind, 65536, 1e4, "H20")
    sixteen = attention_seconds(kind, 65536, 1e4, "H20", weight_bytes=2.0)
    assert sixteen == pytest.approx(2 * eight)


def test_frames_and_figures():
    cost = costs.decode_cost("step3", 8192)
    frame = cost.to_frame()
    assert frame["card"].tolist() == ["H800", "H20", "A800", "910B"]
    assert frame["bound"].tolist() == ["memory", "arithmetic", "memory", "memory"]
    assert "H800" in cost._repr_html_()
    assert len(cost.plot().patches) == 8
    ran = costs.afd("step3", 4096, 6144)
    assert len(ran.plot().patches) == 27
    saved = costs.what_if("step3", 0.25, (1024, 4096))
    assert saved.plot().get_xscale() == "log"
    assert "dense" in saved._repr_html_() and "stage" in ran._repr_html_()


def test_shape_of_a_live_model():
    for family, matrices, kv_heads in (("llama", 3, 2), ("gpt2", 2, 4)):
        native = tiny.model(family)
        it = costs.shape(sl.wrap(native, tiny.tokenizer()))
        assert it == costs.shape(native)
        block = [p for n, p in native.named_parameters() if ".1." in f".{n}." or "layers.1." in n or "h.1." in n]
        weights = sum(p.numel() for p in block if p.dim() == 2)
        assert (it.linear_flops + it.ffn_flops) / 2 == 3 * weights
        assert it.ffn[0].matrices == matrices
        assert it.kv_bytes(10) == 3 * 10 * 2 * kv_heads * 8 * 4  # layers, tokens, k and v, heads, size, float32


def test_prefill_and_decode_formulas_by_hand():
    it = costs.shape(tiny.llama())
    n, d, heads, head, kv, ff, layers = 100, 32, 4, 8, 2, 48, 3
    dense = layers * (2 * n * d * (2 * d + 2 * head * kv) + heads * n * n * (4 * head + 3)) + layers * 6 * n * d * ff
    assert costs.prefill_flops(it, n) == pytest.approx(dense)
    pairs = layers * heads * n * n * (4 * head + 3)
    assert costs.prefill_flops(it, n, density=0.25) == pytest.approx(dense - 0.75 * pairs)
    assert costs.prefill_flops(it, n, causal_half=True) == pytest.approx(dense - 0.5 * pairs)
    block = layers * 2 * heads * (n / 16) ** 2 * head
    assert costs.prefill_flops(it, n, density=0.25, index="block") == pytest.approx(dense - 0.75 * pairs + block)
    slash = layers * 2 * heads * n * n * head  # the window of 256 is longer than the text
    assert costs.prefill_flops(it, n, density=0.5, index="vertical_slash") == pytest.approx(
        dense - 0.5 * pairs + slash
    )
    weights = layers * (2 * d * d + 2 * d * head * kv + 3 * d * ff)
    cache = layers * 2 * kv * head * 4 * n
    assert costs.decode_bytes(it, n, weight_bytes=4.0) == pytest.approx(4 * weights + cache)
    sparse = costs.decode_bytes(it, n, density=0.25, batch=3, weight_bytes=4.0)
    assert sparse == pytest.approx(4 * weights + 3 * 0.25 * cache)
    quest = costs.decode_bytes(it, n, density=0.25, index="quest", batch=3, weight_bytes=4.0)
    assert quest - sparse == pytest.approx(3 * cache / 16)


def test_density_of_a_measurement_is_read_from_it():
    measured = SimpleNamespace(density=0.125)
    frame = costs.what_if("qwen3-32b", measured, (8192,), phase="decode", batch=64).to_frame()
    assert frame["sparse"][0] == costs.decode_bytes("qwen3-32b", 8192, density=0.125, batch=64)
    assert costs.decode_cost("step3", 8192, density=measured).density == 0.125
    full = costs.what_if("qwen3-32b", 1.0, (8192,), phase="prefill", index="block").to_frame()
    assert full["times"][0] == 1  # at full density nothing needs to be found


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: costs.decode_cost("step4", 8), "Closest: step3"),
        (lambda: costs.decode_cost("step3", 8, cards=["H80"]), "Closest: H800"),
        (lambda: costs.decode_cost("step3", 8, cards=[]), "at least one card"),
        (lambda: costs.decode_cost("step3", 0), "at least 1"),
        (lambda: costs.decode_cost("step3", 8, density=0), "above 0"),
        (lambda: costs.decode_cost("step3", 8, density=1.5), "at most 1"),
        (lambda: costs.decode_cost("step3", 8, density="half"), "'half'"),
        (lambda: costs.decode_cost("step3", 8, cards=["L20"]).total(), "usd_per_hour of L20"),
        (lambda: costs.decode_cost("step3", 8).total("apart"), "'apart'"),
        (lambda: costs.decode_cost(object(), 8), "shape of a object"),
        (lambda: costs.shape(tiny.model("mixtral")), "has experts"),
        (lambda: costs.afd("step3", 8, 0), "batch"),
        (lambda: costs.afd("step3", 8, 8, memory=0.0), "memory"),
        (lambda: costs.prefill_flops("dsv3", 8), "MLA"),
        (lambda: costs.prefill_flops("step3", 8, index="blocks"), "Closest: block"),
        (lambda: costs.what_if("step3", 0.5, phase="train"), "'train'"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()

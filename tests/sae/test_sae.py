import pytest
import torch

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae import SAE, InputNorm, Latents, architectures, decoders, selection
from sparselens.sae import sae as sae_module
from sparselens.sae.decoders import Bypass, Decoder
from sparselens.sae.latents import to_dense

ARCHITECTURES = [
    ("topk", 4),
    ("abstopk", 4),
    ("batchtopk", 4),
    ("batch_abstopk", 4),
    ("featurechoice", 4),
    ("jumprelu", None),
    ("relu", None),
    ("gated", None),
    ("topafa", None),
]
RANKED = ("topk", "abstopk", "batchtopk", "batch_abstopk", "topafa")


def random_sae(architecture="topk", d_in=8, d_sae=40, k=4, **settings) -> SAE:
    sae = SAE(architecture, d_in=d_in, d_sae=d_sae, k=k, **settings)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return sae.requires_grad_(False)


def test_a_fresh_one_has_unit_rows_a_tied_encoder_and_a_seed():
    sae = SAE("topk", d_in=8, d_sae=40, k=4, seed=3)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(40), atol=1e-6)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.W_dec, SAE("topk", d_in=8, d_sae=40, k=4, seed=3).W_dec)
    assert not torch.equal(sae.W_dec, SAE("topk", d_in=8, d_sae=40, k=4, seed=4).W_dec)
    assert (sae.d_in, sae.d_sae, sae.k, sae.architecture) == (8, 40, 4, "topk")


def test_topk_is_the_formula():
    sae, x = random_sae(), torch.randn(3, 5, 8)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    floor = pre.topk(4).values[..., -1:]
    dense = torch.where(pre >= floor, pre.relu(), 0.0)
    z = sae.encode(x)
    assert z.values.shape == z.indices.shape == (3, 5, 4)
    torch.testing.assert_close(z.dense(), dense)
    torch.testing.assert_close(sae(x), dense @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae.decode(z), sae.decode(dense))


def test_jumprelu_and_batchtopk_use_thresholds_and_relu_none():
    x = torch.randn(6, 8)
    for architecture, k in [("batchtopk", 4), ("jumprelu", None), ("relu", None)]:
        sae = random_sae(architecture, k=k)
        threshold = torch.zeros(())
        if architecture == "jumprelu":
            threshold = sae.activation.threshold = torch.nn.Parameter(torch.rand(40), requires_grad=False)
        if architecture == "batchtopk":
            threshold = sae.activation.threshold = torch.tensor(0.7)
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        torch.testing.assert_close(sae.encode(x), torch.where(pre > threshold, pre.relu(), 0.0))


def test_signed_architectures_keep_what_is_large_in_size_with_its_sign():
    x = torch.randn(6, 8)
    sae = random_sae("abstopk")
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = pre.abs() >= pre.abs().topk(4).values[:, -1:]
    torch.testing.assert_close(sae.encode(x).dense(), pre * kept)
    assert (sae.encode(x).values < 0).any()
    sae = random_sae("batch_abstopk")
    sae.activation.threshold = torch.tensor(0.7)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.encode(x), torch.where(pre.abs() > 0.7, pre, 0.0))


def test_a_gated_one_has_a_gate_and_a_size_from_one_product():
    sae, x = random_sae("gated", k=None), torch.randn(6, 8)
    part, product = sae.activation, (x - sae.b_dec) @ sae.W_enc
    truth = (product + part.b_gate > 0) * (product * part.r_mag.exp() + part.b_mag).relu()
    assert sae.b_enc is None and 0 < int((truth > 0).sum()) < truth.numel()
    torch.testing.assert_close(sae.encode(x), truth)


def test_a_tied_encoder_follows_the_decoder():
    sae, x = random_sae("relu", k=None, tied=True), torch.randn(6, 8)
    assert "W_enc" not in sae.state_dict() and torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.encode(x), ((x - sae.b_dec) @ sae.W_dec.T + sae.b_enc).relu())
    sae.W_dec.data *= 2
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_writes_another_width(skip):
    sae, x = random_sae("topk", d_out=5, skip=skip, site="a", site_out="b"), torch.randn(3, 4, 8)
    assert sae.is_transcoder and not sae.subtract_b_dec and (sae.reads, sae.writes) == (("a",), ("b",))
    pre = x @ sae.W_enc + sae.b_enc
    floor = pre.topk(4).values[..., -1:]
    truth = torch.where(pre >= floor, pre.relu(), 0.0) @ sae.W_dec + sae.b_dec
    if skip:
        truth = truth + x @ sae.W_skip.T
        with pytest.raises(InputError, match="measure"):
            sae.decode(sae.encode(x))
    assert sae(x).shape == (3, 4, 5)
    torch.testing.assert_close(sae(x), truth)
    torch.testing.assert_close(sae.decode(sae.encode(x), sae.measure(x)), truth)


def test_a_crosscoder_has_its_sites_side_by_side():
    sae = random_sae("topk", d_in=12, site=["a", "b", "c"])
    assert sae.reads == sae.writes == ("a", "b", "c") and sae.site is None and not sae.is_transcoder
    assert sae(torch.randn(3, 12)).shape == (3, 12)
    with pytest.raises(InputError, match="3 sites.*evenly"):
        SAE("topk", d_in=8, d_sae=40, k=4, site=["a", "b", "c"])


class Doubled(Decoder):
    """A decoder part for the tests: twice its atoms, plus a quadratic term."""

    name = "doubled"

    def __init__(self, d_sae, d_out):
        super().__init__(d_sae=d_sae, d_out=d_out)
        self.table = torch.nn.Parameter(torch.randn(d_sae, d_out))

    @property
    def atoms(self):
        return 2 * self.table

    def forward(self, z):
        dense = to_dense(z)
        return dense @ self.atoms + dense.square() @ self.table


class Around(Bypass):
    """A bypass part for the tests: a matrix of rank two."""

    name = "around"

    def __init__(self, d):
        super().__init__(d=d)
        self.left, self.right = (torch.nn.Parameter(torch.randn(d, 2)) for _ in range(2))

    def forward(self, sae, x):
        return x @ self.left @ self.right.T


def test_other_decoders_and_ways_around_the_codes_are_parts(tmp_path, monkeypatch):
    sae, x = random_sae(decoder=Doubled(40, 8), bypass=Around(8)), torch.randn(7, 8)
    centred = x - sae.b_dec
    z = sae.encode(x)
    truth = z.dense() @ sae.W_dec + z.dense().square() @ sae.decoder.table
    truth = truth + centred @ sae.bypass.left @ sae.bypass.right.T + sae.b_dec
    assert torch.equal(sae.W_dec, 2 * sae.decoder.table)
    torch.testing.assert_close(sae(x), truth)
    monkeypatch.setitem(architectures.DECODERS, "doubled", Doubled)
    monkeypatch.setitem(architectures.BYPASSES, "around", Around)
    torch.testing.assert_close(SAE.load(sae.save(tmp_path / "sae"))(x), truth)
    with pytest.raises(InputError, match="cannot hold"):
        sae.save(tmp_path / "sae", format="saelens")


@pytest.mark.parametrize("signed", [False, True])
def test_selections_are_exact(signed):
    uneven = torch.randn(12, 320) * torch.linspace(0.01, 9, 12)[:, None]  # some rows own nearly all survivors
    for pre, k in [(torch.randn(30, 50), 3), (torch.randn(30, 320), 3), (uneven, 3), (uneven, 0.5), (uneven, 320)]:
        size = pre.abs() if signed else pre
        where = selection.largest_of_batch(pre, k, signed)
        assert len(where) == len(set(where.tolist())) == int(k * len(pre))
        truth = size.flatten().topk(int(k * len(pre))).values
        torch.testing.assert_close(size.flatten()[where].sort(descending=True).values, truth)
        if k >= 1:
            rows = selection.largest_of_token(pre, int(k), signed)
            assert torch.equal(rows.sort(1).values, size.topk(int(k)).indices.sort(1).values)


def test_batchtopk_selects_over_the_batch_in_training():
    sae = random_sae("batchtopk", k=2.5)
    pre = torch.randn(10, 40)
    chosen = sae.activation.select(pre)
    assert int((chosen > 0).sum()) == 25
    assert chosen[chosen > 0].min() >= pre[chosen == 0].max()


def test_without_subtracting_b_dec():
    sae, x = random_sae("relu", k=None, subtract_b_dec=False), torch.randn(4, 8)
    torch.testing.assert_close(sae.encode(x), (x @ sae.W_enc + sae.b_enc).relu())


def test_ranking_by_decoder_norm_carries_the_norm_in_the_codes():
    sae, x = random_sae(rank_by_decoder_norm=True), torch.randn(5, 8)
    norms = sae.W_dec.norm(dim=1)
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    values, where = pre.topk(4)
    torch.testing.assert_close(sae.encode(x).values.sort(-1, descending=True).values, values.relu())
    dense = torch.zeros(5, 40).scatter(1, where, values.relu())
    torch.testing.assert_close(sae(x), (dense / norms) @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae.decode(dense), sae(x))


@pytest.mark.parametrize("kind", ["unit_norm", "layer_norm", "scale"])
def test_input_norms_are_undone(kind):
    norm = InputNorm(kind, 3.0)
    x = torch.randn(2, 5, 8) * 7 + 1
    normed = norm.apply(x, norm.measure(x))
    torch.testing.assert_close(norm.undo(normed, norm.measure(x)), x, rtol=1e-4, atol=1e-4)
    if kind == "unit_norm":
        torch.testing.assert_close(normed.norm(dim=-1), torch.full((2, 5), 8**0.5))
    if kind == "layer_norm":
        torch.testing.assert_close(normed.std(-1), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_a_per_token_norm_travels_explicitly_and_nothing_is_kept():
    sae = random_sae("topk", input_norm="unit_norm")
    x, y = torch.randn(5, 8), torch.randn(5, 8) * 9
    z, _ = sae.encode(x), sae.encode(y)
    torch.testing.assert_close(sae.decode(z, sae.measure(x)), sae(x))
    with pytest.raises(InputError, match="measure"):
        sae.decode(z)


def test_gathering_and_dense_decoding_agree(monkeypatch):
    sae, x = random_sae(d_sae=64, k=4), torch.randn(9, 8)
    gathered = sae(x)
    monkeypatch.setattr(decoders, "GATHER_FROM", 1000)
    torch.testing.assert_close(sae(x), gathered)


@pytest.mark.parametrize("architecture, k", [pair for pair in ARCHITECTURES if pair[0] != "topafa"])
def test_chunks_do_not_change_a_thing_and_bound_the_buffer(monkeypatch, architecture, k):
    sae, x = random_sae(architecture, k=k), torch.randn(33, 8)
    whole, codes = sae(x), sae.encode(x)
    seen = []
    inner = sae.activation.forward
    monkeypatch.setattr(sae.activation, "forward", lambda pre: seen.append(pre.numel()) or inner(pre))
    monkeypatch.setattr(sae_module, "BUFFER", 40 * 5)
    torch.testing.assert_close(sae(x), whole)
    assert max(seen) <= 200
    if architecture in ("topk", "abstopk"):
        torch.testing.assert_close(sae.encode(x).dense(), codes.dense())
        assert max(seen) <= 200


def test_gradients_reach_the_input_and_the_weights():
    sae, x = random_sae().requires_grad_(True), torch.randn(5, 8, requires_grad=True)
    sae(x).square().sum().backward()
    assert x.grad.abs().sum() > 0 and sae.W_enc.grad.abs().sum() > 0 and sae.W_dec.grad.abs().sum() > 0


def test_empty_and_half_precision_inputs():
    sae = random_sae()
    assert sae(torch.randn(0, 5, 8)).shape == (0, 5, 8)
    assert sae.encode(torch.randn(0, 8)).values.shape == (0, 4)
    assert sae(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    half = random_sae().to(torch.float16)
    assert torch.isfinite(half(torch.full((2, 8), 3e4, dtype=torch.float16)).float()).shape == (2, 8)


def test_applies_up_to_max_norm():
    sae = random_sae(max_norm=2.0)
    x = torch.tensor([[2.0] + [0.0] * 7, [2.1] + [0.0] * 7])
    assert sae.applies(x).tolist() == [True, False]
    assert random_sae().applies(x).all()


def test_site_model_and_norm_live_in_the_metadata():
    sae = random_sae(site="blocks.1.hook_resid_post", model_name="toy", max_norm=5.0, metadata={"l0": 4})
    assert sae.metadata == {"hook_name": sae.site, "model_name": "toy", "max_norm": 5.0, "l0": 4}
    assert "blocks.1.hook_resid_post" in repr(sae)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"architecture": "topkk", "k": 2}, "Closest: topk"),
        ({"architecture": "topk"}, "needs k"),
        ({"architecture": "topk", "k": 41}, "d_sae=40"),
        ({"architecture": "topk", "k": 0}, "k=0"),
        ({"architecture": "topk", "k": 2.5}, "whole number"),
        ({"architecture": "relu", "k": 2}, "takes no k"),
        ({"architecture": "topk", "k": 2, "input_norm": "layernorm"}, "layer_norm"),
        ({"architecture": "relu", "rank_by_decoder_norm": True}, "no meaning"),
        ({"architecture": "relu", "d_in": 0}, "d_in"),
        ({"architecture": "relu", "d_sae": 0}, "d_sae"),
        ({"architecture": "relu", "d_out": 5, "subtract_b_dec": True}, "cannot subtract b_dec"),
        ({"architecture": "relu", "d_out": 5, "tied": True}, "tied"),
    ],
)
def test_wrong_settings_say_what_is_right(settings, says):
    with pytest.raises(InputError, match=says):
        SAE(**{"d_in": 8, "d_sae": 40, **settings})


def test_wrong_inputs_say_what_is_wrong():
    sae, x = random_sae(), torch.randn(3, 5, 8)
    x[0, 2, 1] = torch.nan
    x[2, 4, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="2 of 15 rows"):
        sae.encode(x)
    with pytest.raises(FitError, match="width 4.*d_in=8"):
        sae(torch.randn(3, 4))
    with pytest.raises(FitError, match="d_sae=40"):
        sae.decode(torch.randn(3, 39))
    with pytest.raises(FitError, match="d_sae=40"):
        sae.decode(Latents(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 39))

import pytest
import torch

from sparselens.errors import InputError
from sparselens.sae import SAE, MatchNorm, TopAFA, quasi_orthogonality, train_sae, zf
from sparselens.sae.topafa import eps_lbo
from tests.sae.synthetic import QUIET, planted
from tests.sae.test_sae import random_sae


def orthonormal(d: int, **options) -> SAE:
    sae = SAE(TopAFA(**options), d_in=d, d_sae=d)
    rows = torch.linalg.qr(torch.randn(d, d)).Q
    sae.W_dec.data, sae.W_enc.data = rows.clone(), rows.T.clone()
    return sae.requires_grad_(False)


def test_with_orthonormal_rows_the_code_is_exact_and_so_are_the_counts():
    sae = orthonormal(24)
    truth = torch.zeros(200, 24)
    for row, count in zip(truth, torch.randint(1, 24, (200,)).tolist(), strict=True):
        row[torch.randperm(24)[:count]] = torch.rand(count) + 0.5
    x = truth @ sae.W_dec
    z = sae.encode(x)
    torch.testing.assert_close(z, truth, atol=1e-5, rtol=0)
    assert torch.equal((z > 1e-5).sum(1), (truth > 0).sum(1))  # rounding may let a latent of 1e-7 in
    torch.testing.assert_close(zf(sae, x).ratio, torch.ones(200))


def test_the_worked_example():
    part, acts = TopAFA(max_k=2), torch.tensor([[5.0, 4.0, 3.0]])
    norms, target = torch.tensor([5.0, 25.0, 61.0]).sqrt(), torch.tensor([54.41])
    assert part.keep(acts, norms, target).tolist() == [[0.0, 4.0, 3.0]]  # 23.4, then 30.8; a third one is not allowed
    assert TopAFA().keep(acts, norms, target).tolist() == acts.tolist()
    assert TopAFA().keep(acts, norms, torch.tensor([24.0])).tolist() == [[0.0, 0.0, 3.0]]


def test_it_is_the_best_prefix():
    acts, norms = torch.rand(30, 12), torch.rand(12) + 0.5
    target = torch.rand(30) * 3
    kept = TopAFA().keep(acts, norms, target)
    for row, out, t in zip(acts, kept, target.tolist(), strict=True):
        weighed = (row * norms).sort(descending=True).values
        gaps = [abs(float(weighed[:m].norm()) - t) for m in range(1, 13)]
        assert int((out > 0).sum()) == 1 + gaps.index(min(gaps))


def test_zero_activations_are_no_trouble():
    acts = torch.zeros(2, 5, requires_grad=True)
    kept = TopAFA().keep(acts, torch.ones(5), torch.tensor([0.0, 1.0]))
    assert not kept.any()
    (kept.square().sum() + 1e-12).sqrt().backward()
    assert torch.isfinite(acts.grad).all()


def test_the_scale_of_decoder_rows_does_not_matter():
    sae, x = random_sae("topafa", k=None), torch.randn(50, 8)
    other = random_sae("topafa", k=None)
    other.load_state_dict(sae.state_dict())
    other.W_dec.data *= 3
    other.W_enc.data /= 3
    other.b_enc.data /= 3
    assert torch.equal(sae.encode(x) != 0, other.encode(x) != 0)
    torch.testing.assert_close(zf(sae, x).eps_lbo, zf(other, x).eps_lbo)


def planted_codes(n: int, h: int, d: int, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.nn.functional.normalize(torch.randn(h, d), dim=1)
    codes = torch.zeros(n, h)
    for row, count in zip(codes, counts.tolist(), strict=True):
        row[torch.randperm(h)[:count]] = torch.rand(count) + 0.5
    return codes, rows, codes @ rows


@pytest.mark.parametrize("count", [4, 16, 64])
def test_the_bound_holds_for_planted_codes(count):
    codes, rows, x = planted_codes(500, 256, 64, torch.full((500,), count))
    found = quasi_orthogonality(rows)
    assert (eps_lbo(x.norm(dim=1), codes.norm(dim=1), 256) <= found.eps_max).all()
    assert found.vacuous and 0.9 < float((codes.norm(dim=1) / x.norm(dim=1)).mean()) < 1.1


def test_quasi_orthogonality_is_that_of_the_whole_product():
    rows = torch.randn(70, 16) * 3
    unit = torch.nn.functional.normalize(rows, dim=1)
    off = (unit @ unit.T).abs()[~torch.eye(70, dtype=torch.bool)]
    found = quasi_orthogonality(rows, block=32)
    assert found.eps_max == pytest.approx(float(off.max()), rel=1e-6)
    assert found.quantiles[0.5] == pytest.approx(float(off.double().quantile(0.5)), rel=1e-5)
    assert found.spread == pytest.approx(69 * found.eps_max) and bool(found.to_frame()["vacuous"][0])
    assert quasi_orthogonality(torch.eye(5)).eps_max == 0 and not quasi_orthogonality(torch.eye(5)).vacuous
    with pytest.raises(InputError, match="two rows"):
        quasi_orthogonality(torch.randn(1, 4))


def test_it_trains_and_its_weight_takes_the_place_of_k():
    x, _ = planted(rows=3000)  # with a mean, which the loss must not ask of the codes
    settings = {"d_sae": 96, "n_tokens": 60_000, "batch_size": 512, **QUIET}
    off, l0 = {}, {}
    for weight in (1e-3, 1.0):
        sae, _ = train_sae(x, architecture="topafa", rules=[MatchNorm(weight)], **settings)
        off[weight], l0[weight] = abs(float(zf(sae, x).ratio.median()) - 1), sae.metadata["l0"]
        assert sae.metadata["fvu"] < 0.5
    assert off[1.0] < 0.2 * off[1e-3]
    assert l0[1.0] < 0.9 * l0[1e-3]


def test_the_result_shows_itself():
    sae, x = random_sae("topk"), torch.randn(50, 8)
    found = zf(sae, x)
    centred, z = x - sae.b_dec, sae.encode(x).dense()
    torch.testing.assert_close(found.norm_x, centred.norm(dim=1))
    torch.testing.assert_close(found.norm_f, (z * sae.W_dec.norm(dim=1)).norm(dim=1))
    whole = zf(sae, x, center=False)
    torch.testing.assert_close(whole.norm_f.square(), found.norm_f.square() + sae.b_dec.square().sum())
    assert len(found.to_frame()) == 50 and found.plot().collections and "ratio" in found._repr_html_()


def test_mistakes():
    for options in ({"max_k": 0}, {"min_act": 1.0}):
        with pytest.raises(InputError):
            TopAFA(**options)
    with pytest.raises(InputError, match="reads something else"):
        zf(SAE("topk", d_in=8, d_out=5, d_sae=16, k=2), torch.randn(3, 8))

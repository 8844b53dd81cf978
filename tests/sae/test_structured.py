"""Sparse plus low-rank codes: the penalty, the nuclear bound, the units, files; what each part can be made to take."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError
from sparselens.sae import SAE, SparseLowRank, Structured, code_split, train_sae
from sparselens.sae.structured import nuclear_bound, power
from sparselens.sae.trainer import SAETrainer
from tests.sae.synthetic import QUIET, planted


def shared_and_sparse(rows=6000, d=24, seed=0):
    """Planted directions, and two dense factors that all rows share."""
    x, _ = planted(rows=rows, d=d, features=40, active=2, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    factors = torch.linalg.qr(torch.randn(d, 2, generator=g)).Q.T
    return x + torch.randn(rows, 2, generator=g) @ factors, factors


def trained(x, gamma=0.03, rank=4, steps=400, **settings):
    given = {"architecture": Structured(rank), "rules": [SparseLowRank(gamma=gamma)], "d_sae": 64, "k": 3}
    return train_sae(x, n_tokens=steps * 256, batch_size=256, **given | settings, **QUIET)[0]


def test_reconstruction_is_the_decoded_sum_of_both_parts():
    sae = SAE(Structured(3), d_in=8, d_sae=12, seed=1)
    with torch.no_grad():
        sae.bypass.Q.normal_()
        sae.b_dec.normal_()
    x = torch.randn(7, 8)
    both = sae.encode(x) + sae.bypass.codes(x - sae.b_dec)
    torch.testing.assert_close(sae(x), both @ sae.W_dec + sae.b_dec)
    assert int(torch.linalg.matrix_rank(sae.bypass.codes(torch.randn(50, 8)))) == 3
    assert SAE("structured", d_in=8, d_sae=12).bypass.P.shape == (8, 8)  # the rank is at most the width


def test_the_bound_is_above_the_nuclear_norm_and_reaches_it_when_balanced():
    n = 30
    left, right = torch.randn(n, 4).double(), torch.randn(4, 9).double()
    exact = torch.linalg.matrix_norm(left @ right, "nuc") / n**0.5
    assert nuclear_bound(left, right) > exact
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    root = (s / n**0.5).sqrt()
    torch.testing.assert_close(nuclear_bound(u * root * n**0.5, root[:, None] * v), exact)


def test_the_power_has_a_finite_slope_and_is_zero_at_zero():
    codes = torch.tensor([0.0, 1e-9, 2.0], requires_grad=True)
    power(codes, 0.3).sum().backward()
    assert codes.grad.isfinite().all()
    assert power(torch.zeros(3), 0.3).abs().max() == 0
    torch.testing.assert_close(power(torch.tensor([2.0]), 0.5), torch.tensor([2.0**0.5]), rtol=1e-3, atol=1e-3)


def test_the_penalty_does_not_jump_when_p_falls(monkeypatch):
    monkeypatch.setattr("sparselens.sae.structured._RATE", 0.0)
    x, _ = shared_and_sparse(rows=512)
    rule = SparseLowRank(hold=0.0, p_end=0.2, gamma=0.0)
    t = SAETrainer(SAE(Structured(2), d_in=24, d_sae=64), x, k=3, lr=0.0, dead_after=10**9, rules=[rule], n_steps=8)
    found = []
    inner = SparseLowRank.loss
    monkeypatch.setattr(SparseLowRank, "loss", lambda *a: found.append(inner(*a)) or found[-1])
    for _ in range(8):  # a learning rate of zero: only p changes
        t.step(x, 1.0)
    assert float(t.extra["p"]) == pytest.approx(0.3)
    assert [x.item() for x in found] == pytest.approx([found[0].item()] * 8, rel=1e-4)


def test_it_finds_the_shared_factors_and_aims_at_k():
    x, factors = shared_and_sparse()
    sae = trained(x)
    split = code_split(sae, x)
    assert split.l0 == pytest.approx(3, rel=0.25) and split.fvu < 0.2
    assert 0.2 < split.low_rank < 0.9 and split.effective_rank < 4.01 and split.fvu_sparse > split.fvu
    written = torch.linalg.svd(sae.bypass.P @ sae.bypass.Q @ sae.W_dec).U[:, :2]  # the input directions R listens to
    assert torch.linalg.svdvals(factors @ written).min() > 0.9
    assert "low_rank" in split.to_frame() and "<table" in split._repr_html_()
    plain = train_sae(x, architecture="relu", rules=[SparseLowRank()], d_sae=64, k=3, n_tokens=400 * 256,
                      batch_size=256, **QUIET)[0]  # fmt: skip
    assert plain.metadata["fvu"] > 1.5 * split.fvu


def test_weights_of_the_penalties_decide_which_part_carries():
    x, _ = shared_and_sparse(rows=3000)
    assert code_split(trained(x, gamma=30.0, steps=300), x).low_rank < 1e-3
    sparse = code_split(trained(x, gamma=0.0, k=0.01, steps=300), x)
    assert sparse.sparse < 0.05 < sparse.low_rank


def test_training_does_not_depend_on_the_unit_and_files_keep_it(tmp_path):
    x, _ = shared_and_sparse(rows=2000)
    one, large = trained(x, steps=60), trained(x * 512, steps=60)
    torch.testing.assert_close(large(x * 512) / 512, one(x), atol=2e-3, rtol=2e-3)
    back = SAE.load(one.save(tmp_path / "sae"))
    assert back.architecture == "structured" and back.activation.rank == 4
    assert torch.equal(back(x), one(x)) and torch.equal(back.encode(x), one.encode(x))
    with pytest.raises(InputError, match="cannot hold"):
        one.save(tmp_path / "other", format="saelens")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SparseLowRank(p_end=0.0), "p_end=0.0"),
        (lambda: SAE(Structured(0), d_in=4, d_sae=8), "rank=0"),
        (lambda: trained(torch.randn(300, 8), architecture="topk", steps=2), "not topk"),
        (lambda: code_split(SAE("relu", d_in=4, d_sae=8), torch.randn(5, 4)), "no low-rank code"),
        (
            lambda: train_sae({"a": torch.randn(300, 8), "b": torch.randn(300, 8)}, site="a", site_out="b",
                              architecture="structured", d_sae=16, k=2, n_tokens=512, batch_size=64, **QUIET),
            "subtract_b_dec|not with a transcoder",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_it_is_trained_by_its_name():
    x, _ = shared_and_sparse(rows=600)
    sae, _ = sl.train_sae(x, architecture="structured", d_sae=32, k=2, n_tokens=600, batch_size=100, **QUIET)
    assert sae.architecture == "structured" and sae.bypass is not None

import itertools

import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError
from sparselens.sae import SAE, bidirectionality, pair_twins, poles, train_sae
from sparselens.sae.activations import AbsTopK, BatchAbsTopK, JumpReLU, ReLU, TopK
from sparselens.sae.trainer import SAETrainer
from tests import tiny
from tests.sae.synthetic import QUIET, planted

TEXTS = ["the cat sat on the mat", "a hat in the inn is the thing", "then he ran in"] * 3


@pytest.mark.parametrize("k", range(1, 9))
def test_it_is_the_best_approximation_with_k_entries(k):
    u = torch.randn(3, 8, dtype=torch.float64)
    z = AbsTopK(k)(u).dense()
    best = torch.full((3,), torch.inf, dtype=torch.float64)
    for support in itertools.combinations(range(8), k):
        kept = torch.zeros(8, dtype=torch.bool)
        kept[list(support)] = True
        best = torch.minimum(best, (u * ~kept).square().sum(1))
    torch.testing.assert_close((u - z).square().sum(1), best)
    assert ((z != 0).sum(1) == k).all()
    torch.testing.assert_close(AbsTopK(k)(-u).dense(), -z)
    torch.testing.assert_close(AbsTopK(k)(u.abs()).dense(), TopK(k)(u.abs()).dense())


def test_the_gradient_is_the_mask():
    u = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    z = AbsTopK(3)(u).dense()
    z.sum().backward()
    assert torch.equal(u.grad, (z != 0).double())


def test_activations_are_proximal_steps():
    """argmin over z of (u - z)^2 / 2 + penalty, on a grid: ReLU for |z|, JumpReLU for [z != 0], both with z >= 0."""
    grid = torch.arange(-4000, 4001).double() / 1000
    u, weight = torch.tensor([-2.0, -0.3, 0.2, 0.75, 0.9, 1.3, 2.5]).double(), 0.4

    def prox(penalty):
        cost = (u[:, None] - grid).square() / 2 + weight * penalty + torch.where(grid < 0, torch.inf, 0.0)
        return grid[cost.argmin(1)]

    torch.testing.assert_close(prox(grid.abs()), ReLU()(u[:, None] - weight).flatten(), atol=1e-3, rtol=0)
    jump = JumpReLU(1)
    jump.threshold.data.fill_((2 * weight) ** 0.5)
    truth = jump(u[:, None]).flatten().detach()
    torch.testing.assert_close(prox((grid != 0).double()), truth, atol=1e-3, rtol=0)


def test_over_a_batch_k_a_token_survive_on_average():
    pre = torch.randn(10, 40)
    chosen = BatchAbsTopK(2.5).select(pre)
    assert int((chosen != 0).sum()) == 25 and (chosen < 0).any()
    assert chosen[chosen != 0].abs().min() >= pre[chosen == 0].abs().max()
    torch.testing.assert_close(BatchAbsTopK(4).select(pre[:1]), AbsTopK(4)(pre[:1]).dense())


def test_the_sign_of_a_latent_is_a_matter_of_convention():
    sae, x = SAE("abstopk", d_in=8, d_sae=40, k=4), torch.randn(20, 8)
    flipped = SAE("abstopk", d_in=8, d_sae=40, k=4)
    with torch.no_grad():
        flipped.W_enc[:, 7] *= -1
        flipped.W_dec[7] *= -1
    torch.testing.assert_close(flipped(x), sae(x))
    mine, theirs = sae.encode(x).dense(), flipped.encode(x).dense()
    assert mine[:, 7].any()
    torch.testing.assert_close(theirs[:, 7], -mine[:, 7])
    assert not sae.encode(torch.zeros(1, 8)).dense().any()


def test_rows_keep_norm_one_in_training_and_signs_are_learned():
    x, directions = planted(rows=6000, signed=True)
    settings = {"d_sae": 128, "k": 3, "n_tokens": 200_000, "batch_size": 512, **QUIET}
    signed, _ = train_sae(x, architecture="abstopk", **settings)
    plain, _ = train_sae(x, architecture="topk", **settings)
    torch.testing.assert_close(signed.W_dec.norm(dim=1), torch.ones(128))
    assert signed.metadata["fvu"] < 0.6 * plain.metadata["fvu"]
    assert bidirectionality(signed, x).share > 0.7 and bidirectionality(plain, x).share == 0
    t = SAETrainer(signed, x, k=3, lr=1e-3, dead_after=100)
    t.step(x[:100], 1.0)
    torch.testing.assert_close(t.model.W_dec.norm(dim=1), torch.ones(128))


def test_counts_of_both_signs():
    sae = SAE("abstopk", d_in=8, d_sae=40, k=4)
    x = torch.randn(500, 8)
    z = sae.encode(x)
    found = bidirectionality(sae, x, min_side=0.3)
    dense = z.dense()
    assert torch.equal(found.n_pos, (dense > 0).sum(0)) and torch.equal(found.n_neg, (dense < 0).sum(0))
    assert torch.equal(bidirectionality(sae, z).n_neg, found.n_neg) and found.tokens == 500
    fires = found.n_pos + found.n_neg
    both = torch.minimum(found.n_pos, found.n_neg)[fires > 0] / fires[fires > 0] >= 0.3
    assert found.share == pytest.approx(float(both.double().mean()))
    assert len(found.to_frame()) == 40 and found.plot().collections and "both sides" in found._repr_html_()
    relu = SAE("relu", d_in=8, d_sae=40)
    assert not bidirectionality(relu, x).n_neg.any()


def test_poles_are_the_extremes_in_their_context():
    m, site = tiny.live("llama"), "blocks.1.hook_resid_post"
    sae = SAE("abstopk", d_in=32, d_sae=64, k=8, site=site)
    batches = list(m.stream(TEXTS, site))
    values = torch.cat([sae.encode(b[site]).dense()[b.content & ~b.first].detach() for b in batches])
    feature = int(torch.minimum((values > 0).sum(0), (values < 0).sum(0)).argmax())
    found = poles(sae, m, TEXTS, feature, n=4)
    truth = values[:, feature].sort().values
    assert [row[0] for row in found.positive] == pytest.approx([v for v in truth.flip(0)[:4].tolist() if v > 0])
    assert [row[0] for row in found.negative] == pytest.approx([v for v in truth[:4].tolist() if v < 0])
    for _, before, token, after in found.positive:
        assert any((before + token + after).lstrip() in "<|im_start|>" + text for text in TEXTS)
    frame = found.to_frame()
    assert set(frame["pole"]) == {"+", "-"} and "feature" in found._repr_html_()
    with m.attach(sl.steer(sae, feature, -4.0)):
        assert torch.isfinite(m.run(TEXTS[0]).logits).all()


def test_twins_are_opposite_rows():
    sae = SAE("topk", d_in=8, d_sae=40, k=4)
    with torch.no_grad():
        sae.W_dec[30] = -2 * sae.W_dec[3]
        sae.W_dec[8] = -sae.W_dec[21] + 0.05 * torch.randn(8)
    found = pair_twins(sae, cos=-0.95)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == {(3, 30), (8, 21)} and found.cosine[0] <= found.cosine[1]
    assert found.to_frame()["cosine"].iloc[0] == pytest.approx(-1)


def test_mistakes():
    sae = SAE("abstopk", d_in=32, d_sae=64, k=8)
    with pytest.raises(FitError, match="name its site"):
        poles(sae, tiny.live(), TEXTS, 3)
    with pytest.raises(InputError, match="features 0 to 63"):
        poles(SAE("abstopk", d_in=32, d_sae=64, k=8, site="blocks.1.hook_resid_post"), tiny.live(), TEXTS, 64)
    with pytest.raises(InputError, match="negative cosine"):
        pair_twins(sae, cos=0.5)

import pytest
import torch

from sparselens.errors import InputError
from sparselens.sae import SAE, AuxZipf, FeatureBudget, FeatureChoice, fit_zipf, train_sae
from sparselens.sae.lean_step import lean_gradients
from sparselens.sae.losses import dense_codes
from sparselens.sae.mutual_choice import largest_of_features, zipf_budgets, zipf_shares
from sparselens.sae.rules import Step
from sparselens.sae.selection import flat_indices, largest_of_batch, largest_of_token
from sparselens.sae.trainer import SAETrainer
from tests.sae.synthetic import QUIET, planted

PRE = torch.tensor(
    [
        [0.9, 0.1, -0.5, 0.4, 2.0, 0.3],
        [0.8, -0.2, 1.5, 0.6, 0.2, 0.7],
        [0.05, 1.1, 0.5, -0.3, 1.0, 0.25],
        [1.2, 0.45, 0.35, 0.55, -1.0, 0.15],
    ]
)


def kept(where: torch.Tensor, pre: torch.Tensor = PRE) -> torch.Tensor:
    mask = torch.zeros(pre.numel(), dtype=torch.bool)
    mask[where] = True
    return mask.view_as(pre)


def by_token(pre, k):
    return flat_indices(largest_of_token(pre, k), pre.shape[1]).flatten()


def test_each_choice_keeps_to_its_own_constraint():
    token, mutual = kept(by_token(PRE, 3)), kept(largest_of_batch(PRE, 3))
    feature = kept(largest_of_features(PRE, torch.full((6,), 2))[0])
    assert (token.sum(1) == 3).all() and (feature.sum(0) == 2).all() and int(mutual.sum()) == 12
    value = {
        name: float((PRE.relu() * mask).sum())
        for name, mask in {"token": token, "mutual": mutual, "feature": feature}.items()
    }
    assert value["mutual"] > value["token"] and value["mutual"] > value["feature"]


def test_with_one_token_mutual_choice_is_topk_and_with_room_for_all_every_choice_is_relu():
    assert torch.equal(kept(largest_of_batch(PRE[:1], 3), PRE[:1]), kept(by_token(PRE[:1], 3), PRE[:1]))
    positive = PRE > 0
    for where in (by_token(PRE, 6), largest_of_batch(PRE, 6), largest_of_features(PRE, torch.full((6,), 4))[0]):
        assert torch.equal(kept(where) & positive, positive)
    assert not (kept(largest_of_features(PRE, torch.full((6,), 4))[0]) & ~positive).any()


def test_mutual_choice_follows_a_permutation_of_tokens():
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(kept(largest_of_batch(PRE[order], 3)), kept(largest_of_batch(PRE, 3))[order])


def test_gradients_flow_through_what_is_kept_alone():
    pre = PRE.double().requires_grad_()
    where = largest_of_features(pre.detach(), torch.full((6,), 2))[0]
    weights = torch.randn(4, 6, dtype=torch.float64)
    (dense_codes(where, pre, signed=False) * weights).sum().backward()
    torch.testing.assert_close(pre.grad, weights * kept(where))


def test_the_smallest_kept_of_each_column():
    budgets = torch.tensor([1, 2, 3, 4, 1, 2])
    where, smallest = largest_of_features(PRE, budgets)
    mask = kept(where)
    for column in range(6):
        truth = PRE[:, column].sort(descending=True).values[: budgets[column]]
        truth = truth[truth > 0]
        assert int(mask[:, column].sum()) == len(truth)
        assert float(smallest[column]) == pytest.approx(float(truth[-1]))
    assert torch.equal(where, where.sort().values)


@pytest.mark.parametrize("total, n, d_sae, alpha, beta", [(96, 64, 40, 1.0, 4.0), (512, 64, 64, 2.0, 0.5),
                                                          (64, 64, 64, 1.0, 1.0), (300, 10, 40, 1.5, 0.0)])  # fmt: skip
def test_zipf_budgets_sum_up_and_fall(total, n, d_sae, alpha, beta):
    budgets = zipf_budgets(total, n, d_sae, alpha, beta)
    assert int(budgets.sum()) == total and budgets.min() >= 1 and budgets.max() <= n
    assert (budgets.diff() <= 0).all()


def test_budgets_that_are_too_small_name_the_batch_that_is_needed():
    with pytest.raises(InputError, match="at least 400 tokens"):
        zipf_budgets(100, 200, 200, 1.0, 4.0)


def test_a_law_is_found_again():
    density = 3 * zipf_shares(200, 1.3, 6.3)
    law = fit_zipf(density[torch.randperm(200)])
    assert (law.alpha, law.beta) == (pytest.approx(1.3, rel=0.02), pytest.approx(6.3, rel=0.1)) and law.r2 > 0.999
    with pytest.raises(InputError, match="three latents"):
        fit_zipf(torch.zeros(10))


def trainer(rules=(), dead_after=10**9, k=3):
    x, _ = planted(rows=400)
    return SAETrainer(SAE("topk", d_in=64, d_sae=80, k=k), x, k=k, lr=1e-3, dead_after=dead_after, rules=rules), x


def test_under_used_latents_are_revived_and_healthy_ones_left_alone():
    t, x = trainer([AuxZipf()])
    t.step(x, 0.0)
    step = Step(t.model, x, x, 1, 0.5, torch.tensor([], dtype=torch.int64))
    assert not len(t.to_revive(step)), "all latents have the density of the law at the start"
    t.extra["density"][torch.tensor([7, 30])] = 1e-6
    assert t.to_revive(step).tolist() == [7, 30]


def test_with_the_dead_latents_as_the_under_used_ones_it_is_the_usual_auxiliary_loss(monkeypatch):
    grads = []
    for rules in ((), (AuxZipf(),)):
        t, x = trainer(rules, dead_after=100)
        dead = torch.tensor([4, 9, 50])
        t.since[dead] = 1000
        if rules:
            t.extra["density"][:] = torch.where(t.since > 0, 0.0, 1.0)
        seen = []
        monkeypatch.setattr(
            "sparselens.sae.trainer.lean_gradients",
            lambda *args, seen=seen: seen.append(lean_gradients(*args)) or seen[0],
        )
        t.step(x, 0.0)
        grads.append(seen[0][0])
        step = Step(t.model, x, x, 1, 0.5, dead)
        assert torch.equal(t.rules[-1].revive(t, step) if rules else dead, dead)
    for a, b in zip(grads[0][:4], grads[1][:4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_starved_latents_come_back():
    x, _ = planted(rows=16_000, features=256)  # as many as there are latents: none is dead for want of work
    shares = {}
    for rules in ((), (AuxZipf(),)):
        sae = SAE("topk", d_in=64, d_sae=256, k=3)
        with torch.no_grad():
            sae.W_enc[:, :128] *= 0.05
        recipe = {"sae": sae, "rules": rules, "dead": "none"}
        # long enough for the running mean of densities to forget the law it starts from
        train_sae(x, saes={"a": recipe}, n_tokens=450_000, batch_size=512, **QUIET)
        shares[bool(rules)] = sae.metadata["dead_share"]
    assert shares[False] >= 0.5 > 0.1 > shares[True]


def test_feature_choice_has_thresholds_that_give_the_sparsity_of_training():
    x, _ = planted(rows=8000)
    part = FeatureChoice(3, 128, budget="uniform")
    sae, run = train_sae(x, architecture=part, d_sae=128, n_tokens=300_000, batch_size=1024, **QUIET)
    assert sae.metadata["l0"] == pytest.approx(3, rel=0.1) and sae.metadata["dead_share"] == 0
    fires = (sae.encode(x) > 0).float().mean(0)
    assert float(fires.std() / fires.mean()) < 0.5  # equal budgets
    assert run.settings["saes"]["sae"]["options"]["budget"] == "uniform"


def test_budgets_hold_from_their_beginning_on():
    x, _ = planted(rows=1024)
    part = FeatureChoice(3, 96, budget="uniform")
    sae = SAE(part, d_in=64, d_sae=96)
    t = SAETrainer(sae, x, k=3, lr=1e-3, dead_after=10**9, rules=[FeatureBudget(begin=0.5)], n_steps=4)
    spread = []
    for _ in range(4):
        fires = t.step(x, 1.0).fires
        spread.append(int(fires.max()))
    assert spread[0] > 32 and spread[2] <= 32 and spread[3] <= 32  # 1024 * 3 / 96

"""Group bias adaptation: targets, one adaptation by hand, ceilings that hold, runs compared."""

import pytest
import torch

from sparselens.errors import InputError
from sparselens.sae import SAE, BiasAdaptation, recovery, seed_consistency, train_sae
from sparselens.sae.trainer import SAETrainer
from tests.sae.synthetic import QUIET, planted


def trainer(rule: BiasAdaptation, architecture: str = "jumprelu", rows: int = 4000):
    x, _ = planted(rows=rows, d=16, features=24)
    return SAETrainer(SAE(architecture, d_in=16, d_sae=32), x, k=3, lr=0.0, dead_after=10**9, rules=[rule]), x


def threshold(t: SAETrainer) -> torch.Tensor:
    return (t.model.activation.threshold if t.model.architecture == "jumprelu" else -t.model.b_enc).detach().clone()


def test_targets_fall_geometrically_in_groups_of_equal_size():
    rule = BiasAdaptation(groups=3, htf=0.1, ltf=0.001)
    targets = rule.targets(10)
    torch.testing.assert_close(targets.unique().flip(0), torch.tensor([0.1, 0.01, 0.001]))
    assert (targets.diff() <= 0).all() and sorted(torch.bincount(rule.group_of(10)).tolist()) == [3, 3, 4]
    assert BiasAdaptation(groups=1, htf=0.2).targets(5).tolist() == pytest.approx([0.2] * 5)


def test_one_adaptation_by_hand():
    rule = BiasAdaptation(groups=2, htf=0.5, ltf=0.1, gamma=(0.1, 0.2))
    frequency = torch.tensor([0.6, 0.4, 0.0, 0.2, 0.05, 0.0])
    peaks = torch.tensor([2.0, 4.0, 0.0, 1.0, 3.0, 0.0])
    found = rule.change(frequency, peaks, rule.targets(6))
    # too often: up by a tenth of its peak; dead: down by a fifth of the mean peak of the living of its group
    assert found.tolist() == pytest.approx([0.2, 0.0, -0.2 * 3, 0.1, 0.0, -0.2 * 2])


@pytest.mark.parametrize("architecture", ["jumprelu", "relu"])
def test_it_moves_at_its_times_only_and_has_no_gradient(architecture):
    t, x = trainer(BiasAdaptation(groups=1, htf=0.01, every=3, start_at="zero"), architecture)
    begin = threshold(t)
    moved = []
    for start in range(0, 600, 100):
        t.step(x[start : start + 100], 1.0)
        moved.append(not torch.equal(threshold(t), begin))
        begin = threshold(t)
    assert moved == [False, False, True, False, False, True]
    assert not any("threshold" in name or "b_enc" in name for name in t._trained)


def test_codes_of_a_jumprelu_are_not_shrunk():
    t, x = trainer(BiasAdaptation())
    t.model.activation.threshold.data.fill_(0.5)
    t.step(x[:50], 0.0)
    from sparselens.sae.rules import Step

    inner = t.prepare(x[:50])[0]
    s = Step(t.model, inner, inner, 1, 0.5, torch.tensor([], dtype=torch.int64))
    codes = t.rules[0].codes(t, s)
    assert torch.equal(codes, s.pre * (s.pre > threshold(t))) and (codes > 0).any()


def test_thresholds_start_where_latents_fire_at_their_target():
    t, x = trainer(BiasAdaptation(groups=2, htf=0.2, ltf=0.02, highest=100.0))
    fires = (t.model.linear(t.model.centred(t.prepare(x)[0])) > threshold(t)).double().mean(0)
    torch.testing.assert_close(fires.float(), t.extra["targets"], atol=2 / len(x), rtol=0)


def test_with_weights_at_rest_no_latent_fires_above_its_ceiling_or_dies():
    t, x = trainer(BiasAdaptation(groups=2, htf=0.1, ltf=0.02, every=2, gamma=(0.05, 0.05), start_at="zero"))
    for _ in range(150):
        t.step(x[torch.randint(0, len(x), (400,))], 0.0)
    fires = (t.model.linear(t.model.centred(t.prepare(x)[0])) > threshold(t)).double().mean(0)
    assert (fires <= t.extra["targets"] + 0.02).all() and (fires > 0).all()


def test_it_takes_the_place_of_the_penalty_and_recovers_planted_directions():
    x, directions = planted(rows=20_000, d=32, features=64, active=3)
    settings = dict(n_tokens=300_000, d_sae=128, batch_size=256, lr=2e-3, dead="none", **QUIET)
    gba = [BiasAdaptation(groups=5, htf=0.1, ltf=5e-3)]
    saes = [train_sae(x, architecture="jumprelu", rules=gba, seed=seed, **settings)[0] for seed in (0, 1)]
    assert recovery(saes[0], directions).share(0.8) > 0.9
    again = seed_consistency(saes, x[:2000], alpha=0.3, above=0.8)
    assert again.share > 0.5 and len(again.to_frame()) == 128 and "come back" in again._repr_html_()
    assert again.plot().get_xlabel()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BiasAdaptation(start_at="zeros"), "zero"),
        (lambda: BiasAdaptation(htf=0.001, ltf=0.1), "fall from htf"),
        (lambda: BiasAdaptation(groups=40).targets(32), "32 latents"),
        (lambda: SAETrainer(SAE("topk", d_in=4, d_sae=8, k=2), torch.randn(50, 4), k=2, lr=0.1, dead_after=9,
                            rules=[BiasAdaptation(groups=2)]), "not of topk"),
        (lambda: seed_consistency([SAE("topk", d_in=4, d_sae=8, k=2)], torch.randn(5, 4)), "two"),
    ],
)
def test_what_does_not_fit_is_an_error(call, says):
    with pytest.raises(InputError, match=says):
        call()

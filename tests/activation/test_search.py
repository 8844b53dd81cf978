"""The search for R-Sparse recipes: it improves, never ends above channels alone, and goes on where it was stopped."""

import pytest
import torch

from sparselens.activation import search
from sparselens.activation.linears import linears
from sparselens.activation.r_sparse import RSparse
from sparselens.activation.search import _Breeder, _Trial, evolve, search_rho
from sparselens.errors import FileFormatError, InputError
from tests import tiny

TEXTS = ["The quick brown fox jumps over the lazy dog", "hello there my friend of old " * 3]
QUICK = {"population": 5, "elites": 2, "generations": 2, "max_tokens": 64, "progress": False}


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def planted(target, seed=0, generations=30, population=16):
    """Evolve towards a known genome, by distance."""
    trial = _Trial(lambda genome: float((genome - target).abs().mean()), None, {}, None, population, 4, generations)
    breeder = _Breeder(len(target), population, 4, 0.1, 0.1, seed)
    genomes = evolve(trial, breeder, 0.95, generations)
    return genomes, [loss for _, loss in trial.losses]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_near_a_planted_recipe(seed):
    target = torch.tensor([1.0, 0.3, 1.0, 0.6, 0.95, 1.0, 0.8, 1.0], dtype=torch.double)
    genomes, losses = planted(target, seed)
    assert len(genomes) == len(losses) == 16 + 30 * 12
    assert min(losses) < 0.35 * losses[1]  # the start
    assert all(bool(((g >= 0) & (g <= 1)).all()) for g in genomes)


def test_channels_alone_are_first_and_always_parents():
    genomes, losses = planted(torch.ones(6, dtype=torch.double))
    assert torch.equal(genomes[0], torch.ones(6)) and losses[0] == 0 == min(losses)
    assert torch.equal(genomes[1], 0.95 * torch.ones(6).double())

    class Watching(_Breeder):
        def children(self, parents):
            assert any(bool((parent == 1).all()) for parent in parents)
            return super().children(parents)

    trial = _Trial(lambda genome: float(genome.sum()), None, {}, None, 5, 2, 4)  # channels alone are the worst
    assert len(evolve(trial, Watching(6, 5, 2, 0.5, 0.1, 0), 0.95, 4)) == 5 + 4 * 3


def test_survivors_are_the_best_so_far():
    seen = []

    class Watching(_Breeder):
        def children(self, parents):
            seen.append([float(parent.sum()) for parent in parents])
            return super().children(parents)

    trial = _Trial(lambda genome: float(genome.sum()), None, {}, None, 6, 2, 3)
    genomes = evolve(trial, Watching(4, 6, 2, 0.5, 0.2, 0), 0.95, 3)
    sums = [float(genome.sum()) for genome in genomes]
    for generation, parents in enumerate(seen):
        so_far = sorted(sums[: 6 + 4 * generation])
        assert parents[:2] == so_far[:2] and parents[2:] == [4.0]


def test_children_mix_two_parents_layer_by_layer():
    breeder = _Breeder(200, 12, 2, 0.0, 0.1, 0)
    zeros, ones = torch.zeros(200).double(), torch.ones(200).double()
    children = breeder.children([zeros, ones])
    assert len(children) == 10
    mixed = [float(child.mean()) for child in children if 0 < float(child.mean()) < 1]
    assert mixed and all(0.35 < share < 0.65 for share in mixed)
    changed = _Breeder(2000, 4, 2, 0.1, 0.1, 0)._changed(torch.full((2000,), 0.5).double()) - 0.5
    assert float((changed != 0).double().mean()) == pytest.approx(0.1, abs=0.03)
    assert float(changed[changed != 0].std()) == pytest.approx(0.1, rel=0.2)


def test_on_a_model_the_losses_are_those_of_the_recipes_and_the_best_is_kept(m):
    found = search_rho(m, TEXTS, 0.6, **QUICK)
    assert found.complete and len(found.losses) == 5 + 2 * 3
    assert [generation for generation, _ in found.losses] == [0] * 5 + [1] * 3 + [2] * 3
    assert found.best <= found.channels_only
    rows = search.token_rows(m, TEXTS, 64, 512)
    with m.attach(found.recipe):
        assert m.loss(rows) == pytest.approx(found.best, abs=1e-6)
    with m.attach(RSparse(0.6, rho=1.0)):
        assert m.loss(rows) == pytest.approx(found.channels_only, abs=1e-6)
    assert set(found.recipe.rho) == {linear.site for linear in linears(m)}
    assert m.loss(rows) != pytest.approx(found.best, abs=1e-6)  # nothing is left on the model
    recipe = RSparse.search(m, TEXTS, 0.6, **QUICK)
    assert recipe.rho == found.recipe.rho


def test_a_search_that_is_interrupted_goes_on_and_ends_the_same(m, tmp_path, monkeypatch):
    whole = search_rho(m, TEXTS, **QUICK)
    out, real, calls = tmp_path / "search.json", type(m).loss, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(m), "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        search_rho(m, TEXTS, out=out, **QUICK)
    again = search_rho(m, TEXTS, out=out, **QUICK)
    assert len(calls) == 7 + len(whole.losses) - 6
    assert again.losses == whole.losses and again.recipe.rho == whole.recipe.rho
    search_rho(m, TEXTS, out=out, **QUICK)
    assert len(calls) == 7 + len(whole.losses) - 6  # all of it was read from the file


def test_a_file_of_another_search_is_refused(m, tmp_path):
    out = tmp_path / "search.json"
    search_rho(m, TEXTS, out=out, **QUICK | {"generations": 0})
    with pytest.raises(FileFormatError, match="not of this search"):
        search_rho(m, TEXTS, out=out, **QUICK | {"seed": 1})
    with pytest.raises(FileFormatError, match="not of this search"):
        search_rho(m, TEXTS[:1], out=out, **QUICK)


def test_a_budget_of_time_ends_it_with_the_best_so_far(m):
    found = search_rho(m, TEXTS, max_seconds=0, **QUICK)
    assert not found.complete and len(found.losses) == 1
    assert set(found.recipe.rho.values()) == {1.0}
    assert "stopped by its budget" in found._repr_html_()


@pytest.mark.parametrize(
    "bad",
    [{"population": 1}, {"elites": 0}, {"elites": 5}, {"generations": -1}, {"mutation": 1.5}, {"start": -0.1},
     {"step": -1.0}, {"sparsity": 0.0}, {"sparsity": 1.0}, {"dense_prefix": -1}],
)
def test_bad_settings(m, bad):
    with pytest.raises(InputError):
        search_rho(m, TEXTS, **QUICK | bad)


def test_views(m):
    found = search_rho(m, TEXTS, **QUICK)
    frame = found.to_frame()
    assert frame["best"].is_monotonic_decreasing and frame["best"].iloc[-1] == found.best
    assert "recipes" in found._repr_html_()
    assert found.plot().get_xlabel() == "recipes tried"

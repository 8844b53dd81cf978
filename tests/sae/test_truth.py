"""Recovery of planted directions: perfect dictionaries, shuffled, broken and trained ones."""

import itertools

import pytest
import torch

import sparselens as sl
from sparselens.datasets import KINDS, planted
from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae import SAE, PolyDecoder, recovery, recovery_bench


@pytest.mark.parametrize("kind", KINDS)
def test_planted_data_is_what_it_says(kind):
    made = planted(kind, n=20_000, d=16, n_features=32, k=3, seed=1)
    active = made.codes != 0
    assert float(active.sum(1).float().mean()) == pytest.approx(3, rel=0.05)
    torch.testing.assert_close(made.directions.norm(dim=1), torch.ones(32))
    size = made.codes[active].abs()
    assert float(size.min()) >= 0.5 and float(size.max()) <= 1.5
    assert torch.equal(planted(kind, n=50, d=16, n_features=32, k=3, seed=1).directions, made.directions)
    assert (made.codes < 0).any() == (kind == "bidirectional")
    x = made.codes @ made.directions
    if kind == "compositional":
        x = x + (made.codes[:, 0:16:2] * made.codes[:, 1:16:2]) @ made.products
        both, either = (active[:, 0:16:2] & active[:, 1:16:2]).sum(), (active[:, 0:16:2] | active[:, 1:16:2]).sum()
        assert float(both / either) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(made.x, x, atol=1e-5, rtol=0)
    if kind == "hierarchical":
        assert (active[:, ::4] | ~active.unflatten(1, (8, 4)).any(2)).all()  # a child only with its parent
    if kind == "correlated":
        firing = active.float().T.corrcoef()
        assert firing[0, 1] > 0.3 and abs(float(firing[0, 4])) < 0.05


def test_planted_mistakes():
    with pytest.raises(InputError, match="Closest: hierarchical"):
        planted("hierarchic")
    for sizes in ({"n": 0}, {"n_features": 30}, {"k": 0}, {"n_features": 8, "k": 3}):
        with pytest.raises(InputError, match="n_features"):
            planted("independent", **sizes)


def oracle(made, order) -> SAE:
    """Orthonormal directions: the true dictionary with its exact encoder."""
    sae = SAE("relu", d_in=16, d_sae=16, subtract_b_dec=False).requires_grad_(False)
    sae.W_dec.data, sae.W_enc.data = made[order].clone(), made[order].T.clone()
    sae.b_enc.data.fill_(-1e-4)
    return sae


def test_the_true_dictionary_is_recovered_whatever_its_order():
    directions = torch.linalg.qr(torch.randn(16, 16)).Q
    codes = (torch.rand(300, 16) < 0.2) * (torch.rand(300, 16) + 0.5)
    order = torch.randperm(16)
    sae = oracle(directions, order)
    found = recovery(sae, directions, codes @ directions, codes)
    assert torch.equal(order[found.latent], torch.arange(16))
    for value in (found.cosine, found.matched, found.f1):
        torch.testing.assert_close(value, torch.ones(16), atol=1e-5, rtol=0)
    assert found.fvu < 1e-5 and found.l0 == pytest.approx(float((codes != 0).sum(1).float().mean()))
    assert len(found.to_frame()) == 16 and "F1" in found._repr_html_() and found.share(0.99) == 1
    sae.b_enc.data[3] = -10  # one latent dies
    dead = int(order[3])
    found = recovery(sae, directions, codes @ directions, codes)
    assert found.f1[dead] == 0 and (found.f1.sum() - 15).abs() < 1e-4 and found.fvu > 0.01


def test_a_latent_stands_for_one_direction_only():
    directions = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    sae = SAE("relu", d_in=16, d_sae=3)
    found = recovery(sae, directions)
    assert (found.latent == -1).sum() == 2 and (found.matched[found.latent == -1] == 0).all() and found.f1 is None
    cosines = directions @ sae.W_dec.detach().T
    best = max(sum(float(cosines[d, c]) for c, d in enumerate(pick)) for pick in itertools.permutations(range(5), 3))
    assert float(found.matched.sum()) == pytest.approx(best, abs=1e-5)


def test_f1_by_hand():
    sae = SAE("relu", d_in=2, d_sae=2, subtract_b_dec=False).requires_grad_(False)
    sae.W_dec.data = sae.W_enc.data = torch.eye(2)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    # latent 0 fires in rows 0, 1, 3, true in 0, 3: 2 * 2 / 5; latent 1 fires in 2, 3, true in 1, 2: 2 * 1 / 4
    torch.testing.assert_close(recovery(sae, torch.eye(2), x, codes).f1, torch.tensor([0.8, 0.5]))
    with pytest.raises(InputError, match="both"):
        recovery(sae, torch.eye(2), x)
    with pytest.raises(FitError, match="directions"):
        recovery(sae, torch.eye(2), x, codes[:, :1])
    with pytest.raises(FitError, match="width 3"):
        recovery(sae, torch.eye(3))
    for truth, rows in ((torch.eye(2) * float("nan"), x), (torch.eye(2), x * float("nan"))):
        with pytest.raises(NotFiniteError):
            recovery(sae, truth, rows, codes)


def test_the_bench_tells_dictionaries_apart():
    def poly(seed: int) -> SAE:
        return SAE("topk", d_in=32, d_sae=48, k=3, seed=seed, decoder=PolyDecoder(48, 32, (32, 8)))

    dictionaries = {"topk": {"architecture": "topk"}, "abstopk": {"architecture": "abstopk"}, "poly": {"make": poly}}
    shape = {"n": 4000, "d": 32, "n_features": 48, "k": 3}
    bench = sl.recovery_bench(
        dictionaries, ("independent", "bidirectional"), seeds=(0,), n_tokens=80_000, progress=False, **shape
    )
    table = bench.to_frame().set_index(["kind", "name"])
    assert table.loc[("independent", "topk"), "f1"] > 0.7 and table.loc[("independent", "topk"), "cosine"] > 0.9
    signed = table.loc["bidirectional"]
    assert signed.loc["abstopk", "f1"] > signed.loc["topk", "f1"] + 0.2
    assert len(bench.plot().get_xticks()) == 2 and "abstopk" in bench._repr_html_()
    with pytest.raises(InputError, match="f1"):
        bench.plot(of="size")
    with pytest.raises(InputError, match="at least one"):
        recovery_bench({})

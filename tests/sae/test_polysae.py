"""The polynomial decoder against the explicit sums over pairs and triples."""

import pytest
import torch

from sparselens.errors import FitError, InputError
from sparselens.sae import SAE, Matryoshka, PolyDecoder, contribution, interactions, to_dense, train_sae
from tests.sae.synthetic import QUIET, planted

F, D = 12, 8


def decoder(ranks=(8, 5, 3), lambdas=None) -> PolyDecoder:
    part = PolyDecoder(F, D, ranks, seed=1).double().requires_grad_(False)
    for order in range(2, len(ranks) + 1):
        getattr(part, f"C{order}").data.normal_(generator=torch.Generator().manual_seed(order))
    if lambdas is not None:
        part.lambdas.data = torch.tensor(lambdas).double()
    return part


def with_poly() -> SAE:
    return SAE("topk", d_in=D, d_sae=F, k=4, decoder=decoder().float()).requires_grad_(False)


def pair_tensor(part: PolyDecoder) -> torch.Tensor:
    rank = part.ranks[1]
    return torch.einsum("ir,jr,dr->ijd", part.U[:, :rank], part.U[:, :rank], part.C2)


def test_it_is_the_sum_over_latents_pairs_and_triples():
    part, z = decoder(), torch.randn(7, F).double()
    low = part.U[:, :3]
    triples = torch.einsum("ir,jr,kr,dr->ijkd", low, low, low, part.C3)
    truth = z @ part.atoms
    truth += part.lambdas[0] * torch.einsum("ni,nj,ijd->nd", z, z, pair_tensor(part))
    truth += part.lambdas[1] * torch.einsum("ni,nj,nk,ijkd->nd", z, z, z, triples)
    torch.testing.assert_close(part(z), truth, atol=1e-12, rtol=0)
    sparse = with_poly()
    codes = sparse.encode(torch.randn(30, D))
    torch.testing.assert_close(sparse.decode(codes), sparse.decode(to_dense(codes)))


def test_without_powers_it_is_a_linear_dictionary():
    part, z = decoder(lambdas=[0.0, 0.0]), torch.randn(7, F).double()
    torch.testing.assert_close(part(z), z @ part.atoms, atol=1e-13, rtol=0)


def test_two_latents_write_their_pair_direction():
    part = decoder(ranks=(8, 5))
    one, two = torch.zeros(1, F).double(), torch.zeros(1, F).double()
    one[0, 2], two[0, 7] = 1.7, 0.6
    more = part(one + two) - part(one) - part(two)
    pairs = torch.tensor([[2, 7]])
    torch.testing.assert_close(more, 1.7 * 0.6 * part.pair_directions(pairs))
    torch.testing.assert_close(part.pair_directions(pairs)[0], 2 * part.lambdas[0] * pair_tensor(part)[2, 7])
    z = torch.randn(5, F).double()
    square = part.lambdas[0] * torch.einsum("ni,nj,ijd->nd", z, z, pair_tensor(part))
    torch.testing.assert_close(part(z) + part(-z), 2 * square)


def test_columns_stay_orthonormal_and_are_not_turned_round():
    part = PolyDecoder(40, 16, (12, 4, 2))
    eye = torch.eye(12)
    torch.testing.assert_close(part.U.T @ part.U, eye, atol=1e-5, rtol=0)
    before = part.U.detach().clone()
    part.settle()
    torch.testing.assert_close(part.U, before, atol=1e-5, rtol=0)
    part.U.data += 0.05 * torch.randn(40, 12)
    part.settle()
    torch.testing.assert_close(part.U.T @ part.U, eye, atol=1e-5, rtol=0)
    assert (torch.linalg.vecdot(part.U, before, dim=0) > 0.7).all()


def test_a_rotation_leaves_only_the_linear_term():
    part, z = decoder(), torch.randn(7, F).double()
    turn = torch.linalg.qr(torch.randn(8, 8).double()).Q
    other = decoder()
    other.U.data, other.C1.data = part.U @ turn, part.C1 @ turn
    torch.testing.assert_close(other.atoms, part.atoms)
    assert not torch.allclose(other(z), part(z))


def test_size_and_which_columns_learn():
    part = PolyDecoder(1638, 76, (76, 6, 6))
    assert sum(p.numel() for p in part.parameters()) == 1638 * 76 + 76 * (76 + 6 + 6) + 2
    part = PolyDecoder(F, D, (8, 3))
    part.C1.data.zero_()
    part.C2.data.normal_()
    part(torch.randn(5, F)).square().sum().backward()
    assert part.U.grad[:, :3].abs().min() > 0 and not part.U.grad[:, 3:].any() and part.C2.grad.any()


@pytest.mark.parametrize("codes, output", [(3.0, 0.25), (0.2, 7.0)])
def test_a_change_of_unit(codes, output):
    part, other, z = decoder(), decoder(), torch.randn(6, F).double()
    other.rescale(codes, output)
    torch.testing.assert_close(other(codes * z), output * part(z))


def test_what_a_latent_adds_is_with_minus_without():
    sae = with_poly()
    z = sae.encode(torch.randn(20, D))
    without = to_dense(z)
    without[:, 3] = 0
    truth = sae.decode(z) - sae.decode(without)
    torch.testing.assert_close(contribution(sae, z, 3), truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contribution(sae, to_dense(z), 3), truth, atol=1e-5, rtol=1e-5)
    linear = SAE("topk", d_in=D, d_sae=F, k=4).requires_grad_(False)
    z = linear.encode(torch.randn(20, D))
    own = to_dense(z)[:, 3:4] * linear.W_dec[3]
    torch.testing.assert_close(contribution(linear, z, 3), own, atol=1e-6, rtol=1e-5)


def test_interactions_by_brute_force():
    sae = with_poly()
    x = torch.randn(200, D)
    z = to_dense(sae.encode(x)).double()
    found = interactions(sae, x, min_count=10)
    truth = {}
    for i in range(F):
        for j in range(i + 1, F):
            count = int(((z[:, i] != 0) & (z[:, j] != 0)).sum())
            if count >= 10:
                strength = float((2 * sae.decoder.lambdas[0] * pair_tensor(sae.decoder)[i, j]).norm())
                covariance = float((z[:, i] * z[:, j]).mean() - z[:, i].mean() * z[:, j].mean())
                truth[i, j] = (count, strength, covariance)
    table = found.to_frame()
    assert len(table) == len(truth) > 5 and table.strength.is_monotonic_decreasing
    for i, j, *measured in table.itertuples(index=False):
        assert measured == pytest.approx(truth[i, j], rel=1e-4, abs=1e-6)
    assert -1 <= found.correlation() <= 1 and found.plot().collections and "strength" in found._repr_html_()
    assert len(interactions(sae, x, min_count=201).pairs) == 0


def test_it_trains_and_comes_back_from_its_file(tmp_path):
    x, _ = planted(rows=3000)
    made = SAE("topk", d_in=64, d_sae=128, k=3, decoder=PolyDecoder(128, 64, (64, 16, 16)))
    torch.testing.assert_close(made.W_enc, made.W_dec.T)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(128))
    assert not made.decoder.C2.any() and not made.decoder.C3.any()
    start, linear = made.decoder.U.detach().clone(), {"architecture": "topk", "d_sae": 128, "k": 3}
    saes, _ = train_sae(x, saes={"poly": made, "linear": linear}, n_tokens=80_000, batch_size=512, **QUIET)
    sae = saes["poly"]
    assert float((sae.decoder.U - start).norm()) > 0.5  # it learns, also after it was made orthonormal again
    assert sae.metadata["fvu"] < 1.05 * saes["linear"].metadata["fvu"]
    torch.testing.assert_close(sae.decoder.U.T @ sae.decoder.U, torch.eye(64), atol=1e-4, rtol=0)
    again = SAE.load(sae.save(tmp_path / "poly"))
    torch.testing.assert_close(again(x[:50]), sae(x[:50]))


def test_mistakes():
    for ranks in ((8,), (4, 8), (8, 4, 2, 1), (13, 4), (8, 0)):
        with pytest.raises(InputError, match="ranks"):
            PolyDecoder(F, D, ranks)
    sae, x = SAE("topk", d_in=D, d_sae=F, k=4), torch.randn(5, D)
    with pytest.raises(InputError, match="PolyDecoder"):
        interactions(sae, x)
    with pytest.raises(FitError, match="12 latents"):
        contribution(sae, sae.encode(x), 12)
    poly = SAE("topk", d_in=D, d_sae=F, k=4, decoder=PolyDecoder(F, D, (8, 5)))
    with pytest.raises(InputError, match="min_count"):
        interactions(poly, x, min_count=0)
    with pytest.raises(InputError, match="of='size'"):
        interactions(poly, x, min_count=1).correlation("size")
    with pytest.raises(InputError, match="linear decoder"):
        train_sae(torch.randn(100, D), saes={"poly": {"sae": poly, "rules": [Matryoshka((4,))]}}, n_tokens=100, **QUIET)

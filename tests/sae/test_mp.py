"""Matching pursuit: the pursuit written out, identities of each step, gradients, training, files."""

import pytest
import torch
from torch.nn import functional

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae import SAE, encode_with, pursuit_curve, train_sae
from sparselens.sae.mp import MatchingPursuit, merged, pursue, replay
from tests.sae.synthetic import QUIET, planted

TYPES = (torch.float64, torch.int64, torch.float64)


def unit(n: int, d: int, seed: int = 0, dtype=torch.float64):
    return functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def by_hand(x, atoms, k, tol=0.0):
    """One row at a time, as the paper writes it."""
    values, indices, residual = [], [], []
    for row in x:
        r, first = row.clone(), float(row.norm())
        for _ in range(k):
            c = atoms @ r
            j = int(c.argmax())
            v = float(c[j]) if float(c[j]) > 1e-6 * first and float(r.norm()) > tol * first else 0.0
            r = r - v * atoms[j]
            values.append(v), indices.append(j), residual.append(float(r.norm()))
    lists = zip((values, indices, residual), TYPES, strict=True)
    values, indices, residual = (torch.tensor(v, dtype=t).reshape(len(x), k) for v, t in lists)
    return values, indices, residual


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("tol", [0.0, 0.5])
def test_the_pursuit_is_the_one_written_out(table, tol):
    atoms, x = unit(40, 12), torch.randn(300, 12, dtype=torch.float64)
    found = pursue(x, atoms, 9, tol, atoms @ atoms.T if table else None)
    values, indices, residual = by_hand(x, atoms, 9, tol)
    torch.testing.assert_close(found.values, values)
    assert torch.equal(found.indices[values > 0], indices[values > 0])
    torch.testing.assert_close(found.residual.square(), residual.square(), atol=1e-12, rtol=1e-12)
    assert float((found.values == 0).double().mean()) > 0.3 or not tol


def test_each_step_takes_off_what_it_gains_and_leaves_nothing_along_the_atom():
    atoms, x = unit(30, 10), torch.randn(50, 10, dtype=torch.float64)
    found = pursue(x, atoms, 12)
    rest = x.clone()
    for step in range(12):
        atom = atoms[found.indices[:, step]]
        rest = rest - found.values[:, step, None] * atom
        assert ((rest * atom).sum(1).abs() < 1e-12).all()
        torch.testing.assert_close(rest.norm(dim=1), found.residual[:, step])
    assert (found.residual.diff(dim=1) <= 1e-12).all()
    shorter = pursue(x, atoms, 5)
    assert torch.equal(shorter.indices, found.indices[:, :5]) and torch.equal(shorter.values, found.values[:, :5])


def test_over_orthonormal_rows_it_is_topk():
    rows = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    x = torch.randn(40, 16, dtype=torch.float64)
    for solver in ("mp", "omp"):
        torch.testing.assert_close(encode_with(rows, x, 4, solver).dense(), encode_with(rows, x, 4, "topk").dense())
    torch.testing.assert_close(encode_with(unit(60, 16), x, 1).dense(), encode_with(unit(60, 16), x, 1, "topk").dense())


def test_two_atoms_are_found_to_the_last_digit():
    truth = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    for cosine in (-0.2, 0.2):  # where atoms lean on each other the first gain is too large, and only omp takes it back
        rows = torch.tensor([[1.0, 0.0, 0.0], [cosine, (1 - cosine**2) ** 0.5, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(encode_with(rows, truth @ rows, 2, "omp").dense(), truth)
        found = merged(*pursue(truth @ rows, rows, 30)[:2], 2).dense()
        gap = (found - truth).abs().max()
        assert gap < 1e-5 if cosine < 0 else gap > 0.1


def test_omp_leaves_nothing_along_any_atom_it_uses_and_is_the_best_fit():
    from scipy.optimize import nnls

    rows, x = unit(25, 10), torch.randn(30, 10, dtype=torch.float64)
    z = encode_with(rows, x, 5, "omp").dense()
    rest = x - z @ rows
    assert ((rest @ rows.T)[z > 0].abs() < 1e-9).all() and (z >= 0).all() and ((z > 0).sum(1) <= 5).all()
    for row, code in zip(x, z, strict=True):  # no better non-negative fit over the atoms it uses
        used = rows[code > 0]
        assert float((row - code @ rows).norm()) <= nnls(used.T.numpy(), row.numpy())[1] + 1e-9


def test_norms_of_rows_do_not_matter_and_an_atom_stands_once():
    sae = SAE(MatchingPursuit(8, tol=0.0), d_in=6, d_sae=9).requires_grad_(False)  # so few atoms are picked again
    x = torch.randn(200, 6)
    before, z = sae(x), sae.encode(x)
    dense = z.dense()
    active = (z.values != 0).sum(1)
    assert torch.equal(active, (dense != 0).sum(1)) and int(active.min()) < 8
    sae.W_dec.data *= torch.rand(9, 1) + 0.5
    torch.testing.assert_close(sae(x), before)


def test_nothing_to_pursue_gives_nothing():
    sae = SAE("mp", d_in=4, d_sae=3, k=2).requires_grad_(False)
    sae.W_dec.data = torch.eye(4)[:3]
    z = sae.encode(torch.tensor([[0.0, 0, 0, 0], [-1.0, -2, -3, 5], [0.0, 2, 0, 0]]))
    assert z.dense().tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 0]]


def test_the_table_follows_the_rows():
    sae, x = SAE("mp", d_in=8, d_sae=20, k=4).requires_grad_(False), torch.randn(30, 8)
    sae.encode(x)
    sae.W_dec.data = unit(20, 8, seed=5, dtype=torch.float32)
    fresh = SAE("mp", d_in=8, d_sae=20, k=4).requires_grad_(False)
    fresh.W_dec.data = sae.W_dec.data.clone()
    torch.testing.assert_close(sae.encode(x).dense(), fresh.encode(x).dense())
    sae.W_dec.data[3] = 0.1  # in place, behind the version counter
    fresh.W_dec.data = sae.W_dec.data.clone()
    torch.testing.assert_close(sae.encode(x).dense(), fresh.encode(x).dense())


def test_replayed_gradients_are_those_of_the_whole_pursuit():
    x = torch.randn(20, 7, dtype=torch.float64)
    grads = []
    for way in ("whole", "replay"):
        rows = unit(15, 7).requires_grad_()
        rest, out = x, torch.zeros_like(x)
        found = pursue(x, rows.detach(), 6)
        gains = replay(x, rows, found.indices, found.values > 0)
        for step in range(6):
            if way == "whole":
                lean = rest @ rows.T
                gain, j = lean.max(1)
                gain = gain * (gain > 1e-6 * x.norm(dim=1))  # what is less is rounding
            else:
                gain, j = gains[:, step], found.indices[:, step]
            out = out + gain[:, None] * rows[j]
            rest = rest - gain[:, None] * rows[j]
        (out - 1).square().sum().backward()
        grads.append(rows.grad)
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_encode_has_gradients():
    sae, x = SAE("mp", d_in=8, d_sae=20, k=3), torch.randn(5, 8)
    sae(x).square().sum().backward()
    assert sae.W_dec.grad.any()


def test_training_finds_planted_directions(tmp_path):
    x, directions = planted(rows=12_000, d=24, features=32)
    sae, run = train_sae(x, n_tokens=200_000, architecture="mp", d_sae=32, k=3, batch_size=256, lr=1e-2, **QUIET)
    rows = functional.normalize(sae.W_dec, dim=1)
    found = (functional.normalize(directions, dim=1) @ rows.T).max(1).values
    assert float((found > 0.95).double().mean()) > 0.9
    fresh = SAE("mp", d_in=24, d_sae=32, k=3)
    fresh.requires_grad_(False)
    assert float((sae(x) - x).square().sum()) < 0.1 * float((fresh(x) - x).square().sum())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-4, rtol=0)
    sae.save(tmp_path / "mp", format="sparselens")
    again = SAE.load(tmp_path / "mp")
    assert again.k == 3 and torch.equal(again.encode(x[:50]).dense(), sae.encode(x[:50]).dense())
    with pytest.raises(InputError, match="cannot hold this mp SAE"):
        sae.save(tmp_path / "saelens", format="saelens")


def test_more_steps_never_fit_worse():
    x, _ = planted(rows=400, d=24, features=60)
    curve = pursuit_curve(SAE("topk", d_in=24, d_sae=60, k=4).requires_grad_(False), x, (1, 2, 4, 8, 16))
    assert list(curve.pursuit) == sorted(curve.pursuit, reverse=True) and len(curve.own) == 5
    assert len(curve.to_frame()) == 5 and "<table" in curve._repr_html_() and len(curve.plot().lines) == 2
    mp = SAE("mp", d_in=24, d_sae=60, k=4).requires_grad_(False)
    assert pursuit_curve(mp, x, (1, 4)).own is None


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: encode_with(torch.eye(4), torch.ones(2, 4), 2, "omb"), InputError, "omp"),
        (lambda: encode_with(torch.eye(4), torch.ones(2, 4), 5), InputError, "1 to 4"),
        (lambda: encode_with(torch.eye(4), torch.ones(2, 3), 2), FitError, "have 3"),
        (lambda: encode_with(torch.eye(4), torch.full((2, 4), torch.nan), 2), NotFiniteError, "NaN"),
        (lambda: MatchingPursuit(3, tol=1.5), InputError, "tol=1.5"),
        (lambda: SAE("mp", d_in=4, d_sae=8, k=9), InputError, "k=9"),
        (lambda: SAE("mp", d_in=4, d_out=5, d_sae=8, k=2), InputError, "tied"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, says):
    with pytest.raises(error, match=says):
        call()

"""ITDA: atoms are tokens of texts, the pursuit is signed, labels are a property of the representation."""

import pytest
import torch
from torch.nn import functional

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae import SAE, atom_table, build_itda, jaccard, match_layers, representation_similarity
from sparselens.sae.itda import Atoms
from sparselens.sae.mp import pursue
from tests import tiny

QUIET = {"progress": False}


def rows(n: int = 900, d: int = 12, rank: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, d, generator=generator)
    codes = torch.randn(n, rank, generator=generator) * (torch.rand(n, rank, generator=generator) < 0.08)
    return codes @ directions + 0.05 * torch.randn(n, d, generator=generator)


def built(x: torch.Tensor, **settings) -> SAE:
    return build_itda(x, **{"k": 3, "min_cosine": 0.9, "batch_tokens": 100, **QUIET, **settings})


def test_the_signed_pursuit_keeps_accounts():
    atoms, x = functional.normalize(torch.randn(30, 10).double(), dim=1), torch.randn(40, 10).double()
    found = pursue(x, atoms, 8, gram=atoms @ atoms.T, signed=True)
    total = found.values.square().sum(1) + found.residual[:, -1].square()
    torch.testing.assert_close(total, x.square().sum(1))
    assert (found.values < 0).any() and (found.residual.diff(dim=1) <= 1e-12).all()
    one = pursue(torch.stack([2.5 * atoms[4], -2.5 * atoms[4]]), atoms, 1, signed=True)
    torch.testing.assert_close(one.values, torch.tensor([[2.5], [-2.5]], dtype=torch.float64))
    assert one.indices.tolist() == [[4], [4]]


def test_over_orthonormal_atoms_it_keeps_the_largest_in_size():
    sae = SAE(Atoms(4, 16), d_in=16, d_sae=16).requires_grad_(False)
    sae.W_dec.data = torch.linalg.qr(torch.randn(16, 16)).Q
    x = torch.randn(30, 16)
    codes = x @ sae.W_dec.T
    kept = codes.abs().topk(4).indices
    torch.testing.assert_close(sae.encode(x).dense(), torch.zeros_like(codes).scatter(1, kept, codes.gather(1, kept)))


def test_every_atom_is_the_token_at_its_label_and_building_again_gives_the_same():
    x = rows()
    sae, again = built(x), built(x)
    at = sae.activation.labels[:, 0]
    torch.testing.assert_close(sae.W_dec, functional.normalize(x[at], dim=1))
    assert torch.equal(at, again.activation.labels[:, 0]) and len(at.unique()) == len(at)
    assert 12 < sae.d_sae < 900 and at[:12].max() < 100
    assert jaccard(sae, again) == 1
    assert list(atom_table(sae).columns) == ["atom", "document", "position"]


def test_what_is_added_is_what_the_atoms_before_it_made_badly():
    x = rows()
    sae, seen = built(x, max_atoms=None), 12
    labels = sae.activation.labels[:, 0]
    for start in range(0, 900, 100):
        part = functional.normalize(x[start : start + 100], dim=1)
        before = sae.W_dec[: max(seen, 12)]
        found = pursue(part, before, 3, signed=True)
        made = torch.einsum("nk,nkd->nd", found.values, before[found.indices])
        bad = (functional.cosine_similarity(made, part) < 0.9).nonzero().flatten() + start
        mine = labels[seen:][(labels[seen:] >= start) & (labels[seen:] < start + 100)]
        assert mine.tolist() == [i for i in bad.tolist() if start or i not in labels[:12].tolist()]
        seen += len(mine)
    assert seen == sae.d_sae


def test_turning_and_scaling_all_activations_changes_no_label():
    x = rows()
    turn = torch.linalg.qr(torch.randn(12, 12)).Q
    assert jaccard(built(x), built(37.0 * x @ turn)) == 1
    other = rows(seed=1)
    assert jaccard(built(x), built(other)) < 0.9
    found = match_layers([built(x), built(other)], [built(3 * x @ turn), built(other @ turn)])
    assert found.accuracy == 1 and found.similarity.diagonal().tolist() == [1, 1] and "<table" in found._repr_html_()


def test_near_copies_of_a_batch_are_one_atom():
    x = rows(300)
    twice = torch.cat([x[:100], x[100:200], x[100:200] * 2])
    labels = build_itda(twice, k=3, min_cosine=0.9, batch_tokens=300, **QUIET).activation.labels[:, 0]
    assert (labels < 200).all() and len(labels) > 50


def test_on_a_model_atoms_have_texts_and_the_first_token_is_none(tmp_path):
    m = tiny.live()
    texts = ["one two three four five six", "seven eight nine ten", "one two three eleven twelve"] * 8
    site = "blocks.1.hook_resid_post"
    sae = build_itda(m, texts, site=site, k=4, min_cosine=0.99, **QUIET)
    table = atom_table(sae)
    assert sae.site == site and (table["position"] > 0).all()
    cap = m.capture(texts, site)
    for row in table.head(10).itertuples():
        x = cap[site][row.document, row.position]
        torch.testing.assert_close(sae.W_dec[row.atom], functional.normalize(x, dim=0), atol=1e-4, rtol=0)
        assert m.tokenizer.decode(cap.tokens[row.document, row.position]) == row.token
    sae.save(tmp_path / "itda", format="sparselens")
    again = SAE.load(tmp_path / "itda")
    assert jaccard(sae, again) == 1 and atom_table(again).equals(table)
    with m.attach(again) as lens:
        assert lens.report(texts[:2]).l0 > 0


def test_similarities_of_old():
    x = torch.randn(400, 10)
    turn = torch.linalg.qr(torch.randn(10, 10)).Q
    for metric in ("cka", "svcca", "linreg", "relative"):
        assert representation_similarity(x, 3 * x @ turn, metric) == pytest.approx(1, abs=1e-4)
        assert representation_similarity(x, torch.randn(400, 10), metric) < 0.5


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: build_itda(torch.zeros(0, 4), **QUIET), InputError, "no activations"),
        (lambda: build_itda(torch.full((3, 4), torch.nan), **QUIET), NotFiniteError, "NaN"),
        (lambda: build_itda(torch.ones(3, 4), min_cosine=1.5, **QUIET), InputError, "min_cosine=1.5"),
        (lambda: build_itda(tiny.live(), **QUIET), InputError, "texts and a site"),
        (lambda: jaccard(SAE("topk", d_in=4, d_sae=8, k=2), built(rows())), InputError, "topk"),
        (lambda: representation_similarity(torch.ones(3, 2), torch.ones(3, 2), "cca"), InputError, "svcca"),
        (lambda: representation_similarity(torch.ones(3, 2), torch.ones(4, 2)), FitError, "3 rows"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, says):
    with pytest.raises(error, match=says):
        call()

import pytest
import torch

from sparselens.errors import FitError, InputError
from sparselens.sae import SAE, train_sae
from tests import tiny

SITE = "blocks.1.hook_resid_post"
TEXTS = ["the cat sat on the mat", "a hat in the inn is the thing", "then he ran in"] * 6


@pytest.fixture(scope="module")
def trained():
    m = tiny.live("llama")
    sae, _ = train_sae(m, TEXTS, site=SITE, d_sae=64, k=4, n_tokens=40_000, batch_size=64, progress=False, live=False)
    return m, sae


def test_a_trained_sae_verifies_on_its_own_model(trained):
    m, sae = trained
    report = sae.verify(m, TEXTS)
    assert report.ok and report.fvu < 0.5 and report.l0 == pytest.approx(4, abs=0.2)
    assert report.to_frame().loc["fvu", "recorded"] == sae.metadata["fvu"]
    assert "as recorded" in report._repr_html_()


def test_it_measures_the_same_as_by_hand(trained):
    m, sae = trained
    rows = torch.cat([b.values[b.content & ~b.first] for b in m.stream(TEXTS, SITE)])
    rows = rows[rows.norm(dim=1) <= sae.max_norm]
    fvu = (rows - sae(rows)).square().sum() / (rows - rows.mean(0)).square().sum()
    report = sae.verify(m, TEXTS)
    assert report.tokens == len(rows)
    assert report.fvu == pytest.approx(float(fvu), rel=1e-4)


def test_a_wrong_site_is_noticed(trained):
    m, sae = trained
    sae.metadata["hook_name"] = "blocks.0.attn.hook_z"
    try:
        report = sae.verify(m, TEXTS)
        assert not report.ok and "NOT" in report._repr_html_()
    finally:
        sae.metadata["hook_name"] = SITE


def test_what_does_not_fit_raises(trained):
    m, _ = trained
    with pytest.raises(FitError, match="width 32.*d_in=8"):
        SAE("topk", d_in=8, d_sae=16, k=2, site=SITE).verify(m, TEXTS)
    with pytest.raises(FitError, match="does not name its site"):
        SAE("topk", d_in=32, d_sae=64, k=2).verify(m, TEXTS)
    with pytest.raises(InputError, match="no token"):
        SAE("topk", d_in=32, d_sae=64, k=2, site=SITE, max_norm=1e-9).verify(m, TEXTS)

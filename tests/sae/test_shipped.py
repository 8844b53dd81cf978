"""The dictionaries that come along: small enough, whole, and as good on other texts as their cards say."""

import json

import pytest
import torch

import sparselens as sl
from sparselens.sae import SAE, shipped, to_dense
from sparselens.sae.registry import names

MOST_BYTES = 45_000_000
WRITTEN = [entry for entry in shipped() if entry.model == "smollm2-135m-instruct"]


def test_they_are_small_together():
    assert sum(path.stat().st_size for entry in WRITTEN for path in entry.folder.iterdir()) < MOST_BYTES
    assert [entry.recipe for entry in WRITTEN if entry.default] == ["topk-4608-k32"]
    assert {"abstopk-2304-k32", "jumprelu-4608-l32", "mp-4608-k32"} < {entry.recipe for entry in WRITTEN}
    assert {entry.name for entry in WRITTEN} <= set(names())


@pytest.fixture(scope="module")
def tokens(smollm2):
    """Content tokens of a few answers at every site, none of them the first of a text."""
    sites = sorted({entry.site for entry in WRITTEN})
    texts = sl.datasets.load_answers("chatty")["answer"].head(12).tolist()
    seen = smollm2.capture(texts, sites)
    keep = seen.mask.clone()
    keep[torch.arange(len(keep)), seen.mask.int().argmax(1)] = False
    return {site: seen[site][keep] for site in sites}


@pytest.mark.parametrize("entry", WRITTEN, ids=lambda entry: entry.recipe)
def test_they_do_what_their_cards_say(entry, tokens):
    sae, card = SAE.load(entry.name), json.loads((entry.folder / "card.json").read_text())
    on_wikitext, x = card["wikitext2_test"], tokens[entry.site]
    assert sae.site == entry.site and entry.recipe.startswith(("fast", sae.architecture))
    x = x[sae.applies(x)]
    with torch.no_grad():
        left = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        l0 = float((to_dense(sae.encode(x)) != 0).sum(1).float().mean())
    assert float(left) < 1.5 * on_wikitext["fvu"] + 0.05
    assert l0 == pytest.approx(on_wikitext["l0"], rel=0.3)
    assert on_wikitext["ce_clean"] < on_wikitext["ce"] < on_wikitext["ce_zero"]
    assert card["kept_tokens"] and card["provenance"] is not None

"""Fidelity on a tiny real transformer, against plain loops and against identities."""

import math

import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.measure import compare, fidelity
from tests import tiny

SITE = "blocks.1.hook_resid_post"
TEXTS = ["the cat sat on a mat", "in the beginning there was a word", "", "a", "then again, he then ate the thing"]


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def make_sae(**settings):
    return sl.SAE("topk", d_in=32, d_sae=64, k=4, site=SITE, **settings)


def max_norm(m):
    """A limit that leaves some tokens out."""
    x = m.capture(TEXTS[:2], SITE)
    return float(x[SITE][x.mask].norm(dim=-1).median())


def by_hand(m, texts, edit_row):
    """Cross-entropy per predicted token with plain loops: `edit_row(x [pos, d]) -> [pos, d]` changes one text."""
    total, count, kls, agree, tokens = 0.0, 0, 0.0, 0, 0
    for text in texts:
        ids = m.tokenizer(text)["input_ids"]
        if not ids:
            continue
        clean = m.run(text).logits[0].double().log_softmax(-1)
        with m.attach(sl.edit(SITE, lambda x: edit_row(x[0])[None])):
            edited = m.run(text).logits[0].double().log_softmax(-1)
        for i, token in enumerate(ids[1:]):
            total -= float(edited[i, token])
            count += 1
        kls += float((clean.exp() * (clean - edited)).sum())
        agree += int((clean.argmax(-1) == edited.argmax(-1)).sum())
        tokens += len(ids)
    return total / count, kls / tokens, agree / tokens, tokens


@pytest.mark.parametrize("limited", [False, True])
def test_against_plain_loops(m, limited):
    sae = make_sae(max_norm=max_norm(m) if limited else None)
    got = fidelity(m, sae, TEXTS, batch_tokens=40)

    def rows(x):
        return sae.applies(x) & (torch.arange(len(x)) > 0)

    def splice(x):
        return torch.where(sae.applies(x)[:, None], sae(x), x)

    ce, kl, top1, tokens = by_hand(m, TEXTS, splice)
    assert got.tokens == tokens
    assert got.ce == pytest.approx(ce, rel=1e-5)
    assert got.kl == pytest.approx(kl, rel=1e-4)
    assert got.top1 == pytest.approx(top1)
    assert got.ce_clean == pytest.approx(m.loss([t for t in TEXTS if len(t) > 1]), rel=1e-5)

    seen = torch.cat([(x := m.capture(t, SITE)[SITE][0])[rows(x)] for t in TEXTS if t])
    if limited:
        assert 0 < len(seen) < tokens - 4
    zero, *_ = by_hand(m, TEXTS, lambda x: torch.where(rows(x)[:, None], 0.0, x))
    mean, *_ = by_hand(m, TEXTS, lambda x: torch.where(rows(x)[:, None], seen.mean(0), x))
    assert got.ce_zero == pytest.approx(zero, rel=1e-5)
    assert got.ce_mean == pytest.approx(mean, rel=1e-5)
    assert got.ce_recovered_zero == pytest.approx((zero - ce) / (zero - got.ce_clean), rel=1e-3)

    codes = sae.encode(seen).dense()
    fired = (codes != 0).sum(0)
    assert got.l0 == pytest.approx(float((codes != 0).sum(1).double().mean()))
    error, spread = (seen - sae(seen).detach()).square().sum(), (seen - seen.mean(0)).square().sum()
    assert got.fvu == pytest.approx(float(error / spread), rel=1e-5)
    assert got.explained_variance == pytest.approx(1 - got.fvu)
    assert got.dead_share == pytest.approx(float((fired == 0).double().mean()))
    assert got.dense_share == pytest.approx(float((fired > 0.1 * len(seen)).double().mean()))


def test_error_term_and_empty_edit_cost_nothing(m):
    for thing in (sl.replace(make_sae(), error_term=True), sl.edit(SITE, lambda x: x)):
        got = fidelity(m, thing, TEXTS)
        assert got.ce_increase == 0
        assert got.kl == 0
        assert got.top1 == 1
    assert got.l0 is None
    assert got.ce_recovered_zero is None


def test_zero_ablation_of_everything_matches_the_edit(m):
    sae = make_sae()
    everything = sl.edit(SITE, lambda x, _context: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1))
    assert fidelity(m, everything, TEXTS).ce == pytest.approx(fidelity(m, sae, TEXTS).ce_zero)


def test_template_and_padding_do_not_count_for_the_dictionary(m):
    sae = make_sae()
    plain = fidelity(m, sae, ["the cat"] * 3 + [TEXTS[1]], role="user", batch_tokens=500)
    apart = fidelity(m, sae, ["the cat"] * 3 + [TEXTS[1]], role="user", batch_tokens=1)
    assert plain.l0 == pytest.approx(apart.l0)
    assert plain.fvu == pytest.approx(apart.fvu, rel=1e-4)
    assert plain.ce == pytest.approx(apart.ce, rel=1e-5)
    assert plain.ce_mean == pytest.approx(apart.ce_mean, rel=1e-5)
    with m.attach(sae):
        assert fidelity(m, sae, ["the cat"], role="user").fvu == pytest.approx(
            fidelity(m, sae, ["the cat"], role="user").fvu)


def test_report_inside_attach_still_compares_with_the_untouched_model(m):
    sae = make_sae()
    outside = fidelity(m, sae, TEXTS)
    with m.attach(sae) as lens:
        before = m.run(TEXTS[0]).logits
        inside = lens.report(TEXTS)
        assert torch.equal(m.run(TEXTS[0]).logits, before)
    assert inside == outside
    assert inside.ce_increase != 0


def test_untouched_puts_back_after_an_exception(m):
    clean = m.run(TEXTS[0]).logits
    with m.attach(make_sae()):
        spliced = m.run(TEXTS[0]).logits
        with pytest.raises(KeyboardInterrupt), m.untouched():
            assert torch.equal(m.run(TEXTS[0]).logits, clean)
            raise KeyboardInterrupt
        assert torch.equal(m.run(TEXTS[0]).logits, spliced)
    assert torch.equal(m.run(TEXTS[0]).logits, clean)


def test_long_texts_are_cut(m):
    got = fidelity(m, sl.ablate(SITE), ["a cat " * 500], max_length=20)
    assert got.tokens == 20


def test_nothing_to_measure(m):
    with pytest.raises(InputError, match="two tokens"):
        fidelity(m, make_sae(), ["a", "", "b"])
    with pytest.raises(InputError, match="empty list"):
        fidelity(m, make_sae(), [])


def test_a_dictionary_of_another_width_is_refused(m):
    with pytest.raises(FitError, match="d_in"):
        fidelity(m, sl.SAE("topk", d_in=8, d_sae=16, k=2, site=SITE), TEXTS)


@pytest.mark.parametrize("limit", [None, 100.0])
def test_nan_is_an_error_and_the_model_is_left_alone(limit):
    broken = tiny.live("llama", seed=3)
    with torch.no_grad():
        broken.native.model.layers[1].mlp.down_proj.weight[0] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN"):
        fidelity(broken, make_sae(max_norm=limit), TEXTS)
    assert not broken._engine._stack


def test_logits_of_one_batch_at_a_time(m, monkeypatch):
    """Two sets of logits (clean and edited) at most are alive when the next forward pass begins."""
    import weakref

    alive, most = [], 0
    plain = type(m).logits

    def logits(self, batch):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        out = plain(self, batch)
        alive.append(weakref.ref(out))
        return out

    monkeypatch.setattr(type(m), "logits", logits)
    compare(m, {"a": make_sae(), "b": sl.ablate(SITE)}, TEXTS * 6, batch_tokens=30)
    assert len(alive) > 20
    assert most <= 1


def test_shown_numbers(m):
    got = fidelity(m, make_sae(), TEXTS, name="<b>mine</b>")
    frame = got.to_frame()
    assert len(frame) == 1
    assert frame.ce_recovered_zero[0] == got.ce_recovered_zero
    assert frame.sites[0] == SITE
    html = got._repr_html_()
    assert "<b>mine" not in html
    assert "&lt;b&gt;mine" in html
    assert all(math.isfinite(v) for v in (got.ce, got.kl, got.fvu, got.ce_mean))

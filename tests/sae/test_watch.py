"""An SAE that does something else than its file says ends the first run of its splice."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError
from sparselens.sae import SAE, train_sae
from sparselens.sae.verify import WATCHED
from tests import tiny
from tests.sae.synthetic import QUIET

SITE, WRONG = "blocks.1.hook_resid_post", "blocks.0.hook_mlp_out"
TEXTS = ["the cat sat on the mat", "a hat in the inn is the thing", "then he ran in"] * 8


@pytest.fixture(scope="module", params=["topk", "jumprelu"])
def trained(request):
    m = tiny.live("llama")
    settings = {"site": SITE, "d_sae": 64, "k": 4, "n_tokens": 60_000, "batch_size": 64, **QUIET}
    return m, train_sae(m, TEXTS, architecture=request.param, **settings)[0]


def moved(sae: SAE, site: str | None = None, **facts) -> SAE:
    """A copy with another record."""
    copy = SAE(type(sae.activation)(**sae.activation.options), d_in=sae.d_in, d_sae=sae.d_sae,
               metadata=sae.metadata | {"hook_name": site or sae.site} | facts).requires_grad_(False)  # fmt: skip
    copy.load_state_dict(sae.state_dict())
    return copy


def test_a_right_one_is_let_through(trained):
    m, sae = trained
    with m.attach(sae):
        first, again = m.run(TEXTS).logits, m.run(TEXTS).logits
    assert torch.equal(first, again)
    with m.attach(sl.steer(sae, 3, 1.0)):
        m.run(TEXTS)
    m.attach(sae).__enter__().report(TEXTS)


@pytest.mark.parametrize("thing", [lambda s: s, sl.replace, lambda s: sl.steer(s, 3, 1.0),
                                   lambda s: sl.replace(s, error_term=True)])  # fmt: skip
def test_a_wrong_site_ends_the_first_run(trained, thing):
    m, sae = trained
    before = m.run(TEXTS).logits
    says = r"does not do what its file says: fvu \d.*sae.verify.*force=True"
    with pytest.raises(FitError, match=says), m.attach(thing(moved(sae, WRONG))):
        m.run(TEXTS)
    assert torch.equal(m.run(TEXTS).logits, before)


def test_a_wrong_l0_is_noticed_where_k_is_not_fixed(trained):
    m, sae = trained
    other = moved(sae, l0=16 * sae.metadata["l0"])
    if sae.activation.sparse:  # here it means that the user took another k: nothing to hold the fit against
        with m.attach(other):
            m.run(TEXTS)
        return
    with pytest.raises(FitError, match="l0 .*, recorded"), m.attach(other):
        m.run(TEXTS)


def test_force_puts_it_on_all_the_same_and_no_record_means_no_judgement(trained):
    m, sae = trained
    with m.attach(sl.replace(moved(sae, WRONG), force=True)):
        m.run(TEXTS)
    bare = moved(sae, WRONG)
    del bare.metadata["l0"], bare.metadata["fvu"]
    with m.attach(bare):
        m.run(TEXTS)
    unsaid = moved(sae, WRONG)
    del unsaid.metadata["fvu"]  # worse than the mean, where an l0 is recorded: such an SAE was trained
    worse = SAE("topk", d_in=32, d_sae=64, k=4, site=SITE, metadata={"l0": 4.0})
    worse.b_dec.data += 100
    with pytest.raises(FitError, match="fvu"), m.attach(worse):
        m.run(TEXTS)


def test_few_tokens_are_not_enough_and_add_up_over_runs(trained):
    m, sae = trained
    wrong = moved(sae, WRONG)
    short = "the cat"
    tokens = int(m.capture(short, SITE).mask.sum()) - 1
    with m.attach(wrong):
        for _ in range((WATCHED - 1) // tokens):
            m.run(short)
        with pytest.raises(FitError, match="does not do"):
            for _ in range(2):
                m.run(short)


def test_padding_and_first_tokens_do_not_count(trained):
    m, sae = trained
    for side in ("left", "right"):
        with m.attach(sl.edit("blocks.2.hook_mlp_out", lambda x: x)), m.attach(sae):
            m.run(TEXTS, padding_side=side)


def test_what_another_attachment_changes_before_is_not_held_against_it(trained):
    m, sae = trained
    with m.attach([sl.ablate("blocks.0.hook_resid_post"), sae]):
        m.run(TEXTS)
    with pytest.raises(FitError), m.attach([moved(sae, WRONG), sl.ablate("blocks.2.hook_mlp_out")]):
        m.run(TEXTS)


def test_generation_is_watched_too(trained):
    m, sae = trained
    with pytest.raises(FitError, match="does not do"), m.attach(moved(sae, WRONG)):
        m.generate([" ".join(TEXTS[:6])] * 2, max_new_tokens=2)


def test_a_transcoder_is_judged_by_what_it_writes():
    m = tiny.live("llama")
    places = {"site": "blocks.1.mlp.hook_in", "site_out": "blocks.1.hook_mlp_out"}
    tc, _ = train_sae(m, TEXTS, **places, d_sae=64, k=6, n_tokens=80_000, batch_size=64, **QUIET)
    with m.attach(tc):
        m.run(TEXTS)
    tc.b_dec.data += 50
    with pytest.raises(FitError, match="blocks.1.hook_mlp_out"), m.attach(tc):
        m.run(TEXTS)

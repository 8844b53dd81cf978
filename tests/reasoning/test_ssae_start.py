"""The start of a step-level SAE with a frozen encoder: its prefix points at the words of the step."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError, NotFiniteError
from sparselens.reasoning import SparsityController, StepSAE
from sparselens.reasoning.ssae_start import _Words
from tests import tiny

PAIRS = [(f"What is {a} plus {b}?\n", f"So {a} + {b} = {a + b}.") for a in range(2, 9) for b in range(3, 13)]


@pytest.fixture(scope="module")
def m():
    return tiny.live()


def test_the_words_of_a_step_are_scored_above_others(m):
    ssae = StepSAE(m, pooling="mean")
    steps = ssae.dataset(PAIRS)
    controller = SparsityController(2.5, every=2, rate=0.1, weight=1e-3)
    run = ssae.start(steps, epochs=60, batch_size=35, controller=controller, progress=False)
    assert run.history[-1]["ce"] < run.history[0]["ce"] - 0.3
    assert abs(run.history[-1]["l1"] - 2.5) < 0.5 and run.history[-1]["l0"] > 6
    assert run.seconds > 0 and "nan" not in run._repr_html_()
    h = ssae.summaries(steps)
    torch.testing.assert_close(ssae.shift, h.mean(0))
    v = ssae.mlp(ssae.code(h)[0]).detach()
    words = _Words(ssae, steps)
    assert v.norm(dim=-1).mean() == pytest.approx(float(words.embeddings.norm(dim=-1).mean()), rel=0.05)
    # beyond what all prefixes share, each scores the numbers of its own step higher than another's
    scores = v @ m.module.get_input_embeddings().weight.detach().T
    scores -= scores.mean(0)
    own, other = (torch.stack([scores[i][steps.steps[(i + by) % len(PAIRS)]].mean() for i in range(len(PAIRS))])
                  for by in (0, 33))
    assert (own > other).float().mean() > 0.9


def test_the_loss_of_the_words_is_what_it_says(m):
    ssae = StepSAE(m)
    steps = ssae.dataset(PAIRS[:4])
    words, v = _Words(ssae, steps), torch.randn(4, 32)
    used = sorted({token for step in steps.steps for token in step})
    log_p = (v @ m.module.get_input_embeddings().weight.detach()[used].T).log_softmax(-1)
    each = [-sum(log_p[i, used.index(token)] for token in step) / len(step) for i, step in enumerate(steps.steps)]
    torch.testing.assert_close(words.loss(v, [0, 1, 2, 3]), torch.stack(each).mean())


def test_training_goes_on_from_summaries_read_before(m):
    settings = {"epochs": 1, "progress": False, "live": False}
    read, again = StepSAE(m), StepSAE(m)
    read.fit(PAIRS, summaries=read.summaries(PAIRS), **settings)
    again.fit(PAIRS, **settings)
    for (name, a), b in zip(read.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(InputError, match="needed"):
        read.fit(PAIRS, summaries=torch.zeros(3, 32), **settings)
    with pytest.raises(InputError, match="none, since the encoder is trained"):
        StepSAE(m, tuning="lora").fit(PAIRS, summaries=torch.zeros(len(PAIRS), 32), **settings)


def test_an_encoder_that_is_trained_takes_no_start(m):
    with pytest.raises(InputError, match="only a frozen encoder"):
        StepSAE(m, tuning="lora").start(PAIRS)
    with pytest.raises(InputError, match="expansion=2"):
        sl.StepSAE(m, expansion=2).start(PAIRS)


def test_summaries_that_are_broken_or_of_other_steps_are_refused(m):
    ssae = StepSAE(m)
    before = {name: value.clone() for name, value in ssae.state_dict().items()}
    broken = ssae.summaries(PAIRS)
    broken[3, 5] = float("nan")
    for use in (ssae.start, ssae.fit):
        with pytest.raises(NotFiniteError, match="summaries"):
            use(PAIRS, summaries=broken, progress=False)
        with pytest.raises(InputError, match="needed"):
            use(PAIRS, summaries=broken[1:], progress=False)
    with pytest.raises(InputError, match="at least 1"):
        ssae.start(PAIRS, epochs=0)
    assert all(torch.equal(value, before[name]) for name, value in ssae.state_dict().items())

"""The generation watch and the swap of codes between problems, on a tiny model."""

import pytest
import torch

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import StepSAE, swap_steps, watch_steps
from tests import tiny

CHAIN = "First 2 + 3 = 5.\n\n  Then 5 + 1 = 6.\nSo the answer is 6."
LINES = ["First 2 + 3 = 5.", "Then 5 + 1 = 6.", "So the answer is 6."]


@pytest.fixture
def m():
    return tiny.live()


@pytest.fixture
def says(monkeypatch):
    """Make a model write a given text, three characters at a time."""

    def make(m, text):
        def generate(prompt, max_new_tokens=64, *, on_text=None, **_sampling):
            for i in range(0, len(text), 3):
                on_text(text[i : i + 3])
            return text

        monkeypatch.setattr(m, "generate", generate)

    return make


@pytest.mark.parametrize("how", ["lines", "code", lambda text: [line for line in text.split("\n") if line], "math"])
def test_steps_are_read_as_they_end(m, says, how):
    says(m, CHAIN.replace("\n\n  ", "\n") if callable(how) else CHAIN)
    ssae, seen = StepSAE(m), []
    watched = watch_steps(m, "How many?", ssae, how=how, on_step=lambda step: seen.append(step.text), live=False)
    assert [step.text.strip() for step in watched.steps] == LINES and seen == [s.text for s in watched.steps]
    assert all(watched.text[s.start : s.end] == s.text for s in watched.steps) and watched.ended == "end"
    for step in watched.steps:
        alone = ssae.transform([("How many?\n" + watched.text[: step.start], step.text)])
        assert step.top == alone.top(0) and step.score is None and not step.low
    assert list(watched.to_frame()["step"]) == [0, 1, 2] and "So the answer" in watched._repr_html_()


def test_each_step_is_read_before_the_next_is_finished(m, says):
    says(m, CHAIN)
    texts = []

    class Probe:
        def predict_proba(self, code):
            texts.append(code.shape)
            return [[0.9, 0.1 if len(texts) == 2 else 0.8]]

    watched = watch_steps(m, "q", StepSAE(m), Probe(), on_low="stop", live=False)
    assert watched.ended == "low" and watched.first_low == 1 and len(watched.steps) == 2
    assert texts == [(1, 32)] * 2 and LINES[2] not in watched.text


def test_low_steps_are_marked_and_the_writing_goes_on(m, says):
    says(m, CHAIN)
    scores = iter([0.9, 0.2, 0.6])
    watched = watch_steps(m, "q", StepSAE(m), lambda code: next(scores), threshold=0.5, live=False)
    assert [step.low for step in watched.steps] == [False, True, False] and watched.ended == "end"
    assert watched.first_low == 1 and "below the line" in watched._repr_html_()


def test_a_probe_fitted_on_sparse_or_on_dense_codes_scores_what_is_written(m, says):
    says(m, CHAIN)
    ssae = StepSAE(m)
    codes = ssae.transform([(f"q{i}", f"{i} + {i} = {2 * i}") for i in range(24)])
    y, groups = [float(i % 3 > 0) for i in range(24)], list(range(24))
    for rows in (codes.matrix, codes.z.numpy()):
        probe = sl.StepProbe().fit(rows, y, groups)
        watched = watch_steps(m, "q", ssae, probe, live=False)
        for step in watched.steps:
            z = ssae.transform([("q\n" + watched.text[: step.start], step.text)])
            assert step.score == pytest.approx(probe.predict_proba(z.matrix)[0, 1])
            assert step.score == pytest.approx(probe.predict_proba(z.z.numpy())[0, 1])


@pytest.mark.parametrize("backend", ["torch", "nnsight"])
def test_an_interrupt_leaves_the_model_as_it_was(backend):
    m = tiny.live("llama", backend)
    ssae = StepSAE(m, tuning="lora")
    before = {name: value.clone() for name, value in m.module.state_dict().items()}
    logits, hooks = m.run("a b").logits, _hooks(m.module)
    heard = []

    def interrupt(piece):
        heard.append(piece)
        if len(heard) == 5:
            raise KeyboardInterrupt

    original = type(m).generate
    with m.attach(sl.ablate("blocks.0.hook_mlp_out")):
        m.generate = lambda prompt, n, on_text: original(m, prompt, n, on_text=lambda t: (on_text(t), interrupt(t)))
        watched = watch_steps(m, "one two", ssae, max_new_tokens=40, live=False)
    assert watched.ended == "interrupt" and watched.text == "".join(heard)
    assert _hooks(m.module) == hooks and torch.equal(m.run("a b").logits, logits)
    assert all(torch.equal(value, before[name]) for name, value in m.module.state_dict().items())


def _hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_a_real_generation_is_the_same_watched_or_not(m):
    plain = m.generate("one two", 30, do_sample=True, seed=3)
    watched = watch_steps(m, "one two", StepSAE(m), max_new_tokens=30, do_sample=True, seed=3, live=False)
    assert watched.text == plain and watched.ended == "end"


def test_what_cannot_be_watched(m, says):
    says(m, CHAIN)
    ssae = StepSAE(m)
    for wrong in ({"question": " "}, {"on_low": "halt"}, {"probe": "good"}):
        with pytest.raises(InputError):
            watch_steps(m, **{"question": "q", "ssae": ssae, "live": False} | wrong)


def test_codes_go_into_other_problems(m):
    ssae = StepSAE(m)
    steps = [("What is 2 plus 3?\n", "2 + 3 = 5"), ("What is 7 plus 1?\n", "7 + 1 = 8")]
    found = swap_steps(ssae, steps, ["Name a bird.\n", "Name a fish.\n", steps[1][0]], 5)
    z = ssae.transform(steps).z
    assert found.texts[1][0] == ssae.generate(z[1:], ["Name a bird.\n"], 5)[0]
    assert found.texts[1][2] == found.own[1] == ssae.reconstruct(steps, 5)[1]
    assert found.plain == ssae.generate(None, found.contexts, 5)
    assert found.to_frame().shape == (6, 5) and "Name a bird" in found._repr_html_()
    assert swap_steps(ssae, steps[:1], "Name a bird.\n", 5).texts == [[found.texts[0][0]]]
    for wrong in (([], ["x"]), (steps, [])):
        with pytest.raises(InputError):
            swap_steps(ssae, *wrong)

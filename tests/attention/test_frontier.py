"""Tasks whose answer is known, scores by probability, frontiers of cost, and what is seen of the masks."""

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.attention.frontier import TaskFrontier, frontier, score
from sparselens.attention.tasks import TASKS, LongText, long_context
from sparselens.errors import InputError
from tests import tiny


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def short(n: int = 60) -> LongText:
    return LongText("niah", "ab cd" * (n // 5), " yes", ((0, 5),))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_fits_and_its_needles_hold_the_answer(task):
    tok = tiny.tokenizer()
    for text in long_context(tok, task, tokens=3000, n=2):
        n = len(tok(text.prompt)["input_ids"])
        assert 2000 < n <= 3000
        told = " ".join(text.prompt[a:b] for a, b in text.needles)
        assert text.needles and text.answer.startswith(" ")
        words = text.answer.replace(",", "").split()
        if task == "story_filtering":
            assert all(f"Chapter {w}." in told for w in words if w.isdigit())
        else:
            assert all(w in told for w in words)
            assert task == "cwe" or not all(w in text.without_needles().prompt for w in words)


def test_the_same_seed_makes_the_same_texts():
    tok = tiny.tokenizer()
    make = lambda seed: long_context(tok, ["niah", "vt"], tokens=1500, n=1, seed=seed)  # noqa: E731
    assert make(0) == make(0) and make(0) != make(1)


def test_tasks_that_cannot_be_made_are_refused():
    with pytest.raises(InputError, match="niah"):
        long_context(tiny.tokenizer(), "nia")
    with pytest.raises(InputError, match="shortest"):
        long_context(tiny.tokenizer(), "niah", tokens=20)


def test_a_score_is_the_probability_of_the_answer(m):
    text = short()
    found = score(m, text)
    prompt, answer = (m.tokenizer(t)["input_ids"] for t in (text.prompt, text.answer))
    logits = m.run(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    wanted = [float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(answer)]
    assert found.logprob == pytest.approx(np.mean(wanted), abs=1e-5) and found.tokens == len(prompt)
    assert score(m, text, sl.Quest(1.0)).logprob == pytest.approx(found.logprob, abs=1e-4)
    half = score(m, text, sl.SinkWindow(0.5))
    assert half.density == pytest.approx(0.5, abs=0.05) and half.logprob != pytest.approx(found.logprob, abs=1e-4)


def test_a_method_for_prompts_leaves_the_answer_dense(m):
    text, seen = short(), []

    class Watch(sl.SinkWindow):
        def prefill(self, layer):
            seen.append(layer.allowed.n_q)
            return super().prefill(layer)

    found = score(m, text, Watch(0.5, phase="prefill"))
    assert set(seen) == {found.tokens}
    seen.clear()
    score(m, text, Watch(0.5, phase="prefill"), read=True)
    assert set(seen) == {found.tokens + len(m.tokenizer(text.answer)["input_ids"])}


def test_a_frontier_by_method_budget_and_length(m):
    makers = {"Quest": lambda b: sl.Quest(b, page=4), "window": lambda b: sl.SinkWindow(b, phase="prefill")}
    found = frontier(m, makers, {30: [short(30)], 60: [short(60), short(55)]}, (0.5, 0.25))
    frame = found.to_frame()
    assert len(frame) == 5 * 2 and set(frame["n"]) == {1, 2}
    long = frame[frame["length"] == 60].set_index("method")
    dense, quest, window = (long.loc[[n], ["flops", "bytes"]].to_numpy() for n in ("dense", "Quest", "window"))
    assert (quest[:, 1] < dense[0, 1]).all() and (quest[:, 0] == dense[0, 0]).all()
    assert (window[:, 0] < dense[0, 0]).all() and (window[:, 1] == dense[0, 1]).all()
    best = found.pareto("flops")
    for _, group in best.groupby("length"):
        assert group["flops"].is_monotonic_increasing and group["logprob"].is_monotonic_increasing
    cheapest = frame.groupby("length")["flops"].min()
    assert all(best.groupby("length")["flops"].min() == cheapest)
    assert len(found.worst_task()) == 8
    assert len(found.plot().lines) == 6 and len(found.plot(x="bytes", y="top1", task="niah").lines) == 6
    assert "<table" in found._repr_html_()
    for wrong in (dict(x="time"), dict(y="loss"), dict(task="vt")):
        with pytest.raises(InputError, match="unknown"):
            found.plot(**wrong)
    with pytest.raises(InputError, match="nothing to score"):
        frontier(m, {}, [short()])


def test_the_density_at_which_methods_err_alike():
    row = {"model": "m", "phase": "prefill", "task": "niah", "tokens": 9, "length": 9, "flops": 1.0, "bytes": 1.0}
    scores = [("dense", 1.0, -0.5, 0.9), ("a", 0.5, -0.6, 0.8), ("a", 0.25, -0.7, 0.7), ("a", 0.1, -2.0, 0.1),
              ("b", 0.5, -0.9, 0.9)]
    rows = tuple(row | {"method": m, "budget": d, "density": d, "logprob": p, "top1": t} for m, d, p, t in scores)
    found = TaskFrontier(rows)
    least = found.equal_error(0.2).set_index("method")["density"]  # 0.82 of dense, and 0.67
    assert least["a"] == 0.25 and np.isnan(least["b"])
    assert found.equal_error(0.4).set_index("method").loc["b", "density"] == 0.5
    assert found.equal_error(0.15, "top1").set_index("method")["density"].to_dict() == {"a": 0.5, "b": 0.5}
    for wrong in (dict(error=1.5), dict(score="loss")):
        with pytest.raises(InputError):
            found.equal_error(**wrong)


def test_masks_are_shares_of_the_pattern(m):
    text = "the quick brown fox jumps over the lazy dog"
    method = sl.BlockSparse(0.4, block=4)
    recorder = method.recorded()
    with m.attach(recorder):
        out = m.run(text)
    seen = method.masks(m, text, tile=3)
    pattern, allowed = recorder.segments[1][0].pattern, recorder.layers[1].allowed
    np.testing.assert_allclose(seen.kept[1], pattern.tiles(allowed, 3)[0].numpy(), atol=1e-6)
    assert seen.density[1].mean() == pytest.approx(pattern.density(allowed), abs=1e-6)
    weights = torch.softmax(m.capture(text, "blocks.0.attn.hook_attn_scores")["blocks.0.attn.hook_attn_scores"], -1)[0]
    lost = (weights * ~recorder.segments[0][0].pattern.rows(recorder.layers[0].allowed)[0]).sum(-1)
    np.testing.assert_allclose(seen.lost[0, :, 0], lost[:, :3].mean(-1), atol=1e-5)
    assert seen.tokens == [m.tokenizer.decode([i]) for i in out.tokens[0].tolist()]
    assert (sl.TopKOracle(1.0).masks(m, text).lost < 1e-6).all()
    exact = method.masks(m, text, tile=1, lost=False)
    assert exact.lost is None and exact.kept_of(0, 4).shape == (3, 4)
    assert (exact.kept_of(0, 4) == 1).all() and "lost" in seen.to_frame() and len(seen.to_frame()) == 12
    with pytest.raises(InputError, match="at or before"):
        exact.kept_of(5, 9, 4)


@pytest.mark.parametrize("tile", [1, 4])
def test_what_is_kept_and_lost_of_a_needle(m, tile):
    text, method = "the quick brown fox jumps over the lazy dog", sl.SinkWindow(0.4)
    recorder = method.recorded()
    with m.attach(recorder):
        m.run(text)
    seen = method.masks(m, text, tile=tile, marks={"fox": [(3, 5), (7, 8)], "dog": (8, 9)})
    name = "blocks.0.attn.hook_attn_scores"
    weights = torch.softmax(m.capture(text, name)[name], -1)[0]
    layer = recorder.layers[0]
    keep, may = recorder.segments[0][0].pattern.rows(layer.allowed)[0], layer.allowed.rows()[0]
    n = keep.shape[-1]
    for mark, at in (("fox", [3, 4, 7]), ("dog", [8])):
        for i, start in enumerate(range(0, n, tile)):
            rows = slice(start, min(start + tile, n))
            there = max(int(may[:, rows][..., at].sum()), 1)
            share = keep[:, rows][..., at].sum((1, 2)) / there
            np.testing.assert_allclose(seen.marks[mark].kept[0, :, i], share, atol=1e-6)
            gone = (weights * ~keep)[:, rows][..., at].sum(-1).mean(-1)
            np.testing.assert_allclose(seen.marks[mark].lost[0, :, i], gone, atol=1e-6)
    view = seen.view()
    assert list(view.marks) == ["fox", "dog"] and "“fox”" in view.summary() and "fox lost" in seen.to_frame()
    with pytest.raises(InputError, match="do not lie in a text"):
        method.masks(m, text, marks={"fox": (3, 99)})


def test_the_tokens_of_needles(m):
    text = long_context(m.tokenizer, "vt", tokens=450, n=1)[0]
    tokens, spans = m.tokenizer(text.prompt)["input_ids"], text.needle_tokens(m.tokenizer)
    assert len(spans) == len(text.needles)
    for (start, stop), (first, last) in zip(spans, text.needles, strict=True):
        assert text.prompt[first:last].strip() in m.tokenizer.decode(tokens[start:stop])


def test_masks_of_what_was_decoded_from_a_prompt(m):
    seen = sl.SnapKV(0.3, prompt=10).masks(m, "the quick brown fox jumps over the lazy dog", tile=1)
    may = np.tri(len(seen.tokens))
    np.testing.assert_array_equal(seen.kept[0, 0, :10], may[:10])  # the prompt is dense
    assert (seen.kept[:, :, 10:, :10].sum(-1) == 3).all()
    np.testing.assert_array_equal(seen.kept[0, 0, 10:, 10:], may[10:, 10:])


def test_two_methods_side_by_side(m):
    text = "the quick brown fox jumps over the lazy dog"
    first, second = (make(0.4).masks(m, text) for make in (sl.SinkWindow, sl.TopKOracle))
    view = first.view(second)
    np.testing.assert_array_equal(view.other, second.kept)
    assert "in both" in view.summary() and "<img" in first._repr_html_()
    with pytest.raises(InputError, match="same text"):
        first.view(sl.TopKOracle(0.4).masks(m, "another text"))
    with pytest.raises(InputError, match="one text"):
        sl.SinkWindow(0.4).masks(m, [text, text])

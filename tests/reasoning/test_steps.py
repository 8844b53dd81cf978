"""Chains cut into steps: the rules, exact places, tokens."""

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning.steps import step_of_tokens
from tests import tiny

GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
NUMINA = r"""We solve the following system:
$$x + y = 3.

X - y = 1$$
by adding both lines.
Adding gives 2x = 4. So x is 2.
1. First, y = 3.5 - 2.5. Done?
2. Check! It holds
and we are finished."""
CODE = "def f(x):\n    y = x\n\n    return y  \n"


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(("text", "how"), [(GSM8K, "lines"), (NUMINA, "math"), (CODE, "code"), ("a. b. c", "lines"),
                                           ("因此，x=2。所以y=1。\n答案3", "math")])
def test_no_text_is_lost_or_doubled(text, how):
    steps = sl.split_steps(text, how)
    assert squeezed("".join(steps.texts)) == squeezed(text)
    assert all(text[start:end] == step for (start, end), step in zip(steps.spans, steps.texts, strict=True))
    assert all(a[1] <= b[0] for a, b in zip(steps.spans, steps.spans[1:], strict=False))


def test_lines_with_the_last_two_merged():
    assert sl.split_steps(GSM8K).texts == [
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.", "She sold 48+24 = <<48+24=72>>72 clips.\n#### 72"]
    assert len(sl.split_steps(GSM8K, merge_last=False)) == 3


def test_one_line_is_cut_at_sentences():
    assert sl.split_steps("He has 3.5 cups. She has 2. Together 5.5").texts == [
        "He has 3.5 cups.", "She has 2.", "Together 5.5"]


def test_math_keeps_blocks_and_glues():
    assert sl.split_steps(NUMINA, "math").texts == [
        "We solve the following system:\n$$x + y = 3.\n\nX - y = 1$$\nby adding both lines.", "Adding gives 2x = 4.",
        "So x is 2.", "1. First, y = 3.5 - 2.5.", "Done?", "2. Check!", "It holds\nand we are finished."]
    assert sl.split_steps("Consider this:\n- a list\nThus\nTherefore x = 1", "math").texts == [
        "Consider this:\n- a list", "Thus\nTherefore x = 1"]


def test_code_keeps_indentation():
    assert sl.split_steps(CODE, "code").texts == ["def f(x):", "    y = x", "    return y"]


def test_own_functions():
    assert sl.split_steps("a; b; a", lambda text: text.split("; ")).spans == [(0, 1), (3, 4), (6, 7)]
    assert sl.split_steps("abc", lambda text: [(0, 1), (2, 3)]).texts == ["a", "c"]
    for pieces in (["c", "a"], ["x"], [""], [(2, 9)]):
        with pytest.raises(InputError, match="in order"):
            sl.split_steps("abc", lambda text, pieces=pieces: pieces)


@pytest.mark.parametrize("n", [0, 1, 2, 500])
def test_any_number_of_steps(n):
    text = "\n".join(f"{i} + 1 = {i + 1}" for i in range(n))
    assert len(sl.split_steps(text)) == max(n - 1, min(n, 1))
    assert len(sl.split_steps(text, merge_last=False)) == n
    assert len(sl.split_steps(" \n ", "math")) == 0


def test_what_is_wrong_is_named():
    with pytest.raises(InputError, match="Closest: lines"):
        sl.split_steps("a", "line")
    with pytest.raises(InputError, match="float"):
        sl.split_steps(float("nan"))


def test_steps_are_a_sequence_with_a_frame():
    steps = sl.split_steps("ab\ncd", merge_last=False)
    assert (steps[1], steps[-1].start, [s.text for s in steps[:1]]) == (("cd", 3, 5), 3, ["ab"])
    assert steps.to_frame().to_dict("list") == {"step": [0, 1], "start": [0, 3], "end": [2, 5], "text": ["ab", "cd"]}


def test_tokens_go_to_the_step_they_end_in():
    steps = sl.split_steps("the hen\n\n an inn", merge_last=False)
    coded = steps.align(tiny.tokenizer(), before="Q? the\n")
    ids, step, _ = coded
    pieces = [tiny.tokenizer().decode([i]) for i in ids]
    assert "".join(pieces) == "Q? the\nthe hen\n\n an inn"
    for number, text in enumerate(steps.texts):
        own = [p for p, s in zip(pieces, step, strict=True) if s == number]
        assert "".join(own).strip() == text
    assert (step[:5] == -1).all()
    first, end = coded.range(1)
    assert set(step[first:end]) == {1} and not (step[end:] == 1).any()
    assert coded.range(7) == (0, 0)


def test_a_token_over_a_border_goes_to_one_step():
    assert step_of_tokens("ab cd", [(0, 2), (3, 5)], [(0, 1), (1, 4), (4, 5), (0, 0)]).tolist() == [0, 1, 1, -1]
    assert np.array_equal(step_of_tokens("a b", [(0, 1)], [(0, 1), (1, 3)]), [0, -1])


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(InputError, match="fast tokenizer"):
        sl.split_steps("a").align(object())


def test_letters_of_several_tokens_and_broken_ones():
    text = "东京有3人。\n👩\u200d🚀 \ud800 له\nend"
    steps = sl.split_steps(text, merge_last=False)
    coded = steps.align(tiny.tokenizer(), before="问题\n")
    assert [int((coded.step == i).sum()) > 0 for i in range(3)] == [True] * 3
    whole = "问题\n" + text
    for i, said in enumerate(steps.texts):
        own = [coded.offsets[t] for t in np.flatnonzero(coded.step == i)]
        assert whole[own[0][0] : own[-1][1]].strip() == said

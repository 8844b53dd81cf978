"""Patterns of tokens that make a feature fire: recovered where they are planted, judged on other steps."""

import random

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import StepDataset, n2g
from sparselens.reasoning.patterns import matches
from tests import tiny
from tests.views.allowed import check

TOKENIZER = tiny.tokenizer()


class Speaks:
    """What `n2g` needs of a live model for a function: its tokenizer."""

    tokenizer = TOKENIZER


def planted(sequences, _origin):
    """Feature 0 fires on "a?b" (7 with any one between), feature 1 on 20 21; feature 2 never."""
    out = np.zeros((len(sequences), 3))
    for i, ids in enumerate(sequences):
        out[i, 0] = 2.0 * any(ids[j] == 7 and ids[j + 2] == 8 for j in range(len(ids) - 2))
        out[i, 1] = 3.0 * any(ids[j : j + 2] == [20, 21] for j in range(len(ids) - 1))
    return out


def steps(n=80, seed=0):
    draw = random.Random(seed)
    out = []
    for i in range(n):
        ids = [draw.randrange(30, 90) for _ in range(draw.randint(4, 9))]
        at = draw.randrange(len(ids) + 1)
        ids[at:at] = [[7, draw.randrange(30, 90), 8], [20, 21], []][i % 3]
        out.append(ids)
    return out


def test_planted_patterns_are_found_and_hold_on_other_steps():
    found = n2g(planted, steps(), Speaks, features=3)
    assert found.patterns == {1: [(20, 21)], 0: [(7, None, 8)]}
    scores = found.evaluate(steps(seed=1))
    assert (scores.precision, scores.recall, scores.f1) == (1, 1, 1) and scores.share == pytest.approx(1 / 3, abs=0.02)
    assert scores.always == pytest.approx(2 * scores.share / (1 + scores.share))
    assert "of 2 features" in check(found._repr_html_()).text and "F1" in check(scores._repr_html_()).text
    assert len(found.to_frame()) == 2 and scores.to_frame()["f1"].tolist() == [1, 1] and "F1 1.000" in repr(scores)


def test_matching_against_every_placement():
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(3) for _ in range(draw.randint(1, 7))]
        pattern = tuple(draw.choice([0, 1, 2, None]) for _ in range(draw.randint(1, 4)))
        brute = any(all(t is None or ids[at + i] == t for i, t in enumerate(pattern))
                    for at in range(len(ids)) if at + len(pattern) <= len(ids))
        assert matches(pattern, ids) is brute


def test_wrong_patterns_score_badly():
    found = n2g(planted, steps(), Speaks, features=[0, 2])
    assert found.patterns[2] == []
    wrong = type(found)({0: [(99,)], 1: [(30,)]}, planted, TOKENIZER).evaluate(steps(seed=1))
    assert wrong.by_feature[0][:3] == (0, 0, 0) and wrong.f1 < 0.3


def test_a_token_dictionary_and_a_step_dictionary():
    m = tiny.live()
    sae = sl.SAE("topk", d_in=32, d_sae=40, k=2, site="blocks.1.hook_resid_post")
    texts = ["the hen in an inn", "a hen", "an inn then", "the end"]
    found = n2g(sae, texts, m, features=3)
    assert len(found.patterns) == 3 and found.evaluate(texts).recall > 0.3
    assert all(isinstance(text, str) for text in found.to_frame()["pattern"])
    ssae = sl.StepSAE(m)
    data = StepDataset.from_pairs([("a hen", "in the inn"), ("Q", "the end is an end")], TOKENIZER)
    found = n2g(ssae, data, features=2)
    scores = found.evaluate(data)
    assert len(found.patterns) == 2 and scores.n_steps == 2
    with pytest.raises(InputError, match="StepDataset"):
        n2g(ssae, texts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"data": []}, "no steps"), ({"data": [[]]}, "step 0"), ({"ratio": 0.0}, "ratio"), ({"m": None}, "live model")],
)
def test_what_is_wrong_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        n2g(**{"source": planted, "data": steps(), "m": Speaks, **arguments})

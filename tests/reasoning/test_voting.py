"""Votes: without a probe the majority, with one the better chain."""

import random
from collections import Counter

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.reasoning import Trace, Traces, compare_votes


def test_tau_zero_is_the_majority():
    draw = random.Random(0)
    for _ in range(1000):
        answers = [draw.choice(["1", "2", "3", "10", None]) for _ in range(draw.randint(1, 9))]
        p = [[draw.random() for _ in range(draw.randint(1, 5))] for _ in answers]
        said = [a for a in answers if a is not None]
        most = Counter(said).most_common(1)[0][0] if said else None  # of equal counts the first to come
        assert sl.probe_vote(answers, p, 0.0).answer == most


def test_scores_by_hand():
    vote = sl.probe_vote(["4", "5", "4"], [[0.25, 1.0], [0.9], [0.0]], 0.5)
    assert vote.scores == pytest.approx({"4": 0.75, "5": 0.9**0.5}) and vote.answer == "5"
    assert sl.probe_vote(["4", "5", "4"], [[0.25], [0.9], [0.0]], 0.0).answer == "4"
    assert sl.probe_vote([None], [[0.5]]).answer is None


def chains(n=40):
    """A good and two bad models; the bad ones often agree on a wrong answer."""
    draw, out = random.Random(1), []
    for i in range(n):
        for model, right in (("good", draw.random() < 0.8), ("bad", i % 3 == 0), ("worse", i % 3 == 0)):
            answer = 7 if right else 8
            out.append(Trace(f"p{i}", f"x\n#### {answer}", [(0, 1)], [None], verdict=right, model=model))
    return Traces(out)


def test_a_probe_that_knows_beats_the_majority():
    traces = chains()
    p = [[0.9 if t.verdict else 0.1] for t in traces]
    votes = compare_votes(traces, p, tau=2.0)
    frame = votes.to_frame().set_index("way")
    assert frame.loc["probe", "accuracy"] == frame.loc["perfect choice", "accuracy"] > frame.loc["majority", "accuracy"]
    single = "best single model (good)"
    assert frame.loc[single, "accuracy"] == pytest.approx(np.mean(traces.by("good").verdicts))
    gain = votes.against["majority"]
    assert gain.value == pytest.approx(frame.loc["probe", "accuracy"] - frame.loc["majority", "accuracy"])
    assert 0 < gain.low <= gain.value <= gain.high
    flat = compare_votes(traces, p, tau=0.0)
    assert np.array_equal(flat.right["probe"], flat.right["majority"]) and flat.against["majority"] == (0, 0, 0)
    tied = Traces([Trace("p", f"#### {a}", [(0, 6)], [None], verdict=a == 1, model=str(a)) for a in (2, 1)])
    assert compare_votes(tied, [[0.5]] * 2).right["majority"].tolist() == [0.5]
    assert compare_votes(tied[::-1], [[0.5]] * 2).right["majority"].tolist() == [0.5]
    assert "40 problems" in repr(flat) and compare_votes(traces, p, best="bad").to_frame()["way"][2].endswith("(bad)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((["1"], []), "1 answers"), ((["1"], [[]]), "chain 0"), ((["1"], [[1.5]]), "probabilities"),
     ((["1"], [[float("nan")]]), "probabilities"), ((["1"], [[0.5]], -1.0), "tau")],
)
def test_what_is_wrong_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        sl.probe_vote(*arguments)


def test_votes_need_verdicts_and_known_models():
    unknown = Traces([Trace("p", "#### 1", [(0, 6)], [None], model="m")])
    with pytest.raises(InputError, match="no verdict"):
        compare_votes(unknown, [[0.5]])
    with pytest.raises(InputError, match="Closest: good"):
        compare_votes(chains(), [[0.5]] * 120, best="god")
    with pytest.raises(InputError, match="probabilities of 1"):
        compare_votes(chains(), [[0.5]])

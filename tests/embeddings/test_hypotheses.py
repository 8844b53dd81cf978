"""`hypothesize`, `hypotheses` and `verify_hypotheses` on planted differences, with oracles for the language models."""

import json

import numpy as np
import pytest

import sparselens as sl
from sparselens.embeddings import KeywordJudge
from sparselens.embeddings.proposals import hypotheses
from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of


def corpus(seed=0, n=400, d=120):
    """Texts of one word; features 0 and 1 follow y, all others are noise."""
    random = np.random.default_rng(seed)
    y = random.random(n) < 0.5
    rate = np.tile(random.beta(1, 6, d), (n, 1))
    rate[:, 0], rate[:, 1] = np.where(y, 0.6, 0.15), np.where(y, 0.1, 0.5)
    values = (random.random((n, d)) < rate) * (0.5 + random.random((n, d)))
    words = [("zero" if v[0] else "one" if v[1] else "other") for v in values]
    return embedding_of(values, words=words), y


@pytest.mark.parametrize("method", ["lasso", "correlation", "separation"])
def test_planted_features_hold_on_held_out_texts(method):
    emb, y = corpus()
    found = sl.hypothesize(emb, y, select=method, n=10)
    sure = set(found.significant().feature)
    assert {0, 1} <= sure
    assert len(sure - {0, 1}) <= 1
    frame = found.to_frame().set_index("feature")
    assert frame.separation[0] > 0.2
    assert frame.separation[1] < -0.2
    assert (frame.chosen_by[0] > 0) and (frame.chosen_by[1] < 0)
    assert frame.p_bonferroni[0] == pytest.approx(min(1, 10 * frame.p_value[0]))
    assert found.joint.value > 0.75
    assert not set(found.train) & set(found.test)
    assert len(found.test) == 120
    assert "fires on: 'zero'" in frame.description[0]
    assert set(frame.labelled_by) == {"top tokens by activation-weighted frequency ratio"}


def test_noise_yields_nothing():
    emb, _ = corpus()
    hits = 0
    for seed in range(5):
        y = np.random.default_rng(100 + seed).random(len(emb)) < 0.5
        found = sl.hypothesize(emb, y, seed=seed)
        hits += len(found.significant())
        assert found.predictable.low < 0.5
        assert "beyond chance" in repr(found)
    assert hits <= 1
    # on the texts that they were chosen on, the same features look real
    chosen_on = emb.subset(found.train)
    again = sl.diff(chosen_on.subset(y[found.train]), chosen_on.subset(~y[found.train])).to_frame().set_index("feature")
    assert again.p_value.loc[found.frame.feature].median() < 0.1
    assert found.frame.p_value.median() > 0.2


def test_numbers_and_labels():
    emb, y = corpus()
    stars = 2.0 * y + np.random.default_rng(0).normal(size=len(emb))
    found = sl.hypothesize(emb, stars, n=5, labels={0: "about zero"})
    assert {0, 1} <= set(found.significant().feature)
    assert found.frame.set_index("feature").description[0] == "about zero"
    assert found.labelled_by.startswith("given labels for 1")
    assert "R²" in repr(found)
    assert found.plot() is not None
    assert "about zero" in found._repr_html_()


def test_a_feature_that_always_fires_is_held_against_its_median():
    random = np.random.default_rng(0)
    y = np.arange(200) % 2 == 0
    values = np.ones((200, 10)) * (random.random((200, 10)) < 0.1)
    values[:, 3] = 1 + y + 0.3 * random.random(200)
    found = sl.hypothesize(embedding_of(values), y, n=1)
    row = found.frame.iloc[0]
    assert row.feature == 3
    assert row.limit > 1
    assert row.separation > 0.9


def test_groups_stay_together():
    emb, y = corpus()
    groups = np.arange(len(emb)) // 5
    found = sl.hypothesize(emb, y, groups=groups)
    assert not set(groups[found.train]) & set(groups[found.test])
    assert "one group" in repr(found)


def test_length_is_told():
    random = np.random.default_rng(0)
    y = np.arange(200) % 2 == 0
    lengths = np.where(y, 30, 10) + random.integers(0, 5, 200)
    found = sl.hypothesize(embedding_of(random.random((200, 20)) < 0.3, n_tokens=lengths), y, n=3)
    assert found.by_length.value == 1
    assert "from length alone" in repr(found)


def test_what_hypothesize_refuses():
    emb, y = corpus(n=60)
    for settings, says in (({"n": 0}, "n=0"), ({"select": "magic"}, "unknown"), ({"holdout": 1.0}, "holdout"),
                           ({"alpha": 2.0}, "alpha")):
        with pytest.raises(InputError, match=says):
            sl.hypothesize(emb, y, **settings)
    with pytest.raises(InputError, match="5 values"):
        sl.hypothesize(emb, y[:5])


@pytest.fixture(scope="module")
def found():
    emb, y = corpus()
    return sl.diff(emb.subset(y), emb.subset(~y), names=("yes", "no"))


class Analyst:
    """Answers with given text, and keeps the prompts."""

    name = "analyst"

    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []

    def __call__(self, prompts):
        self.prompts += prompts
        return [self.answers.pop(0) for _ in prompts]


def test_without_a_labeler_features_are_hypotheses(found):
    got = hypotheses(found)
    frame = got.to_frame()
    assert [f[0] for f in frame.features[:2]] == [0, 1] or [f[0] for f in frame.features[:2]] == [1, 0]
    assert frame.set_index("dataset").hypothesis["yes"].startswith("fires on: 'zero'")
    assert set(frame.labelled_by) == {found.method}
    assert got.plot() is not None


def test_answers_are_checked_against_the_features(found):
    answer = "Sure! " + json.dumps([
        {"hypothesis": "This text says\n zero", "dataset": "YES", "features": [0, 0, 999], "confidence": 0.9,
         "examples": ["a", "b", "c", "d"], "percentage_difference": 99},
        {"hypothesis": "This text says one", "dataset": "yes", "features": ["1"]},  # the wrong set
        {"hypothesis": "This text rhymes", "dataset": "no", "features": [777]},  # no feature behind it
        {"hypothesis": "This text is odd", "features": []},
        {"note": "no hypothesis"},
    ])
    analyst = Analyst(answer)
    got = found.hypotheses(analyst)
    frame = got.to_frame()
    assert frame.hypothesis.tolist() == ["This text says zero", "This text says one"]
    assert frame.dataset.tolist() == ["yes", "no"]
    differences = found.to_frame().set_index("feature").difference
    assert frame.difference.tolist() == pytest.approx([differences[0], -differences[1]])
    assert frame.features.tolist() == [[0], [1]]
    assert frame.examples[0] == ["a", "b", "c"]
    assert np.isnan(frame.confidence[1])
    assert set(frame.labelled_by) == {"analyst"}
    assert got.cost.stages["summarise"]["prompts"] == 1
    prompt = analyst.prompts[0]
    assert "Feature 0: fires on: 'zero'" in prompt
    assert "With it: <<zero>>" in prompt
    assert "Without it: one" in prompt or "Without it: other" in prompt


def test_many_features_are_summarised_in_batches(found, monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.proposals._DIRECT", 1)
    monkeypatch.setattr("sparselens.embeddings.proposals._BATCH", 1)
    one = '[{"hypothesis": "This text is %s", "features": [%d], "dataset": "%s"}]'
    n = len(found.distinct().significant())
    features = found.distinct().significant().feature.tolist()
    analyst = Analyst(*(one % ("x", f, "yes") for f in features), one % ("merged", 0, "yes"))
    got = hypotheses(found, analyst)
    assert got.statements == ["This text is merged"]
    assert len(analyst.prompts) == n + 1
    assert analyst.prompts[-1].count("This text is x") == n


def test_useless_answers(found):
    for answer in ("I cannot help with that.", '{"a": 1}'):
        with pytest.raises(InputError, match="no JSON list"):
            hypotheses(found, Analyst(answer))
    with pytest.raises(InputError, match="int"):
        hypotheses(found, Analyst(3))
    assert len(hypotheses(found, Analyst("[]"))) == 0
    same = sl.diff(found.a, found.a)
    analyst = Analyst()
    assert len(hypotheses(same, analyst)) == 0
    assert not analyst.prompts


def test_verified_differences_by_hand():
    sets = {"a": embedding_of(np.zeros((4, 2)), words=["cat", "cat", "dog", "cat"]),
            "b": embedding_of(np.zeros((4, 2)), words=["cat", "dog", "dog", "dog"]),
            "c": embedding_of(np.zeros((4, 2)), words=["dog", "cat", "cat", "dog"])}
    asked = []
    keywords = KeywordJudge({"cats": "cat", "dogs": "dog", "birds": "bird"})

    def judge(questions):
        asked.extend(questions)
        return keywords(questions)

    got = sl.verify_hypotheses(["cats", "dogs", "birds"], sets, judge, aligned=True)
    frame = got.to_frame().set_index("hypothesis")
    assert frame["freq[a]"].tolist() == [0.75, 0.25, 0]
    assert frame["freq[b]"].tolist() == [0.25, 0.75, 0]
    assert frame.difference.tolist() == [0.75 - 0.5, 0.25 - 0.75, 0]
    assert frame.valid.tolist() == [True, False, False]
    assert got.rate == pytest.approx(1 / 3)
    assert got.mean_difference == pytest.approx(-0.25 / 3)
    # rows with a hypothesis true of a only: row 0 cats (b too: no), row 1 (c too), row 2 dogs (b too), row 3 cats
    assert got.coverage == {"a": 0.25}
    assert got.documents(0, "a").tolist() == [0, 1, 3]
    assert len(asked) == 36
    assert not any("'a'" in q for q in asked)
    assert [q.text for q in asked[:12]] != [t for e in sets.values() for t in e.documents.text]  # not set by set
    assert "apart: verify 36 prompts" in repr(got)
    assert got.plot() is not None
    other = sl.verify_hypotheses("dogs", sets, judge, target="b")
    assert other.frame.difference[0] == pytest.approx(0.25)
    assert other.coverage is None


def test_an_oracle_confirms_what_is_planted_and_a_constant_judge_nothing(found):
    emb, y = corpus(seed=1)
    fresh = {"yes": emb.subset(y), "no": emb.subset(~y)}
    planted = hypotheses(found, n=2)
    got = sl.verify_hypotheses(planted, fresh, KeywordJudge())
    assert got.rate == 1
    assert (got.frame.difference > 0.2).all()
    assert (got.frame.q_value < 1e-4).all()
    np.testing.assert_allclose(got.frame.claimed, planted.frame.difference)
    always = sl.verify_hypotheses(planted, fresh, lambda questions: ["YES"] * len(questions))
    assert (always.rate, always.mean_difference) == (0, 0)
    odd = sl.verify_hypotheses(planted, fresh, lambda questions: ["hm"] * len(questions))
    assert odd.unclear == 2 * len(emb)
    assert "neither yes nor no" in repr(odd)


def test_supervised_hypotheses_can_be_verified():
    emb, y = corpus()
    found = sl.hypothesize(emb, y, n=2)
    rest = {"yes": emb.subset(found.test[y[found.test]]), "no": emb.subset(found.test[~y[found.test]])}
    got = sl.verify_hypotheses(found, rest, KeywordJudge()).to_frame()
    signs = np.sign(found.frame.separation)
    assert (np.sign(got.difference) == signs).all()


def test_what_verify_refuses(found):
    sets = {"yes": found.a, "no": found.b}
    judge = KeywordJudge({"x": "x"})
    for arguments, settings, says in (
        (("x", {"yes": found.a}), {}, "two sets"), ((("x"), sets), {"target": "ye"}, "Closest: yes"),
        (([], sets), {}, "at least one"), (([3], sets), {}, "at least one"),
        (("x", sets), {"aligned": True}, "same rows"),
        ((hypotheses(found), {"left": found.a, "right": found.b}), {}, "Name the sets"),
    ):
        with pytest.raises(InputError, match=says):
            sl.verify_hypotheses(*arguments, judge, **settings)
    got = sl.verify_hypotheses("x", sets, judge)
    for arguments in ((0, "nobody"), (1, "yes")):
        with pytest.raises(InputError, match="there is no"):
            got.documents(*arguments)


def test_hostile_hypotheses_and_texts_are_escaped(found):
    answer = json.dumps([{"hypothesis": "This text <script>alert(1)</script>", "features": [0], "dataset": "yes"}])
    got = hypotheses(found, Analyst(answer))
    checked = sl.verify_hypotheses(got, {"yes": found.a, "no": found.b}, lambda q: [1] * len(q))
    for view in (got, checked):
        assert "<script>" not in view._repr_html_()
        assert "&lt;script&gt;" in view._repr_html_()

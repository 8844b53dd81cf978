"""Labels: what a labeler is shown, what a score means, the relabelling of differences, and the cost."""

import re
from collections import Counter

import numpy as np
import pytest

import sparselens as sl
from sparselens.embeddings import Cost, KeywordJudge, Usage
from sparselens.errors import InputError
from tests.embeddings.synthetic import embedding_of

WORDS = ["sir", "dog", "cat", "bird", "<script>"]


@pytest.fixture(scope="module")
def emb():
    """60 texts of one word; feature f fires where the f-th word stands, feature 5 in one text, feature 6 in all."""
    words = [WORDS[i % 5] for i in range(60)]
    values = np.zeros((60, 8))
    values[np.arange(60), np.arange(60) % 5] = np.linspace(1, 2, 60)
    values[7, 5], values[:, 6] = 1, 1
    return embedding_of(values, words=words, n_tokens=[2] * 60)


class Oracle:
    """Names the word that the marked places share most, as an attentive reader would."""

    name = "oracle"

    def __init__(self):
        self.prompts, self.usage = [], Usage()

    def __call__(self, prompts):
        self.prompts += prompts
        self.usage.calls += len(prompts)
        self.usage.prompt_tokens += 10 * len(prompts)
        out = []
        for prompt in prompts:
            marks = Counter(re.findall("<<(?!\\s*so)(.*?)>>", prompt))
            word = marks.most_common(1)[0][0] if marks else "nothing"
            out.append(f'{{"label": "the word {word!r}", "explanation": "marked"}}'.replace("'", "\\u0027"))
        return out


def parts(prompt):
    """The texts of a prompt: those in which the feature fires, and the others."""
    first, second = prompt.split("DOES NOT FIRE:")
    return [re.findall(r"^\d+\. (.*)$", half, re.MULTILINE) for half in (first, second)]


def test_labels_and_scores_by_an_oracle(emb):
    oracle = Oracle()
    found = sl.label_features(emb, [0, 1, 2, 3], oracle, KeywordJudge(), k=4)
    frame = found.to_frame()
    assert frame.label.tolist() == [f"the word '{word}'" for word in WORDS[:4]]
    assert frame.score.tolist() == [1.0] * 4
    assert frame.n_scored.tolist() == [8] * 4
    assert (set(frame.labelled_by), set(frame.judged_by)) == ({"oracle"}, {"keywords"})
    for prompt, word in zip(oracle.prompts, WORDS, strict=False):
        positives, negatives = parts(prompt)
        assert len(positives) == len(negatives) == 4
        assert all(text == f"<<{word}>> more" for text in positives)
        assert all("<<" not in text and not text.startswith(word) for text in negatives)


def test_a_wrong_label_is_at_chance_and_a_constant_judge_too(emb):
    wrong = sl.label_features(emb, [0, 1], lambda prompts: ["the word 'bird'"] * len(prompts), KeywordJudge(), k=5)
    # never true of texts with sir or dog; of the others, texts with a bird are taken for wrong ones
    assert (wrong.frame.score <= 0.5).all()
    for answer in ("YES", 0):
        constant = sl.label_features(emb, [0], Oracle(), lambda prompts, a=answer: [a] * len(prompts), k=5)
        assert constant.frame.score.tolist() == [0.5]
    odd = sl.label_features(emb, [0], Oracle(), lambda prompts: ["perhaps"] * len(prompts), k=5)
    assert odd.frame.score.tolist() == [0.5]
    assert odd.unclear == 10


def test_texts_that_make_a_label_do_not_score_it(emb):
    shown, asked = [], []

    def labeler(prompts):
        shown.extend(prompts)
        return ["x"] * len(prompts)

    def judge(questions):
        asked.extend(q.text for q in questions)
        return [1] * len(questions)

    # texts that can be told apart: document i has i + 1 tokens
    values = np.zeros((40, 2))
    values[:20, 0] = 1
    long = embedding_of(values, n_tokens=range(1, 41))
    sl.label_features(long, 0, labeler, judge, k=5)
    positives, negatives = parts(shown[0])
    assert len(set(asked)) == 10
    assert not set(asked) & set(positives + negatives)


def test_few_texts(emb):
    found = sl.label_features(emb, [5, 6], Oracle(), KeywordJudge(), k=3)
    assert len(found) == 2
    assert np.isnan(found.frame.score).all()  # one text makes the label, none is left; feature 6 fires everywhere
    with pytest.raises(InputError, match="feature 7 fires in none"):
        sl.label_features(emb, 7, Oracle())


def test_negatives_from_elsewhere(emb):
    oracle = Oracle()
    other = embedding_of(np.zeros((30, 8)), words=["elsewhere"] * 30)
    sl.label_features(emb, 0, oracle, against=other, k=3)
    assert set(parts(oracle.prompts[0])[1]) == {"elsewhere"}
    with pytest.raises(InputError, match="site"):
        sl.label_features(emb, 0, oracle, against=embedding_of(np.zeros((3, 8)), site="there"))


def test_labels_are_a_mapping_that_diff_takes(emb):
    found = sl.label_features(emb, [0, 2], Oracle(), k=2)
    assert dict(found) == {0: found[0], 2: found[2]}
    assert np.isnan(found.frame.score).all()
    shown = sl.diff(emb.subset(range(30)), emb.subset(range(30, 60)), labels=found).to_frame()
    assert shown.set_index("feature").description[2] == found[2]
    empty = sl.label_features(emb, [0, 2], lambda prompts: ["", "x"], k=2)
    assert list(empty) == [2]
    assert "1 of 2 features" in repr(empty)
    assert "the word" in found._repr_html_()
    assert sl.label_features(emb, [0], Oracle(), KeywordJudge(), k=2).plot() is not None


def test_hostile_labels_are_escaped(emb):
    found = sl.label_features(emb, [4], lambda prompts: ["<img src=x onerror=alert(1)>"] * len(prompts), k=2)
    assert "<img" not in found._repr_html_()


def test_cost_by_stage(emb):
    oracle = Oracle()
    cost = sl.label_features(emb, [0, 1], oracle, KeywordJudge(), k=2).cost
    frame = cost.to_frame().set_index("stage")
    assert frame.prompt_tokens["read"] == 120
    assert frame.prompts.tolist()[1:] == [2, 8]
    assert frame.prompt_tokens["label"] == 20
    assert frame.calls["score"] == 8
    assert (frame.seconds[1:] >= 0).all()
    both = cost + Cost(stages={"verify": {"prompts": 5, "seconds": 1.0}, "label": {"prompts": 1, "seconds": 1.0}})
    assert both.stages["label"]["prompts"] == 3
    assert both.to_frame().stage.tolist() == ["read", "label", "score", "verify"]
    assert "apart: verify 5 prompts" in repr(both)
    assert np.isnan(both.to_frame().set_index("stage").calls["verify"])  # nobody told
    assert "verify" in both._repr_html_()
    assert cost.stages["label"]["prompts"] == 2


def test_wrong_arguments(emb):
    for arguments, says in (
        ((emb, [], Oracle()), "at least one feature"), ((emb, 99, Oracle()), "no feature 99"),
        ((emb, [0], lambda prompts: []), "0 answers"), ((emb, [0], lambda prompts: [3]), "not a string"),
        ((emb, [0], Oracle(), lambda prompts: [1]), "returned 1 answers"),
    ):
        with pytest.raises(InputError, match=says):
            sl.label_features(*arguments)
    with pytest.raises(InputError, match="k of at least 1"):
        sl.label_features(emb, [0], Oracle(), k=0)


@pytest.fixture(scope="module")
def aligned():
    """Two sets of 60 rows: feature 0 fires in the first 50 of the target, on "sir", strongest first."""
    values = np.zeros((60, 3))
    values[:50, 0] = np.linspace(2, 1, 50)
    values[:, 1] = 1
    target = embedding_of(values, words=["sir"] * 50 + ["dog"] * 10, n_tokens=range(1, 61))
    other = np.zeros((60, 3))
    other[:, 1], other[50:, 2] = 1, 1
    return target, embedding_of(other, words=["cat"] * 60, n_tokens=range(1, 61))


def test_relabelling_reads_the_rows_it_should(aligned):
    asked, oracle, words = [], Oracle(), KeywordJudge()

    def judge(questions):
        asked.append([q.text for q in questions])
        return words(questions)

    found = sl.relabel_features(*aligned, [0], oracle, judge, labels={0: "the word 'dog'"})
    row = found.frame.iloc[0]
    assert (row.old_score, row.new_score, row.kept, row.label) == (0.5, 1.0, True, row.new_label)
    assert row.labelled_by == "oracle"

    def rows_of(texts):
        return sorted(text.count("more") for text in texts if "<<" in text)

    assert rows_of(asked[0]) == list(range(10))
    assert rows_of(parts(oracle.prompts[0])[0]) == list(range(10, 30))
    assert rows_of(asked[1]) == list(range(30, 40))
    assert [t.count("more") for t in asked[1] if "cat" in t] == list(range(30, 40))  # the same rows of the other set


def test_relabelling_keeps_the_better_label_or_none(aligned):
    target, other = aligned
    kept = sl.relabel_features(target, [other, other], [0], lambda p: ["the word 'cat'"] * len(p), KeywordJudge(),
                               labels={0: "the word 'sir'"})
    assert kept[0] == "the word 'sir'"
    assert kept.frame.labelled_by[0] == "given labels"
    dropped = sl.relabel_features(target, other, [0, 1, 2], lambda p: ["the word 'cat'"] * len(p), KeywordJudge(),
                                  labels=dict.fromkeys(range(3), "the word 'dog'"))
    assert len(dropped) == 0
    assert dropped.frame.kept.tolist() == [False] * 3
    with pytest.raises(InputError, match="row"):
        sl.relabel_features(target, other.subset(range(5)), [0], Oracle(), KeywordJudge())
    with pytest.raises(InputError, match="at least one other"):
        sl.relabel_features(target, [], [0], Oracle(), KeywordJudge())

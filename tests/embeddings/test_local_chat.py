"""Local labeler and judge on a tiny transformer, against plain calls."""

import pytest
import torch

from sparselens.embeddings import LocalJudge, LocalLabeler
from sparselens.errors import FitError
from tests import tiny


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


PROMPTS = ["the cat?", "is it a mat, or what is it then", "<|im_end|> he", "héé 😀", "x " * 40]


def by_hand(m, prompt):
    """Log-odds from one prompt alone."""
    chat = [{"role": "user", "content": prompt.replace("<|im_end|>", "< |im_end|>")}]
    text = m.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = m.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        last = m.native(input_ids=ids).logits[0, -1]
    first = {word: m.tokenizer(word)["input_ids"][0] for word in ("Y", "y", "N", "n")}
    yes, no = (torch.logsumexp(last[[first[a], first[b]]], 0) for a, b in (("Y", "y"), ("N", "n")))
    return float(yes - no)


def test_log_odds_are_those_of_one_prompt_alone(m):
    judge = LocalJudge(m)
    expected = [by_hand(m, prompt) for prompt in PROMPTS]
    assert judge.scores(PROMPTS) == pytest.approx(expected, abs=1e-4)
    assert judge.scores(PROMPTS * 8)[-5:] == pytest.approx(expected, abs=1e-4)
    assert judge(PROMPTS) == [int(e >= 0) for e in expected]
    middle = sorted(expected)[2]
    assert sum(LocalJudge(m, threshold=middle + 1e-3)(PROMPTS)) == 2
    assert judge.usage.calls == 50
    assert judge([]) == []


def test_the_labeler_writes_what_the_model_generates(m):
    labeler = LocalLabeler(m, max_new_tokens=5)
    chats = [[{"role": "user", "content": p.replace("<|im_end|>", "< |im_end|>")}] for p in PROMPTS[:3]]
    assert labeler(PROMPTS[:3]) == m.generate(chats, 5)
    assert labeler.usage.calls == 3
    rows = [m.tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]
    assert labeler.usage.prompt_tokens == sum(map(len, rows))
    assert labeler([]) == []


def test_without_a_chat_template(m, monkeypatch):
    monkeypatch.setattr(m.tokenizer, "chat_template", None)
    assert LocalLabeler(m, max_new_tokens=3)(["the cat"]) == [m.generate("the cat", 3)]
    assert len(LocalJudge(m)(["the cat"])) == 1


def test_a_tokenizer_that_cannot_tell_yes_from_no(m, monkeypatch):
    monkeypatch.setattr("sparselens.embeddings.local_chat._first_token", lambda m, word: 7)
    with pytest.raises(FitError, match="same token"):
        LocalJudge(m)

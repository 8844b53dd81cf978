"""Rows, batches, chat templates, masks."""

import pytest
import torch

from sparselens.errors import InputError
from sparselens.models.batches import Reader
from tests import tiny


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny.tokenizer(), 256)


def batches(reader, texts, **kw):
    settings = dict(batch_tokens=64, role=None, max_length=None, long="error", padding_side="right") | kw
    return list(reader.batches(texts, **settings))


def test_every_text_once_and_padded_little(reader):
    generator = torch.Generator().manual_seed(0)
    texts = ["x" * int(n) for n in torch.randint(1, 60, (500,), generator=generator)]
    got = batches(reader, texts, batch_tokens=256)
    assert sorted(d for b in got for d in b.doc.tolist()) == list(range(500))
    padded, real = sum(b.ids.numel() for b in got), sum(int(b.mask.sum()) for b in got)
    assert real == sum(map(len, texts)) and padded / real <= 1.1
    assert all(b.ids.numel() <= 256 for b in got)


def test_chat_content_is_told_from_the_template(reader):
    chat = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}]
    (batch,) = batches(reader, chat)
    text = reader.tokenizer.decode(batch.ids[0])
    assert text.startswith("<|im_start|>system\nBe kind.") and "hello there" in text
    content = [reader.tokenizer.decode(batch.ids[0][n]) for n in range(batch.ids.shape[1]) if batch.content[0, n]]
    assert "".join(content) == "hello therehi"
    assert batch.first[0].tolist() == [True] + [False] * (batch.ids.shape[1] - 1)


def test_a_role_wraps_each_text_as_one_turn(reader):
    a = batches(reader, ["hello", "yes"], role="assistant")[0]
    b = batches(reader, [[{"role": "assistant", "content": t}] for t in ("hello", "yes")])[0]
    assert torch.equal(a.ids, b.ids) and torch.equal(a.content, b.content)


def test_content_that_repeats_template_words_is_found_in_its_place(reader):
    chat = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "assistant"}]
    (batch,) = batches(reader, chat)
    kept = "".join(reader.tokenizer.decode(i) for i in batch.ids[0][batch.content[0]])
    assert kept == "userassistant"


def test_special_tokens_are_not_content(reader):
    (batch,) = batches(reader, "a<|endoftext|>b")
    assert batch.content[0].tolist() == [True, False, True] and batch.mask.all()


def test_left_and_right_padding(reader):
    (left,), (right,) = (batches(reader, ["ab", "abcdef"], padding_side=s) for s in ("left", "right"))
    assert left.mask[0].tolist() == [False] * 4 + [True] * 2 and left.first[0].tolist().index(True) == 4
    assert right.mask[0].tolist() == [True] * 2 + [False] * 4 and right.first[0, 0]
    assert left.positions[0].tolist() == [0, 0, 0, 0, 0, 1]


def test_chunks_know_where_they_start(reader):
    got = batches(reader, ["x" * 25], max_length=10, long="chunk")
    rows = sorted((s, int(m.sum())) for b in got for s, m in zip(b.start.tolist(), b.mask, strict=True))
    assert rows == [(0, 10), (10, 10), (20, 5)]
    assert batches(reader, ["x" * 10], max_length=10)[0].ids.shape == (1, 10)


def test_token_ids_are_texts_too(reader):
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    (batch,) = batches(reader, ids)
    assert torch.equal(batch.ids, ids) and batch.content.tolist() == [[True] * 3, [True, True, False]]


def test_empty_texts_can_be_skipped(reader):
    got = batches(reader, ["a", "", "b"], empty="skip")
    assert [d for b in got for d in b.doc.tolist()] == [0, 2]


def test_series_and_arrays(reader):
    import numpy as np
    import pandas as pd

    for texts in (pd.Series(["ab", "cd"], index=[7, 9]), np.array(["ab", "cd"])):
        assert batches(reader, texts)[0].doc.tolist() == [0, 1]


def test_errors(reader):
    with pytest.raises(InputError, match="padding_side='top'"):
        batches(reader, "a", padding_side="top")
    with pytest.raises(InputError, match="string under 'content'"):
        batches(reader, [{"role": "user", "content": None}])
    with pytest.raises(InputError, match="no tokenizer"):
        batches(Reader(None, 16), "a")
    plain = tiny.tokenizer().__class__.from_pretrained(tiny.tokenizer().name_or_path)
    plain.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        batches(Reader(plain, 16), "a", role="user")
    plain.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(InputError, match="rewrites the content"):
        batches(Reader(plain, 16), "abc", role="user")

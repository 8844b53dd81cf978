"""What `embed` accepts, and how it refuses the rest."""

import pandas as pd
import pytest

from sparselens.embeddings.documents import BLOCK_CHARACTERS, BLOCK_DOCUMENTS, as_documents
from sparselens.errors import InputError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_kinds_of_input():
    assert as_documents("one").texts == ["one"]
    assert as_documents(["a", "b"]).texts == ["a", "b"]
    assert as_documents(("a", "b")).texts == ["a", "b"]
    assert as_documents(pd.Series(["a", "b"], index=[5, 7])).texts == ["a", "b"]
    assert as_documents(iter(["a", "b"])).texts == ["a", "b"]
    assert as_documents([CHAT, "a"]).texts == [CHAT, "a"]
    assert as_documents(CHAT).texts == [CHAT]
    assert as_documents(CHAT).shown(0) == "hi\n\nhello"


def test_frames_carry_their_columns():
    frame = pd.DataFrame({"body": ["a", "b"], "stars": [1, 5], 3: ["x", None]}, index=["p", "q"])
    got = as_documents(frame, "body")
    assert got.texts == ["a", "b"]
    assert list(got.columns.columns) == ["stars", "3"]
    assert list(got.columns.index) == [0, 1]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "empty list"),
        (iter([]), "no texts"),
        (pd.Series([], dtype=object), "empty"),
        (["a", None], "row 1 is a NoneType"),
        (["a", "b", 3.5], r"row 2 is a float \(3.5\)"),
        (pd.Series(["a", float("nan")]), "row 1 is a float"),
        ([b"bytes"], "row 0 is a bytes"),
        ([["a", "b"]], "row 0 is a list"),
        ([[{"role": "user"}]], "row 0 is a chat"),
        ([[{"role": "user", "content": None}]], "row 0 is a chat"),
        (["", "", ""], "all 3 texts are empty"),
        ({"text": ["a"]}, "dict"),
        (7, "int"),
    ],
)
def test_bad_input_is_named(texts, says):
    with pytest.raises(InputError, match=says):
        as_documents(texts)


def test_bad_frames():
    with pytest.raises(InputError, match="Closest: body"):
        as_documents(pd.DataFrame({"body": ["a"]}), "bodi")
    with pytest.raises(InputError, match="'n_tokens' would clash"):
        as_documents(pd.DataFrame({"text": ["a"], "n_tokens": [1]}))
    with pytest.raises(InputError, match="same name"):
        as_documents(pd.DataFrame([["a", 1, 2]], columns=["text", "x", "x"]))
    with pytest.raises(InputError, match="empty"):
        as_documents(pd.DataFrame({"text": []}))


def test_blocks_are_bounded_by_number_and_by_size():
    many = as_documents(["a"] * (2 * BLOCK_DOCUMENTS + 1)).blocks()
    assert [len(b) for b in many] == [BLOCK_DOCUMENTS, BLOCK_DOCUMENTS, 1]
    long = as_documents(["a" * (BLOCK_CHARACTERS // 2)] * 3 + ["a" * 3 * BLOCK_CHARACTERS] + ["b"]).blocks()
    assert [(b.start, b.stop) for b in long] == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_fingerprint_knows_order_and_borders():
    texts = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a\nb"], [CHAT], ["\ud83d"]]
    prints = {as_documents(t).fingerprint() for t in texts}
    assert len(prints) == len(texts)
    assert as_documents(["a", "b"]).fingerprint() == as_documents(pd.Series(["a", "b"])).fingerprint()

"""What `embed` accepts, and how it refuses the rest."""

import pandas as pd
import pytest

from sparselens.embeddings.documents import (
    BLOCK_CHARACTERS,
    BLOCK_DOCUMENTS,
    as_documents,
    is_stream,
    shown,
    stream_documents,
)
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
    assert [shown(CHAT, span) for span in ("all", "prompt", "answer")] == ["hi\n\nhello", "hi", "hello"]


def test_frames_carry_their_columns():
    frame = pd.DataFrame({"body": ["a", "b"], "stars": [1, 5], 3: ["x", None]}, index=["p", "q"])
    got = as_documents(frame, "body")
    assert got.texts == ["a", "b"]
    assert got.columns.to_pydict() == {"stars": [1, 5], "3": ["x", None]}


def test_records_and_files(tmp_path):
    records = [{"body": "a", "stars": 1}, {"body": "b", "tags": ["x"]}]
    for got in (as_documents(records, "body"), as_documents(iter(records), "body")):
        assert got.texts == ["a", "b"]
        assert got.columns.to_pydict() == {"stars": [1, None], "tags": [None, ["x"]]}
    frame = pd.DataFrame({"body": ["a", "b"], "stars": [1, 5]})
    chats = pd.DataFrame({"body": [CHAT, CHAT]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        got = as_documents(tmp_path / name, "body")
        assert (got.texts, got.columns.to_pydict()) == (["a", "b"], {"stars": [1, 5]})
    assert as_documents(chats, "body").texts == [CHAT, CHAT]
    chats.to_parquet(tmp_path / "chats.parquet")  # read back, a list is an array
    assert as_documents(pd.read_parquet(tmp_path / "chats.parquet"), "body").texts == [CHAT, CHAT]
    with pytest.raises(InputError, match="does not exist"):
        as_documents(tmp_path / "no.csv")


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"body": [f"text {i}" for i in range(600)], "stars": list(range(600))})
    for given in (whole, whole.to_iterable_dataset(num_shards=3)):
        assert is_stream(given)
        parts = list(stream_documents(given, "body"))
        assert [len(part) for part in parts] == [256, 256, 88]
        assert parts[2].texts[0] == "text 512"
        assert parts[2].columns.to_pydict()["stars"][0] == 512
        assert as_documents(given, "body").fingerprint() == as_documents(list(whole["body"])).fingerprint()
    assert as_documents(whole["body"]).texts[599] == "text 599"
    chats = datasets.Dataset.from_list([{"messages": CHAT, "id": 3}])
    assert as_documents(chats, "messages").texts == [CHAT]


def test_a_stream_is_read_a_block_at_a_time():
    taken = 0

    def texts():
        nonlocal taken
        for i in range(1000):
            taken = i
            yield str(i)

    parts = stream_documents(texts())
    assert next(parts).texts[:2] == ["0", "1"]
    assert taken == BLOCK_DOCUMENTS
    streams = [iter(["a"]), (t for t in "ab"), {"a": 1}.keys(), map(str, range(3))]
    assert all(map(is_stream, streams))
    at_hand = ["a", ["a"], ("a",), pd.Series(["a"]), pd.DataFrame({"text": ["a"]}), b"a", {"a": 1}]
    assert not any(map(is_stream, at_hand))


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
        ([{"text": "a"}, {"texts": "b"}], "row 1 has no 'text'.*Closest: text"),
        ([{"text": "a"}, "b"], "partly records"),
        ([{"text": "a", "n_tokens": 3}], "'n_tokens' would clash"),
        ([{"text": "a", "x": 1}, {"text": "b", "x": "one"}], "rows 0 to 1 hold a value"),
        ([{"text": None}], "row 0 is a NoneType"),
        (iter(["a", b"b"]), "row 1 is a bytes"),
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
    with pytest.raises(InputError, match="odd"):
        as_documents(pd.DataFrame({"text": ["a", "b"], "odd": [1, "a"]}))


def test_blocks_are_bounded_by_number_and_by_size():
    many = as_documents(["a"] * (2 * BLOCK_DOCUMENTS + 1)).blocks()
    assert [len(b) for b in many] == [BLOCK_DOCUMENTS, BLOCK_DOCUMENTS, 1]
    long = as_documents(["a" * (BLOCK_CHARACTERS // 2)] * 3 + ["a" * 3 * BLOCK_CHARACTERS] + ["b"]).blocks()
    assert [len(b) for b in long] == [2, 1, 1, 1]
    frame = pd.DataFrame({"text": ["a"] * 300, "n": range(300)})
    assert [b.columns.to_pydict()["n"][0] for b in as_documents(frame).blocks()] == [0, BLOCK_DOCUMENTS]


def test_fingerprint_knows_order_and_borders():
    texts = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a\nb"], [CHAT], ["\ud83d"]]
    prints = {as_documents(t).fingerprint() for t in texts}
    assert len(prints) == len(texts)
    assert as_documents(["a", "b"]).fingerprint() == as_documents(pd.Series(["a", "b"])).fingerprint()

"""Reading texts from every format, every bad file, and the generators' truths."""

import gzip
import json

import pandas as pd
import pytest
import torch

from sparselens import datasets
from sparselens.errors import FileFormatError, InputError

TEXTS = ["plain", "a, b and \"c\"", "ünïcödé 🙂", "007", "NA", "two\nlines", "<script>alert(1)</script>"]


def _write(path, kind):
    frame = pd.DataFrame({"n": range(len(TEXTS)), "text": TEXTS})
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind in {"csv", "tsv"}:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_json(path, orient="records")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_texts(tmp_path, kind):
    _write(tmp_path / f"texts.{kind}", kind)
    frame = datasets.read_texts(tmp_path / f"texts.{kind}")
    assert frame["text"].tolist() == TEXTS
    assert frame["n"].tolist() == list(range(len(TEXTS)))
    assert frame.index.tolist() == list(range(len(TEXTS)))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "txt"])
def test_gzip(tmp_path, kind):
    plain = tmp_path / f"texts.{kind}"
    if kind == "txt":
        plain.write_text("one\ntwo\n")
    else:
        _write(plain, kind)
    packed = tmp_path / f"texts.{kind}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert datasets.read_texts(packed).equals(datasets.read_texts(plain))


def test_txt_is_a_text_per_line(tmp_path):
    path = tmp_path / "a.TXT"
    path.write_bytes("\ufefffirst\r\n\r\n  second, indented\n\u2028 kept\n".encode())
    frame = datasets.read_texts(str(path), field="line")
    assert frame["line"].tolist() == ["first", "  second, indented", "\u2028 kept"]


def test_lists_of_strings_and_separators_inside_json(tmp_path):
    (tmp_path / "a.json").write_text('["one", "two"]')
    assert datasets.read_texts(tmp_path / "a.json")["text"].tolist() == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('"one\u2028still one"\n\n{"text": "two", "more": 1}\n')
    assert datasets.read_texts(tmp_path / "a.jsonl")["text"].tolist() == ["one\u2028still one", "two"]


def test_other_columns_keep_their_types(tmp_path):
    (tmp_path / "a.csv").write_text("text,score\n1.50,2\nNA,\n")
    frame = datasets.read_texts(tmp_path / "a.csv")
    assert frame["text"].tolist() == ["1.50", "NA"]
    assert frame["score"].iloc[0] == 2 and pd.isna(frame["score"].iloc[1])


def test_missing_field_names_the_closest(tmp_path):
    _write(tmp_path / "a.csv", "csv")
    with pytest.raises(InputError, match=r"no column 'texts'; it has n, text. Closest: text"):
        datasets.read_texts(tmp_path / "a.csv", field="texts")
    with pytest.raises(InputError, match="no column 'body'; it has n, text"):
        datasets.read_texts(tmp_path / "a.csv", field="body")


@pytest.mark.parametrize(("bad", "problem"), [
    (3, "3 of type int"), (None, "missing"), (["x"], ".*type list"), ({}, "{} of type dict"), (" ", "blank"),
])
def test_rows_that_are_not_texts(tmp_path, bad, problem):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + json.dumps({"text": bad}) + "\n")
    with pytest.raises(InputError, match=rf"row 1 \(from 0\): 'text' is {problem}, and a text is needed"):
        datasets.read_texts(tmp_path / "a.jsonl")


def test_missing_and_blank_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"other": "x"}\n')
    with pytest.raises(InputError, match="row 1 .*missing"):
        datasets.read_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text('n,text\n1,fine\n2," "\n')
    with pytest.raises(InputError, match="row 1 .* is blank"):
        datasets.read_texts(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n[1]\n')
    with pytest.raises(InputError, match="line 2: a list"):
        datasets.read_texts(tmp_path / "b.jsonl")
    pd.DataFrame({"text": [1.5, 2.5]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 0 .* is 1.5 of type float"):
        datasets.read_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", ""), ("b.txt", "\n \n"), ("a.jsonl", ""), ("a.json", ""), ("b.json", "[]"), ("a.csv", ""),
    ("b.csv", "text,n\n"), ("a.tsv", ""),
])
def test_empty_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="holds no texts"):
        datasets.read_texts(tmp_path / name)


def test_wrong_places_and_endings(tmp_path):
    (tmp_path / "left.csv").write_text("text\na\n")
    with pytest.raises(InputError, match="does not exist. Closest: left.csv"):
        datasets.read_texts(tmp_path / "lef.csv")
    with pytest.raises(InputError, match="does not exist"):
        datasets.read_texts(tmp_path / "nowhere" / "a.csv")
    with pytest.raises(InputError, match="is a folder"):
        datasets.read_texts(tmp_path)
    for name in ("a.docx", "a", "a.gz", "a.parquet.gz"):
        (tmp_path / name).write_text("x")
        with pytest.raises(InputError, match=r"texts are read from \.txt, \.jsonl"):
            datasets.read_texts(tmp_path / name)


def test_damaged_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "cut o')
    with pytest.raises(FileFormatError, match="line 2: not valid JSON"):
        datasets.read_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('{"text": "one object"}')
    with pytest.raises(InputError, match="JSON dict; give a list"):
        datasets.read_texts(tmp_path / "a.json")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FileFormatError, match="UTF-8"):
        datasets.read_texts(tmp_path / "a.txt")
    (tmp_path / "l.csv").write_bytes(b"text\ncaf\xe9\n")
    with pytest.raises(FileFormatError, match="UTF-8"):
        datasets.read_texts(tmp_path / "l.csv")
    (tmp_path / "a.csv").write_text('text,n\na,1\nb,2,3,4\n')
    with pytest.raises(FileFormatError, match="separator"):
        datasets.read_texts(tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(FileFormatError, match="Parquet"):
        datasets.read_texts(tmp_path / "a.parquet")
    (tmp_path / "a.txt.gz").write_bytes(b"not gzip at all")
    with pytest.raises(FileFormatError, match=r"\.gz"):
        datasets.read_texts(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a text that is long enough\n" * 50)[:40])
    with pytest.raises(FileFormatError, match="copied whole"):
        datasets.read_texts(tmp_path / "b.txt.gz")


def test_unknown_style():
    with pytest.raises(InputError, match="valid are formal, chatty. Closest: formal"):
        datasets.load_answers("formall")


def test_sparse_mixture_is_what_it_says():
    x, dictionary, codes = datasets.sparse_mixture(200, 16, 24, 3, seed=1)
    torch.testing.assert_close(x, codes @ dictionary)
    torch.testing.assert_close(dictionary.norm(dim=1), torch.ones(24))
    assert ((codes != 0).sum(1) == 3).all()
    strengths = codes[codes != 0]
    assert strengths.min() >= 0.5 and strengths.max() <= 1.5
    assert (codes != 0).any(0).all()
    again = datasets.sparse_mixture(200, 16, 24, 3, seed=1)
    assert torch.equal(x, again[0])
    assert not torch.equal(x, datasets.sparse_mixture(200, 16, 24, 3, seed=2)[0])


@pytest.mark.parametrize("sizes", [(0, 4, 4, 1), (4, 0, 4, 1), (4, 4, 0, 1), (4, 4, 4, 0), (4, 4, 4, 5)])
def test_sparse_mixture_refuses_impossible_sizes(sizes):
    with pytest.raises(InputError, match="at least 1"):
        datasets.sparse_mixture(*sizes)


def test_sparse_mixture_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    datasets.sparse_mixture(4, 4, 4, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_instruction_families_keep_examples_apart_from_the_pool():
    frame = datasets.instruction_families()
    assert frame.groupby(["part", "family"]).size().unstack().to_dict("index") == {
        part: dict.fromkeys(sorted(frame["family"].unique()), n) for part, n in (("pool", 100), ("example", 20))
    }
    assert frame["text"].is_unique and frame["part"].tolist() == ["pool"] * 600 + ["example"] * 120
    assert frame.equals(datasets.instruction_families(0))
    assert not frame.equals(datasets.instruction_families(1))


def test_the_concept_tree_is_one():
    x, dictionary, codes = datasets.concept_tree(20_000, parent_mix=0.3, child_mix=0.0895)
    active = codes != 0
    torch.testing.assert_close(x, codes @ dictionary)
    torch.testing.assert_close(dictionary.norm(dim=1), torch.ones(20))
    assert (active[:, [0, 1, 2, *range(12, 20)]].sum(1) == 1).all() and (active[:, 3:12].sum(1) <= 1).all()
    for child in range(3, 12):
        assert (active[:, (child - 3) // 3] | ~active[:, child]).all(), "no child without its parent"
    assert float(active.sum(1).double().mean()) == pytest.approx(1.36, abs=0.02)
    cosines = dictionary @ dictionary.T
    assert float(cosines[0, 1]) == pytest.approx(0.1, abs=0.01) and float(cosines[3, 4]) == pytest.approx(0.1, abs=0.01)
    rows = datasets.concept_tree(5)[1]
    torch.testing.assert_close(rows @ rows.T, torch.eye(20), atol=1e-5, rtol=0)

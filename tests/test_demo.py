"""The demo: what the card of the answers says is true, the notebook is clean, and the runner is kind."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sparselens import datasets
from sparselens.errors import InputError
from sparselens.models.packaged import PACKAGED, cache_folder

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "answers"
MODEL = "smollm2-135m-instruct"


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _needs_model():
    folder = cache_folder() / "models" / f"{MODEL}-{PACKAGED[MODEL].sha256[:12]}-float16"
    if not (folder / "config.json").exists():
        pytest.skip("the packaged model is not in the cache; `make demo` fetches it")
    return folder


@pytest.fixture(scope="module")
def make():
    return _module(DATA / "make.py")


@pytest.fixture
def demo():
    return _module(ROOT / "notebooks" / "run_demo.py")


# the data

def _figures():
    """The table of the card: row name -> (formal, chatty)."""
    rows = re.findall(r"^\| ([^|]+?) +\| +([\d.]+) +\| +([\d.]+) +\|$", (DATA / "README.md").read_text(), re.M)
    return {name: (float(formal), float(chatty)) for name, formal, chatty in rows}


def test_both_sets_answer_the_same_prompts():
    prompts = (DATA / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len({p.lower() for p in prompts}) == 320
    for style in datasets.STYLES:
        frame = datasets.load_answers(style)
        assert frame["prompt"].tolist() == prompts
        assert frame["id"].tolist() == list(range(320))
        assert set(frame["system"]) == {style}


def test_the_figures_of_the_card(make):
    figures = _figures()
    for column, style in enumerate(datasets.STYLES):
        answers = datasets.load_answers(style)["answer"]
        measured = {
            "answers": len(answers),
            "mean words": round(answers.str.split().str.len().mean(), 1),
            "share with an exclamation mark": round(answers.str.contains("!", regex=False).mean(), 2),
            "share with loops": round((answers.map(make.repeats) > make.MAX_REPEATS).mean(), 2),
        }
        assert {name: figures[name][column] for name in measured} == measured
        assert answers.is_unique
    lengths = figures["mean tokens"]
    assert max(lengths) < 1.2 * min(lengths), "the sets must not differ in length by much"


def test_the_token_means_of_the_card():
    folder = _needs_model()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for column, style in enumerate(datasets.STYLES):
        ids = tokenizer(datasets.load_answers(style)["answer"].tolist(), add_special_tokens=False)["input_ids"]
        assert round(sum(map(len, ids)) / len(ids), 1) == _figures()["mean tokens"][column]


def test_answers_are_whole_sentences_and_suitable(make):
    for style in datasets.STYLES:
        for answer in datasets.load_answers(style)["answer"]:
            assert make.whole_sentences(answer) == answer
            assert not make.UNSUITABLE.search(answer)


def test_trimming_and_loops(make):
    assert make.whole_sentences(" One. Two! Thr") == "One. Two!"
    assert make.whole_sentences('He said "no." And') == 'He said "no."'
    assert make.whole_sentences("First.\n\nSecond.") == "First."
    assert make.whole_sentences("At 4.5 degrees") == ""
    assert make.repeats("a b c d e f") == 0
    assert make.repeats("it is good, it is good, it is good") == 4
    assert make.good("one two three four five six seven eight nine ten eleven twelve")
    assert not make.good("too short")


def test_data_is_written_whole_and_goes_on(make, tmp_path, monkeypatch):
    asked = []

    def answers(model, style, prompts, seed):
        if len(asked) == 1 and len(prompts) == 1:
            raise KeyboardInterrupt
        asked.append((tuple(prompts), seed))
        return [f"{style} {prompt}" for prompt in prompts]

    monkeypatch.setattr(make, "answers", answers)
    monkeypatch.setattr(make, "CHUNK", 2)
    out = tmp_path / "formal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make.write(None, "formal", ["a", "b", "c"], out)
    assert len(out.read_text().splitlines()) == 2
    asked.append(None)
    make.write(None, "formal", ["a", "b", "c"], out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["formal a", "formal b", "formal c"]
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert asked[0] == (("a", "b"), make.SEED) and asked[2] == (("c",), make.SEED + 2 * make.TRIES)


# the notebook

def test_the_notebook_has_short_cells_and_a_first_picture(demo):
    notebook = nbformat.read(demo.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    pictures = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) < 15
            ast.parse(cell.source)
            pictures += "first-picture" in cell.metadata.get("tags", [])
    assert pictures == 1


# the runner

def _texts(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_files_are_checked_before_anything_slow(demo, tmp_path):
    few = _texts(tmp_path / "few.jsonl", ["one", "two"])
    enough = _texts(tmp_path / "enough.jsonl", ["one", "two", "three", "four"])
    demo.check_files(None, None, "text")
    demo.check_files(enough, enough, "text")
    with pytest.raises(demo.DemoError, match="A is given but B is not"):
        demo.check_files(enough, None, "text")
    with pytest.raises(demo.DemoError, match="few.jsonl holds 2 texts; at least 4"):
        demo.check_files(enough, few, "text")
    with pytest.raises(InputError, match="no column 'body'; it has text"):
        demo.check_files(enough, enough, "body")


def test_a_wrong_file_ends_with_one_clear_line(tmp_path):
    command = [sys.executable, ROOT / "notebooks" / "run_demo.py", "--a", tmp_path / "no.csv", "--b", "x"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 2
    assert result.stderr.startswith("The demo could not start:") and "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_executing_timing_and_failing(demo, tmp_path, monkeypatch, capsys):
    """A short notebook in the real kernel: environment, time to the first picture, and a cell that fails."""
    cells = [
        nbformat.v4.new_code_cell("import os; from IPython.display import HTML; from tqdm.auto import tqdm"),
        nbformat.v4.new_code_cell("for _ in tqdm([1]): pass\nHTML('<b>' + os.environ['SPARSELENS_A'] + '</b>')",
                                  metadata={"tags": ["first-picture"]}),
        nbformat.v4.new_code_cell("assert not os.environ['SPARSELENS_B'], 'B is set'"),
    ]
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "short.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), demo.NOTEBOOK)
    out = tmp_path / "out"
    out.mkdir()
    notebook, seconds, problem = demo.execute({"SPARSELENS_A": "left", "SPARSELENS_B": "right"}, out)
    assert problem == "cell 3 of 3 failed with AssertionError: B is set"
    assert 0 < seconds["first picture"] <= seconds["total"]
    executed, page = demo.write(demo.without_widgets(notebook), out)
    assert "widget-view" not in executed.read_text()
    html = page.read_text()
    assert "<b>left</b>" in html and "AssertionError" in html
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//|url\(\s*['\"]?https?:", html)
    assert "Content-Security-Policy" in html


def test_a_page_shows_the_static_form_of_a_live_view(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make_pages = _module(ROOT / "notebooks" / "make_pages.py")
    cells = [nbformat.v4.new_markdown_cell("# A <b>title</b>"),
             nbformat.v4.new_code_cell("from sparselens.views import token_view\n"
                                       "token_view(['fires', '<b>x</b>'], [1.0, 0.0], [41]).explore()")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    failing.cells[0].outputs = [nbformat.v4.new_output("stream", text="from an earlier run")]
    nbformat.write(failing, tmp_path / "b.ipynb")
    assert make_pages.main(["--out", str(tmp_path / "out"), *(str(tmp_path / f"{n}.ipynb") for n in "ab")]) == 1
    said = capsys.readouterr().out
    assert "cell 1 of 1 failed with ZeroDivisionError" in said
    assert "an earlier run" not in (tmp_path / "out" / "b.html").read_text()
    assert nbformat.read(tmp_path / "b.ipynb", 4) == failing, "what failed is not kept"
    executed = nbformat.read(tmp_path / "a.ipynb", 4)
    assert "feature 41" in executed.cells[1].outputs[0].data["text/html"], "what ran is kept, in place"
    assert make_pages.kept.complaints(executed, 1000) == []
    html = (tmp_path / "out" / "a.html").read_text()
    assert "feature 41" in html and "&lt;b&gt;x" in html
    assert "widget-view" not in html and "<script" not in html
    assert "A &lt;b&gt;title" in html.partition("</title>")[0]
    assert "a.html" in said


@pytest.mark.slow
def test_two_small_files_of_ones_own(demo, tmp_path, monkeypatch):
    _needs_model()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("left", "right"):
        noun = {"left": "soup", "right": "train"}[name]
        _texts(tmp_path / f"{name}.jsonl", [f"The {noun} number {i} was <b>late</b> today." for i in range(12)])
    assert demo.run(tmp_path / "left.jsonl", tmp_path / "right.jsonl", "text", tmp_path / "out")
    for name in (demo.NOTEBOOK.name, f"{demo.NOTEBOOK.stem}.html", "difference.html", "difference.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    page = (tmp_path / "out" / "difference.html").read_text()
    assert "B: right.jsonl" in page and "<b>late" not in page

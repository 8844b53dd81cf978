"""The notebooks keep to their template: short cells, what to notice, limits, exercises with solutions, outputs."""

import ast
import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
UNSAFE = re.compile(r"<(?:script|iframe|link|object|embed)\b|\son\w+=|(?:src|href)=[\"'](?!data:image/|#)", re.I)
SAID = ("otice", "## Limits", "your own data")


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[str]:
    """Sources of the cells with a tag."""
    return [cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def load(name: str):
    """A module beside the notebooks."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kept = load("kept")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_kept_small_and_of_this_code(path):
    notebook = nbformat.read(path, as_version=4)
    assert kept.complaints(notebook, path.stat().st_size) == [], f"run: make notebooks NOTEBOOKS=notebooks/{path.name}"
    text = path.read_text("utf-8")
    assert "<script" not in text
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):  # what viewers that clean the output would take away
                assert not UNSAFE.search(output.data["text/html"]), cell.source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_keeps_to_the_template(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert notebook.cells[0].source.startswith("# ")
    assert [words for words in SAID if words not in prose] == []
    assert any("assert " in cell.source for cell in code), "a notebook asserts what it claims"
    for cell in code:
        ast.parse(cell.source)
        if "checks" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 15, cell.source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_that_is_checked(path):
    notebook = nbformat.read(path, as_version=4)
    exercises, solutions = tagged(notebook, "exercise"), tagged(notebook, "solution")
    assert len(exercises) == len(solutions)
    for exercise, solution in zip(exercises, solutions, strict=True):
        assert " = None  # YOUR CODE" in exercise
        check = exercise.strip().splitlines()[-1].partition("(")[0]
        assert check.startswith("check_")
        assert f"{check}(" in solution, "the solution is held against the same check"


def test_the_index_leads_to_notebooks():
    text = (FOLDER / "README.md").read_text("utf-8")
    for path in PATHS:
        if any(tagged(nbformat.read(path, as_version=4), tag) for tag in ("exercise",)):
            assert path.name in text, f"{path.name} is missing from the index"


# what is kept of a run


def a_notebook(*outputs) -> nbformat.NotebookNode:
    """A notebook of one cell that has shown these outputs."""
    cell = nbformat.v4.new_code_cell("1 + 1", metadata={"execution": {"iopub.status.busy": "2024"}})
    cell.outputs = [nbformat.v4.new_output(**output) for output in outputs]
    return nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.12"}})


def shows(**data: str) -> dict:
    return {"output_type": "display_data", "data": {kind.replace("__", "/"): said for kind, said in data.items()}}


def a_figure() -> str:
    """A picture of noise, which is as large as can be."""
    import numpy as np
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3)).astype("uint8")).save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


def test_what_shows_without_a_kernel_is_kept():
    png = a_figure()
    live = shows(text__plain="<View at 0x7f00deadbeef>", text__html=f'<img src="data:image/png;base64,{png}">')
    live["data"][kept.WIDGET] = {"model_id": "1"}
    bar = {"output_type": "display_data", "data": {kept.WIDGET: {"model_id": "2"}, "text/plain": "  0%|  | 0/3"}}
    notebook = a_notebook(live, bar, {"output_type": "stream", "name": "stderr", "text": "100%|███| 3/3"},
                          {"output_type": "stream", "name": "stdout", "text": "said"}, shows(image__png=png))
    assert kept.complaints(notebook, 1000)
    kept.tidy(notebook)
    assert kept.complaints(notebook, 1000) == []
    first, second, third = notebook.cells[0].outputs
    assert set(first.data) == {"text/plain", "text/html"}
    assert first.data["text/plain"] == "<View>"
    assert second.text == "said"
    assert len(third.data["image/png"]) < len(png) / 2
    assert third.data["image/png"] in first.data["text/html"]
    before = nbformat.writes(notebook)
    assert nbformat.writes(kept.tidy(notebook)) == before, "a second time changes nothing"


def test_names_that_are_drawn_by_lot_are_numbered():
    table = '<style>#T_{0}_row1 {{}}</style><table id="T_{0}"><td id="T_{0}_row1">T_shirt</td></table>'
    one, other = (kept.tidy(a_notebook(shows(text__html=table.format(name) + table.format(name[::-1]))))
                  for name in ("a1b2c", "0ff1e"))
    assert one.cells[0].outputs == other.cells[0].outputs
    assert 'id="T_00001_row1"' in one.cells[0].outputs[0].data["text/html"]
    assert "T_shirt" in one.cells[0].outputs[0].data["text/html"]


@pytest.mark.parametrize("said", [
    "x" * 5_001, "wrote /ho" + "me/someone/x.html", "function f at 0x7f00deadbeef", " 50%|█████     | 5/10",
    "VBox(children=())",
])
def test_what_would_not_be_true_tomorrow_is_not_kept(said):
    assert len(kept.complaints(kept.tidy(a_notebook(shows(text__plain=said, text__html=said))), 1000)) == 1
    if len(said) < 5_000:
        notebook = kept.tidy(a_notebook({"output_type": "stream", "name": "stdout", "text": said}))
        assert len(kept.complaints(notebook, 1000)) == 1


def test_stale_large_empty_and_failed_notebooks_are_told():
    notebook = kept.tidy(a_notebook(shows(text__plain="2")))
    assert kept.complaints(notebook, kept.MOST + 1) == ["it has 300,001 bytes, more than 300,000"]
    notebook.cells[0].source = "1 + 2"
    assert kept.complaints(notebook, 1000) == ["its code has changed since it was run"]
    assert "it has no outputs" in kept.complaints(kept.tidy(a_notebook()), 1000)
    failed = {"output_type": "error", "ename": "E", "evalue": "e", "traceback": []}
    assert kept.complaints(kept.tidy(a_notebook(failed)), 1000) == ["cell 1: an error or a warning"]

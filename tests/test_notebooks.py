"""The notebooks keep to their template: clean, short cells, what to notice, limits, and exercises with solutions."""

import ast
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
SAID = ("otice", "## Limits", "your own data")


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[str]:
    """Sources of the cells with a tag."""
    return [cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_keeps_to_the_template(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert notebook.cells[0].source.startswith("# ")
    assert [words for words in SAID if words not in prose] == []
    assert any("assert " in cell.source for cell in code), "a notebook asserts what it claims"
    for cell in code:
        assert not cell.outputs
        assert cell.execution_count is None
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

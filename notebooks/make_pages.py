"""Run notebooks and keep what they show: `make notebooks`.

    python notebooks/make_pages.py --out out/notebooks [notebooks/10_sparse_activations.ipynb ...]

Each notebook is run where it lies and keeps its outputs, in the form that shows without a kernel (`kept.py`). Beside
that, each becomes one page that opens without a network.
"""

import argparse
import sys
from os.path import relpath
from pathlib import Path

import kept
import nbformat
import run_demo

HERE = Path(__file__).resolve().parent


def make(path: Path, out: Path) -> tuple[Path, float, str | None]:
    """Run one notebook. Returns its page, the seconds, and what went wrong; then it is as it was."""
    from sparselens.files import write_whole

    print(path.name, flush=True)
    settings = {"SPARSELENS_OUT": relpath(out / path.stem, path.parent), "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # with another, nothing would show
    notebook, seconds, problem = run_demo.execute(settings, path.parent, path)
    notebook = kept.tidy(notebook)
    executed, page = run_demo.write(notebook, out, path)
    problem = problem or "; ".join(kept.complaints(nbformat.read(executed, as_version=4), executed.stat().st_size))
    if not problem:
        with write_whole(path) as temporary:
            temporary.write_bytes(executed.read_bytes())
    return page, seconds.get("total", 0.0), problem or None


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; 0 when all cells of all of them ran, and their outputs could be kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all beside this file")
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "notebooks", help="folder to write to")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    lines = []
    for path in options.notebooks or sorted(HERE.glob("*.ipynb")):
        page, seconds, problem = make(path.resolve(), options.out.resolve())
        failed += problem is not None
        size = path.stat().st_size / 1000
        lines.append(f"{seconds:6.0f} s {size:8,.0f} kB  {page}  {problem or ''}".rstrip())
    print("", *lines, sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Run notebooks and write each as one page that opens without a network: `make notebooks`.

    python notebooks/make_pages.py --out out/notebooks [notebooks/10_sparse_activations.ipynb ...]

No widget state is kept, so that the pages show the static form of every view. The notebooks themselves stay clean.
"""

import argparse
import sys
from pathlib import Path

import run_demo

HERE = Path(__file__).resolve().parent


def make(path: Path, out: Path) -> tuple[Path, float, str | None]:
    """Run one notebook where it lies. Returns its page, the seconds it took, and what went wrong, if a cell failed."""
    print(path.name, flush=True)
    settings = {"SPARSELENS_OUT": str(out / path.stem), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    notebook, seconds, problem = run_demo.execute(settings, path.parent, path)
    _, page = run_demo.write(run_demo.without_widgets(notebook), out, path)
    return page, seconds.get("total", 0.0), problem


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; 0 when all cells of all of them ran."""
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
        size = page.stat().st_size / 1000
        lines.append(f"{seconds:6.0f} s {size:8,.0f} kB  {page}  {problem or ''}".rstrip())
    print("", *lines, sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Run every module of a folder that starts with a prefix, and print what they return as one table."""

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparselens.files import write_whole

TESTS = Path(__file__).resolve().parent
Row = dict[str, Any]


def modules(folder: str, prefix: str, only: str = "") -> list[str]:
    """Names of the modules `tests/<folder>/<prefix>*.py` whose name after the prefix contains `only`."""
    names = (path.stem for path in (TESTS / folder).glob(f"{prefix}*.py"))
    return sorted(name for name in names if only in name.removeprefix(prefix))


def run_all(
    folder: str, prefix: str, finish: Callable[[Row], Row], only: str = ""
) -> Iterator[tuple[str, list[Row], str]]:
    """Yield name, rows and error text of each module's `run()`, which returns a row or a list of rows.

    `finish` checks and completes a row. A module that fails, or returns a row that `finish` refuses, yields no rows
    and its error; the others still run.
    """
    for name in modules(folder, prefix, only):
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        start = time.perf_counter()
        try:
            found = importlib.import_module(f"tests.{folder}.{name}").run()
            rows, error = [finish(row) for row in ([found] if isinstance(found, dict) else found)], ""
        except Exception as problem:
            traceback.print_exc()
            rows, error = [], f"{type(problem).__name__}: {problem}"
        print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
        yield name, rows, error


def check_keys(row: Row, keys: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse a row with a missing or an unknown key."""
    missing, unknown = set(keys) - set(row), set(row) - set(keys) - set(optional)
    if missing or unknown:
        raise ValueError(f"row {row}: missing {sorted(missing)}, unknown {sorted(unknown)}")


def show(value: Any) -> str:
    """A cell: numbers to four digits, yes and no, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as aligned text under a header."""
    cells = [list(columns), *([show(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def save(path: str | Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON with the versions and the machine they were taken on."""
    import os
    import platform

    import torch
    import transformers

    import sparselens

    made = {"sparselens": sparselens.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads()}
    text = json.dumps({"made_with": made, "rows": rows}, indent=2, ensure_ascii=False)
    with write_whole(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")

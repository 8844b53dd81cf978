"""Speed and memory against baselines: `python -m tests.bench [--only NAME] [--out bench.json]`.

Each `tests/benchmarks/bench_*.py` has a `run()` that returns a row or a list of rows:

    name      what was measured
    ours      our figure, a number
    baseline  the figure to compare with, taken in the same run; None where the target is about `ours` itself
    target    a comparison such as ">= 0.95", "<= 1.15" or "< 60"; it holds for ours / baseline, or for ours
    unit      of both figures, e.g. "tokens/s" (optional)
    note      how the figures were taken (optional)
"""

import argparse
import operator
import re
import sys

from tests.collect import Row, check_keys, run_all, save, table

COLUMNS = ("name", "ours", "baseline", "unit", "ratio", "target", "ok")
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def judge(row: Row) -> Row:
    """Add `ratio` and `ok` to a benchmark's row.

    Raises:
        ValueError: a key is missing or unknown, or the target is not a comparison with a number.
    """
    check_keys(row, ("name", "ours", "baseline", "target"), ("unit", "note"))
    found = re.fullmatch(r"(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:e-?\d+)?)", row["target"])
    if not found:
        raise ValueError(f"{row['name']}: the target {row['target']!r} is not a comparison such as '>= 0.95'")
    ratio = None if row["baseline"] is None else row["ours"] / row["baseline"]
    value = row["ours"] if ratio is None else ratio
    return {**row, "ratio": ratio, "ok": bool(COMPARE[found[1]](value, float(found[2])))}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; 0 when every target is reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Speed and memory against baselines.")
    parser.add_argument("--only", default="", help="run only the modules whose name contains this")
    parser.add_argument("--out", help="write the rows to this JSON file")
    options = parser.parse_args(arguments)
    rows, failed = [], []
    for name, found, error in run_all("benchmarks", "bench_", judge, options.only):
        rows += found
        failed += [f"{name}: {error}"] if error else []
    print(table(rows, COLUMNS) if rows else "No benchmarks were run.")
    print(*failed, sep="\n", end="\n" if failed else "")
    if options.out:
        save(options.out, rows)
    return int(bool(failed) or not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

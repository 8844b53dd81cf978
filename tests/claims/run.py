"""What the papers claim, checked: `python -m tests.claims.run [--only NAME] [--record] [--out claims.json]`.

With `--record` the rows of each check are kept in `tests/claims/results`, from which the documentation shows them.

Each `tests/claims/claim_*.py` has a `run()` that returns a row or a list of rows:

    paper     short name and arXiv number
    claim     the claim in one sentence
    data      what it was checked on
    seeds     how many seeds
    baseline  the baseline's figure
    result    our figure
    spread    its spread over the seeds
    holds     whether the claim holds, True or False
"""

import argparse
import sys
from pathlib import Path

from tests.collect import Row, check_keys, run_all, save, table

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("paper", "claim", "data", "seeds", "baseline", "result", "spread", "holds")


def check(row: Row) -> Row:
    """The row as it is, if it has the keys above.

    Raises:
        ValueError: a key is missing or unknown.
    """
    check_keys(row, COLUMNS)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run the claim checks; 0 when all of them ran. A claim that does not hold is a finding, not a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.claims.run", description="What the papers claim, checked.")
    parser.add_argument("--only", default="", help="run only the modules whose name contains this")
    parser.add_argument("--out", help="write the rows to this JSON file")
    parser.add_argument("--record", action="store_true", help="keep the rows for the documentation")
    options = parser.parse_args(arguments)
    rows, failed = [], []
    for name, found, error in run_all("claims", "claim_", check, options.only):
        rows += found
        if options.record and found:
            save(RESULTS / f"{name}.json", found)
        failed += [f"{name}: {error}"] if error else []
    print(table(rows, COLUMNS) if rows else "No claim checks are there yet.")
    print(*failed, sep="\n", end="\n" if failed else "")
    if options.out and rows:
        save(options.out, rows)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

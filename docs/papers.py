"""The papers: each fact is declared once in `papers.toml`, what was measured lies in `tests/claims/results`.

    python docs/papers.py          # or: make papers

writes the table into `papers.md`. The site adds the rows that the claim checks gave.
"""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FACTS, PAGE = ROOT / "docs" / "papers.toml", ROOT / "docs" / "papers.md"
RESULTS = ROOT / "tests" / "claims" / "results"
NEEDED = ("title", "authors", "year", "method", "module", "claim")
ALLOWED = (*NEEDED, "notebook", "result")
HEAD = ["| Paper | Method | Module | Notebook | Claim check | Result |", "| --- | --- | --- | --- | --- | --- |"]


def papers(path: Path = FACTS) -> dict[str, dict[str, Any]]:
    """Facts by arXiv number, in the order of the table.

    Raises:
        ValueError: a fact is missing or unknown, or holds a bar or a line break, which a table cannot.
    """
    found = tomllib.loads(path.read_text("utf-8"))
    for number, facts in found.items():
        if bad := sorted((set(NEEDED) - set(facts)) | (set(facts) - set(ALLOWED))):
            raise ValueError(f"{path.name}, {number}: missing or unknown {bad}; known: {list(ALLOWED)}")
        if bad := [name for name, said in facts.items() if set("|\n") & set(str(said))]:
            raise ValueError(f"{path.name}, {number}: a bar or a line break in {', '.join(bad)} would break the table")
    return found


def row(number: str, facts: Mapping[str, Any]) -> str:
    """One line of the table."""
    title = f"[{facts['title']}](https://arxiv.org/abs/{number}), {facts['authors']}, {facts['year']}"
    files = [f"`{facts[name]}`" if name in facts else "–" for name in ("module", "notebook", "claim")]
    return " | ".join(["| " + title, facts["method"], *files, facts.get("result", "planned") + " |"])


def table(room: str = "") -> list[str]:
    """Lines of the table: of all papers, or of those whose module is in a room."""
    chosen = {number: facts for number, facts in papers().items() if facts["module"].startswith(room)}
    return [*HEAD, *(row(number, facts) for number, facts in chosen.items())] if chosen else []


def page(text: str) -> str:
    """The text of the page with its table replaced, wherever it stands."""
    lines = text.splitlines()
    at = [i for i, line in enumerate(lines) if line.startswith("|")]
    return "\n".join([*lines[: at[0]], *table(), *lines[at[-1] + 1 :]]) + "\n"


def measured() -> str:
    """What the claim checks gave, paper by paper, as Markdown."""
    parts, listed = [], papers()
    records = {path: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    for number, facts in listed.items():
        lines = []
        for path, record in records.items():
            own = [found for found in record["rows"] if number == paper_of(found, record, listed)]
            if own:
                made = record["made_with"]
                lines += ["", f"`{path.stem}.py`, torch {made['torch']}, transformers {made['transformers']}:", "",
                          "| Claim | Data | Seeds | Baseline | Result | Spread | Holds |", "| " + "--- | " * 7,
                          *(measured_row(found, number) for found in own)]
        if lines:
            parts += [f"## {facts['title']}", f"[arXiv {number}](https://arxiv.org/abs/{number}). {facts['method']}",
                      *lines, ""]
    missing = [f"`{path.name}`" for path in sorted(RESULTS.parent.glob("claim_*.py"))
               if RESULTS / f"{path.stem}.json" not in records]
    return "\n".join([*parts, f"Not recorded yet: {', '.join(missing)}." if missing else ""])


def paper_of(found: Mapping[str, Any], record: Mapping[str, Any], listed: Mapping[str, Any]) -> str | None:
    """Number of the paper that a row is about; for one that is not in the list, that of the check it comes from."""
    named = [number for row in (found, *record["rows"]) for number in listed if number in row["paper"]]
    return named[0] if named else None


def measured_row(found: Mapping[str, Any], number: str) -> str:
    """One measured row as a line of a table; it names its paper where it is another than `number`."""
    cells = [cell(found[name]) for name in ("claim", "data", "seeds", "baseline", "result", "spread")]
    if number not in found["paper"]:
        cells[0] = f"{cell(found['paper'])}: {cells[0]}"
    return "| " + " | ".join([*cells, "yes" if found["holds"] else "**no**"]) + " |"


def cell(value: Any) -> str:
    """A value as the text of a cell: numbers to four digits, nothing that would end the cell or start a tag."""
    said = f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
    return said.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> int:
    """Write the table into the page."""
    sys.path.insert(0, str(ROOT))
    from sparselens.files import write_whole

    text = page(PAGE.read_text("utf-8"))
    with write_whole(PAGE) as temporary:
        temporary.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

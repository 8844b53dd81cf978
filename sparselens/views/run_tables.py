"""`RunTable`: what was run, with which recipe, and where it lies. No scripts, no widget."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError
from sparselens.files import write_whole
from sparselens.views.base import STATIC_BYTES
from sparselens.views.html import LINE, TABLE, TABLE_ROW, escape, fragment, heading, number, page

if TYPE_CHECKING:
    import pandas

_CELL = f"padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-top:1px solid {LINE}"


def recipe_hash(settings: Any) -> str:
    """Eight hexadecimal digits that are the same for the same settings, whatever their order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_table(runs: Sequence[Mapping[str, Any]], *, title: str | None = None) -> "RunTable":
    """Show runs, one a row.

    Args:
        runs: of each run `name`, and what is known of it: `settings` (a dict, shown as the recipe's hash with the
            settings to unfold), `seconds`, `bytes`, and any other texts and numbers.
        title: a heading.

    Raises:
        InputError: a run without a name.
    """
    for i, run in enumerate(runs):
        if not run.get("name"):
            raise InputError(f"run {i} has no name; it has {', '.join(map(str, run)) or 'nothing'}.")
    return RunTable([dict(run) for run in runs], title)


@dataclass(frozen=True, eq=False, repr=False)
class RunTable:
    """Runs to look back at; made by `run_table` or `sparselens.runs`.

    Attributes:
        runs: what is known of each.
        title: a heading, or None.
    """

    runs: list[dict[str, Any]]
    title: str | None = None

    def __repr__(self) -> str:
        return f"RunTable({len(self.runs):,} runs)"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a run; `recipe` is the hash of its settings."""
        import pandas as pd

        rows = []
        for run in self.runs:
            recipe = {"recipe": recipe_hash(run["settings"])} if "settings" in run else {}
            rows.append({"name": run["name"], **recipe,
                         **{key: value for key, value in run.items() if key not in ("name", "settings")}})
        return pd.DataFrame(rows)

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return a table, with the settings of each run to unfold. Older rows are left out where there is no room."""
        frame = self.to_frame()
        for n, unfold in ((200, True), (60, True), (60, False), (10, False), (1, False)):
            html = self._html(frame, n, unfold)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, frame: "pandas.DataFrame", n: int, unfold: bool) -> str:
        if not self.runs:
            return fragment(heading(self.title) + "<i>no run yet</i>")
        columns = list(frame.columns)
        style = "padding:3px 14px 3px 0;text-align:left"
        head = "".join(f'<th style="{style}">{escape(name, 40)}</th>' for name in columns)
        body = [head]
        for run, row in zip(self.runs[:n], frame.head(n).to_dict("records"), strict=True):
            cells = []
            for name in columns:
                said = _shown(name, row[name])
                if name == "recipe" and unfold and "settings" in run:
                    inner = escape(json.dumps(run["settings"], indent=1, default=str), 4000)
                    style = "white-space:pre-wrap;font-size:12px"
                    said = f'<details><summary>{said}</summary><div style="{style}">{inner}</div></details>'
                cells.append(f'<td style="{_CELL}">{said}</td>')
            body.append("".join(cells))
        rows = "".join(f'<tr style="{TABLE_ROW}">{cells}</tr>' for cells in body)
        left = len(self.runs) - n
        more = f'<div style="font-size:12px;opacity:.7">… and {left:,} more: see .to_frame()</div>' if left > 0 else ""
        return fragment(f'{heading(self.title)}<table style="{TABLE}">{rows}</table>{more}', width=1180)

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, path: str | Path) -> Path:
        """Write one HTML file. Returns the path.

        Raises:
            StorageError: the disk is full or not writable.
        """
        with write_whole(path) as temporary:
            temporary.write_text(page(self.title or "Runs", self.to_html()), encoding="utf-8")
        return Path(path)


def _shown(name: str, value: Any) -> str:
    if value is None or value != value:  # nothing, or NaN
        return "–"
    if name == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if name == "seconds":
        return f"{value:,.1f} s"
    if isinstance(value, float):
        return number(value)
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value, 120)

"""Texts from files, and the answers that come with the project."""

import csv
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.errors import FileFormatError, InputError, closest

if TYPE_CHECKING:
    import pandas

STYLES = ("formal", "chatty")
_PACKAGE = Path(__file__).resolve().parent.parent
_KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_texts(path: str | Path, field: str = "text") -> "pandas.DataFrame":
    """Read a file of texts: a row each, numbered from 0, with all the file's columns.

    Which reader is used follows from the name: `.txt` (a text per line; blank lines are skipped; the column
    gets the name `field`), `.jsonl` (an object or a string per line; blank lines are skipped), `.json` (one
    list of objects or strings), `.csv`, `.tsv` (first row: names) or `.parquet`. All but Parquet are UTF-8
    and may end in `.gz`.

    Args:
        path: the file.
        field: the column that holds the texts. Texts are kept as they stand: "007" and "NA" stay strings.

    Raises:
        InputError: no such file, unknown ending, no such column, no rows, or a row without a text.
        FileFormatError: the file is damaged or not what its name says.
    """
    import pandas as pd

    path = Path(path).expanduser()
    kind = _kind(path)
    try:
        if kind == ".parquet":
            frame = _parquet(path, field)
        elif kind in {".csv", ".tsv"}:
            frame = _table(path, field, "," if kind == ".csv" else "\t")
        else:
            frame = pd.DataFrame(_records(path, kind, field))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path} could not be read as UTF-8 {kind} ({error}). Save it as UTF-8; if it "
                              "ends in .gz, check that it was copied whole.") from error
    if frame.empty:
        raise InputError(f"{path} holds no texts.")
    _check_texts(frame, field, path)
    return frame.reset_index(drop=True)


def load_answers(style: str) -> "pandas.DataFrame":
    """Short answers that SmolLM2-135M-Instruct wrote to 320 everyday prompts, in one of two voices.

    Both sets answer the same prompts in the same order; only the instructions differ. The card beside the
    data, `data/answers/README.md`, tells how they were made.

    Args:
        style: "formal" (an impersonal butler) or "chatty" (a bubbly friend).

    Returns:
        A frame with the columns `id` (number of the prompt), `system` (the style), `prompt` and `answer`.

    Raises:
        InputError: unknown style.
    """
    if style not in STYLES:
        valid = ", ".join(STYLES)
        raise InputError(f"style={style!r} is unknown; valid are {valid}.{closest(style, STYLES)}")
    return read_texts(_shipped("answers", f"{style}.jsonl"), field="answer")


def load_chains() -> "pandas.DataFrame":
    """400 chains of thought that SmolLM2-135M-Instruct wrote to 100 made-up word problems, four to each, with verdicts.

    `sl.read_traces(load_chains())` cuts them into steps. Nine in ten are wrong. The card beside the data,
    `data/chains/README.md`, tells how they were made and chosen.

    Returns:
        A frame with the columns `problem`, `question`, `text`, `model` and `verdict` (is the last number the answer?).
    """
    return read_texts(_shipped("chains", "smollm2-135m-instruct.jsonl.gz"))


def _shipped(folder: str, name: str) -> Path:
    """A file that comes with the project, from an installation or a checkout."""
    places = [_PACKAGE / "_data" / folder, _PACKAGE.parent / "data" / folder]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise InputError(f"the file {name} is not in this installation; looked in {' and '.join(map(str, places))}. "
                         "Install sparselens again.")
    return found


def _kind(path: Path) -> str:
    """The ending that says how to read the file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one of the files in it.")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise InputError(f"{path} does not exist.{closest(path.name, beside)}")
    packed = path.suffix.lower() == ".gz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind not in _KINDS or (packed and kind == ".parquet"):
        raise InputError(f"{path.name}: unknown ending; texts are read from {', '.join(_KINDS)} (all but "
                         ".parquet also with .gz).")
    return kind


def _open(path: Path) -> Any:
    # utf-8-sig also reads plain UTF-8; spreadsheets like to put the mark in front
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _records(path: Path, kind: str, field: str) -> list[dict[str, Any]]:
    """Rows of the formats without columns of their own."""
    with _open(path) as handle:
        content = handle.read()
    # split at line ends only: str.splitlines would also cut at U+2028, which JSON allows inside a string
    lines = [(i, line.strip("\r")) for i, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if kind == ".txt":
        return [{field: line} for _, line in lines]
    if kind == ".jsonl":
        return [_record(_parse(line, f"{path}, line {i}"), field, f"{path}, line {i}") for i, line in lines]
    if not lines:
        return []
    rows = _parse(content, str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a JSON {type(rows).__name__}; give a list of objects or strings.")
    return [_record(row, field, f"{path}, item {i}") for i, row in enumerate(rows)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{where}: not valid JSON ({error}).") from error


def _record(row: Any, field: str, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {field: row}
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, where an object or a string is needed.")
    return row


def _table(path: Path, field: str, separator: str) -> "pandas.DataFrame":
    import pandas as pd

    try:
        with _open(path) as handle:
            names = pd.read_csv(handle, sep=separator, nrows=0, index_col=False).columns
            handle.seek(0)
            # the texts are kept as they stand, also "NA" and "007"; the other columns get their usual types
            blank = {name: [""] for name in names if name != field}
            return pd.read_csv(handle, sep=separator, dtype={field: str} if field in names else None,
                               keep_default_na=False, na_values=blank, index_col=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (pd.errors.ParserError, csv.Error) as error:
        problem = str(error).strip()
        raise FileFormatError(f"{path} is not a table with the separator {separator!r} ({problem}). Quote "
                              "texts that hold the separator or a line end.") from error


def _parquet(path: Path, field: str) -> "pandas.DataFrame":
    import pandas as pd
    import pyarrow

    try:
        return pd.read_parquet(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise FileFormatError(f"{path} is not a whole Parquet file ({error}).") from error


def _check_texts(frame: "pandas.DataFrame", field: str, path: Path) -> None:
    import pandas as pd

    columns = [str(name) for name in frame.columns]
    if field not in columns:
        near = closest(field, columns)
        raise InputError(f"{path} has no column {field!r}; it has {', '.join(columns)}.{near}")
    for i, value in enumerate(frame[field]):
        if isinstance(value, str) and value.strip():
            continue
        if isinstance(value, str):
            problem = "blank"
        elif value is None or value is pd.NA or (isinstance(value, float) and value != value):
            problem = "missing"
        else:
            problem = f"{value!r} of type {type(value).__name__}"
        raise InputError(f"{path}, row {i} (from 0): {field!r} is {problem}, and a text is needed. Drop or "
                         "convert such rows.")

"""Texts from files, the answers that come with the project, and generated data whose truth is known."""

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import FileFormatError, InputError, closest

if TYPE_CHECKING:
    import pandas

STYLES = ("formal", "chatty")
_PACKAGE = Path(__file__).resolve().parent
_KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


#: Family -> templates and the words of their two slots. The last template and the last four words of the second slot
#: are for the examples alone.
_FAMILIES: dict[str, tuple[list[str], list, list]] = {
    "arithmetic": (
        ["What is {a} plus {b}?", "Work out {a} times {b}.", "Subtract {b} from {a} and give the result.",
         "Divide {a} by {b}.", "If I have {a} coins and lose {b}, how many are left?"],
        list(range(12, 99, 3)), list(range(2, 12))),
    "translation": (
        ["Translate '{a}' into {b}.", "How do you say '{a}' in {b}?", "Give the {b} for the phrase '{a}'.",
         "I want to learn {b}. Tell me the words for '{a}'.", "Write '{a}' as a native speaker of {b} would."],
        ["good morning", "where is the station", "I am hungry", "see you soon", "thank you"],
        ["French", "German", "Spanish", "Italian", "Polish", "Dutch", "Greek", "Swedish", "Turkish", "Danish"]),
    "code": (
        ["Write a Python function that {a} a {b}.", "Show code that {a} a {b} in Java.",
         "Fix my script; it never {a} the {b}.", "Which library call {a} a {b}?",
         "Debug this loop, which {a} every {b}."],
        ["sorts", "reverses", "copies", "prints", "parses"],
        ["list", "string", "dictionary", "file", "matrix", "queue", "tuple", "array", "stack", "tree"]),
    "cooking": (
        ["How long should I {a} {b}?", "Suggest a recipe in which I {a} {b}.", "What spices go well when I {a} {b}?",
         "At what heat do I {a} {b}?", "My guests arrive at eight; must I {a} {b} before?"],
        ["roast", "boil", "fry", "bake", "steam"],
        ["potatoes", "carrots", "chicken", "salmon", "pumpkin", "rice", "beans", "lamb", "onions", "apples"]),
    "sport": (
        ["Who won the {b} in {a}?", "Explain the rules of {a} at the {b}.", "How many teams play {a} in the {b}?",
         "When does the {a} {b} begin?", "Name a famous {a} player from the {b}."],
        ["football", "tennis", "hockey", "rugby", "basketball"],
        ["world cup", "final", "olympics", "league", "championship", "open", "play-offs", "derby", "cup", "season"]),
    "poetry": (
        ["Write a {a} poem about {b}.", "Compose a haiku on {b} that feels {a}.", "Give me two {a} verses on {b}.",
         "I would like a {a} sonnet on {b}.", "Rhyme a {a} stanza with {b} in it."],
        ["sad", "joyful", "short", "tender", "dark"],
        ["the sea", "autumn", "my mother", "the moon", "a river", "silence", "a bird", "snow", "the wind", "home"]),
}


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
    places = [_PACKAGE / "_data" / "answers", _PACKAGE.parent / "data" / "answers"]
    folder = next((place for place in places if (place / f"{style}.jsonl").is_file()), None)
    if folder is None:
        raise InputError(f"the file {style}.jsonl is not in this installation; looked in "
                         f"{' and '.join(map(str, places))}. Install sparselens again.")
    return read_texts(folder / f"{style}.jsonl", field="answer")


def sparse_mixture(n: int, d: int, n_features: int, k: int, seed: int = 0) -> tuple[
    Float[Tensor, "n d"], Float[Tensor, "n_features d"], Float[Tensor, "n n_features"]
]:
    """Vectors that are sums of a few directions of a known dictionary, for a sparse autoencoder to recover.

    Each row adds `k` different directions, drawn evenly, with strengths drawn evenly from 0.5 to 1.5.

    Args:
        n: number of vectors.
        d: their size.
        n_features: number of directions; more than `d` makes the dictionary overcomplete.
        k: directions in a row.
        seed: seed of its own generator; the global one is left alone.

    Returns:
        `x = codes @ dictionary`, the dictionary (rows of norm 1) and the codes, all float32.

    Raises:
        InputError: a size below 1, or `k` above `n_features`.
    """
    if min(n, d, n_features, k) < 1 or k > n_features:
        raise InputError(f"n={n}, d={d}, n_features={n_features}, k={k}: all must be at least 1, and k at "
                         "most n_features.")
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
    active = torch.rand(n, n_features, generator=generator).topk(k, dim=1).indices
    strength = torch.rand(n, k, generator=generator) + 0.5
    codes = torch.zeros(n, n_features).scatter(1, active, strength)
    return codes @ dictionary, dictionary, codes


def concept_tree(n: int, parent_mix: float = 0.0, child_mix: float = 0.0, seed: int = 0) -> tuple[
    Float[Tensor, "n 20"], Float[Tensor, "20 20"], Float[Tensor, "n 20"]
]:
    """Make rows whose 20 concepts form a tree: a child is active only together with its parent (Costa et al., 2025).

    Concepts 0, 1, 2 are parents, 3 to 11 their children (three each, in order), 12 to 19 have no relatives. A row has
    exactly one of the parents (a fifth of the rows each) or of the others (a twentieth each); a parent brings one of
    its children in three rows of five. Strengths are 1.5 with a standard deviation of 0.25.

    Args:
        n: number of rows.
        parent_mix, child_mix: how far the directions of top-level concepts, and of siblings, are moved towards the mean
            of the others of their group (0: all are orthogonal).
        seed: seed of its own generator.

    Returns:
        `x = codes @ dictionary`, the dictionary (rows of norm 1) and the codes, all float32.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    groups = [([0, 1, 2, *range(12, 20)], parent_mix), *(([3 * p + i for i in (3, 4, 5)], child_mix) for p in range(3))]
    for members, mix in groups:
        group = rows[members]
        others = (group.sum(0) - group) / (len(members) - 1)
        rows[members] = torch.nn.functional.normalize((1 - mix) * group + mix * others, dim=1)
    top = torch.multinomial(torch.tensor([0.2] * 3 + [0.05] * 8), n, replacement=True, generator=generator)
    child = torch.multinomial(torch.tensor([0.2, 0.2, 0.2, 0.4]), n, replacement=True, generator=generator)
    active = torch.zeros(n, 20)
    active[torch.arange(n), torch.where(top < 3, top, top + 9)] = 1
    brings = (top < 3) & (child < 3)
    active[brings.nonzero().flatten(), (3 + 3 * top + child)[brings]] = 1
    codes = active * (1.5 + 0.25 * torch.randn(n, 20, generator=generator))
    return codes @ rows, rows, codes


RECALL_KEYS, RECALL_FILLERS = 24, 12
RECALL_MASK = 2 * RECALL_KEYS + RECALL_FILLERS  # the last token; `recall_rows` never writes it
RECALL_VOCAB = RECALL_MASK + 1


def recall_rows(
    n: int, *, pairs: int = 20, facts: int = 96, gap: int = 0, queries: int = 16, interleaved: bool = False,
    seed: int = 0,
) -> tuple[Int[Tensor, "n pos"], int]:
    """Rows to look things up in: keys, each followed by its value, among filler; then keys to answer with their values.

    Tokens: 24 keys, 24 values, 12 fillers, and a mask that is not used here. A key has another value in each row, so
    the answer can only be read off the row.

    Args:
        n: rows.
        pairs: keys with a value, at most 24.
        facts: tokens of the part that holds them.
        gap: filler tokens after it.
        queries: keys asked for, each once; at most `pairs`.
        interleaved: each asked key is followed by its value, for causal models; else all values come after all keys.
        seed: of everything.

    Returns:
        ids `[n, pos]`, and the number of tokens before the first answer (interleaved: before the first query).

    Raises:
        InputError: more pairs than keys or room, or more queries than pairs.
    """
    if not 0 < queries <= pairs <= min(RECALL_KEYS, facts // 2):
        raise InputError(f"pairs={pairs} and queries={queries}: at least one query, no more queries than pairs, and at "
                         f"most {min(RECALL_KEYS, facts // 2)} pairs ({RECALL_KEYS} keys; two tokens each in {facts}).")
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices: int, count: int) -> Tensor:
        """`count` different numbers below `choices` in each row."""
        return torch.rand(n, choices, generator=generator).argsort(1)[:, :count]

    keys = drawn(RECALL_KEYS, pairs)
    values = torch.randint(RECALL_KEYS, 2 * RECALL_KEYS, (n, pairs), generator=generator)
    body = torch.randint(2 * RECALL_KEYS, RECALL_MASK, (n, facts + gap), generator=generator)
    places = 2 * drawn(facts // 2, pairs)
    body.scatter_(1, places, keys).scatter_(1, places + 1, values)
    asked = drawn(pairs, queries)
    asked_keys, answers = keys.gather(1, asked), values.gather(1, asked)
    if interleaved:
        return torch.cat([body, torch.stack([asked_keys, answers], -1).flatten(1)], 1), facts + gap
    return torch.cat([body, asked_keys, answers], 1), facts + gap + queries


def instruction_families(seed: int = 0) -> "pandas.DataFrame":
    """Return 720 short instructions of six families: a pool to choose from, and a few examples of each to choose by.

    The examples have a template and words of their own, so that no word but those of the family's matter leads from
    them to the pool.

    Returns:
        Columns `text`, `family` and `part`: "pool" (100 a family, first) or "example" (20 a family).
    """
    import numpy as np
    import pandas as pd

    random, rows = np.random.default_rng(seed), []
    for family, (templates, a, b) in _FAMILIES.items():
        pool = [t.format(a=x, b=y) for t, x, y in itertools.product(templates[:-1], a, b[:-4])]
        examples = [templates[-1].format(a=x, b=y) for x, y in itertools.product(a, b[-4:])]
        rows += [(text, family, "pool") for text in random.permutation(pool)[:100].tolist()]
        rows += [(text, family, "example") for text in random.permutation(examples)[:20].tolist()]
    frame = pd.DataFrame(rows, columns=["text", "family", "part"])
    return frame.sort_values("part", ascending=False, kind="stable", ignore_index=True)


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

"""The rules of the house: one-way imports, small modules, light import, no unsafe loading, documents that keep up."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import sparselens
from sparselens import errors
from tests.claims.run import COLUMNS as ROW_KEYS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparselens"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Rooms from left to right. A room may import common ground and rooms of a column further left.
COLUMNS = (
    {"models"},
    {"attach"},
    {"sae", "attention", "activation", "weights", "experts"},
    {"measure", "embeddings", "reasoning", "probing", "circuits", "autointerp"},
)
RANK = {room: rank for rank, column in enumerate(COLUMNS) for room in column}
ALONE = {"views", "datasets", "costs"}  # import no room
COMMON = {"errors", "files"}
# Imports inside a function, or for the type checker only, may also go to the right here and nowhere else.
LATE = {("models", "attach"), ("attach", "measure"), ("embeddings", "datasets"), ("sae", "datasets"),
        ("attention", "costs")}
LATE |= {(room, "views") for room in RANK}

MAX_MODULE, MAX_FUNCTION = 400, 60
HEAVY = ("transformer_lens", "nnsight", "anywidget", "ipywidgets", "pandas", "matplotlib", "transformers", "sklearn",
         "scipy", "pyarrow", "IPython")
MAX_IMPORT_SECONDS = 0.3


# --- one-way imports ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """`source` imports `target`, both room names; `late` when it happens in a function or for types only."""

    source: str
    target: str
    late: bool
    where: str


def room_of(module: str) -> str:
    """`"sparselens.sae.store"` -> `"sae"`; the package itself -> `""`."""
    return (module.split(".") + [""])[1]


def imported_modules(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Full names that an import statement names, relative ones resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parent = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parent, base] if base else parent)
    return [f"{base}.{alias.name}" for alias in node.names] if base == "sparselens" else [base]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk_imports(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every import statement below `node`, with whether it is late."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
        yield from walk_imports(child, late or inner)


def room_imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Imports between rooms in the text of one module."""
    found = []
    for node, late in walk_imports(ast.parse(source)):
        for name in imported_modules(node, module, is_package):
            if name.split(".")[0] == "sparselens":
                found.append(Import(room_of(module), room_of(name), late, f"{module}:{node.lineno}"))
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def allowed(found: Import) -> bool:
    """Whether an import keeps to the one-way rule."""
    source, target = found.source, found.target
    if target == source or target in COMMON or target == "__version__":
        return True
    if source in ALONE | COMMON or not target:
        return False
    if source not in RANK:  # the package itself and its command line stand right of every room
        return True
    if target in RANK and RANK[target] < RANK[source]:
        return True
    return found.late and (source, target) in LATE


def test_every_room_has_a_place():
    rooms = {room_of(module_name(path)) for path in MODULES} - {"", "__main__"}
    assert rooms <= set(RANK) | ALONE | COMMON


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path: Path):
    imports = room_imports(path.read_text("utf-8"), module_name(path), path.name == "__init__.py")
    assert [found for found in imports if not allowed(found)] == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=module_name)
def test_a_room_lists_its_names_lazily_and_does_nothing_else(path: Path):
    tree = ast.parse(path.read_text("utf-8"))
    imported = [name for node, _ in walk_imports(tree) for name in imported_modules(node, module_name(path), True)]
    assert imported == ["lazy_loader"]
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


@pytest.mark.parametrize(
    ("module", "source", "kept"),
    [
        ("sparselens.sae.store", "from sparselens.models.batches import Batch", True),
        ("sparselens.sae.store", "from ..attach import edit", True),
        ("sparselens.sae.store", "from . import latents", True),
        ("sparselens.sae.store", "from sparselens.embeddings import diff", False),
        ("sparselens.sae.store", "def f():\n    import sparselens.measure.fvu", False),
        ("sparselens.sae.store", "from sparselens.attention import pattern", False),
        ("sparselens.sae.store", "import sparselens as sl", False),
        ("sparselens.sae.store", "from sparselens import measure", False),
        ("sparselens.sae.store", "from sparselens.views import html", False),
        ("sparselens.sae.store", "def f():\n    from sparselens.views import html", True),
        ("sparselens.models.live", "from sparselens.attach import edit", False),
        ("sparselens.models.live", "if TYPE_CHECKING:\n    from sparselens.attach import Lens", True),
        ("sparselens.views.html", "def f():\n    from sparselens.models import LiveModel", False),
        ("sparselens.embeddings.documents", "def f():\n    from sparselens.datasets import read_texts", True),
        ("sparselens.embeddings.documents", "from sparselens.datasets import read_texts", False),
        ("sparselens.costs.decode", "from sparselens.measure import compare", False),
        ("sparselens.measure.l0", "from sparselens.errors import InputError", True),
        ("sparselens.measure.l0", "from sparselens.datasets import planted", False),
    ],
)
def test_the_import_rule_itself(module: str, source: str, kept: bool):
    found = room_imports(source, module)
    assert len(found) == 1
    assert allowed(found[0]) is kept


# --- size --------------------------------------------------------------------------------------------------------


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        length -= first.end_lineno - first.lineno + 1
    return length


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_functions_stay_small(path: Path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) < MAX_MODULE
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name: code_lines(f) for f in functions if code_lines(f) >= MAX_FUNCTION} == {}


# --- import cost -------------------------------------------------------------------------------------------------

MEASURE = """
import sys, time, torch
before = set(sys.modules)
start = time.process_time()
import sparselens
spent = time.process_time() - start
print(spent, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_is_light():
    best = float("inf")
    for _ in range(3):  # the least of three; a busy machine may slow one
        run = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True)
        spent, *modules = run.stdout.split()
        assert set(modules) & set(HEAVY) == set()
        best = min(best, float(spent))
        if best < MAX_IMPORT_SECONDS:
            break
    assert best < MAX_IMPORT_SECONDS


# --- what no file of the project says ------------------------------------------------------------------------------

TEXT = {".py", ".ipynb", ".md", ".toml", ".yml", ".yaml", ".json", ".js", ".css", ".txt", ".cfg", ""}
SKIP = {"__pycache__", "build", "dist", "site", "out", "demo_out"}
CODE = {".py", ".ipynb"}
# Written so that no pattern matches its own text.
EVERYWHERE = {
    "a path of one machine": r"(?<![\w.:/~-])/(?:home|root|tmp|opt|work|mnt|srv|Users)/[\w.-]+",
    "a registry host": r"(?:pypi|pythonhosted|download\.pytorch|registry\.npmjs|conda\.anaconda)[.](?:org|com)\b",
    "remote code switched on": r"trust_remote_code['\"]?\s*[=:]\s*(?:True|true)",
}
IN_CODE = {
    "an unsafe format": r"^\s*(?:import|from)\s+(?:c?[Pp]ickle|dill|cloudpickle|joblib|shelve)\b",
    "an array file that may hold objects": r"allow_pickle\s*=\s*True",
    "torch.load of anything": r"torch\.load\((?![^)]*weights_only\s*=\s*True)",
}


def project_files() -> list[Path]:
    """Text files of the project: no hidden folders but `.ci`, nothing built. Texts kept as data are `.jsonl`."""
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        if path.is_file() and path.name != ".git" and path.suffix in TEXT and not hidden and not SKIP & set(parts):
            found.append(path)
    return sorted(found)


def text_of(path: Path) -> str:
    """The file's text; of a notebook its cells, one below the other."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def complaints(text: str, code: bool) -> list[str]:
    """What a text says that it must not."""
    rules = EVERYWHERE | IN_CODE if code else EVERYWHERE
    return [f"{why}: {hit[0]}" for why, rule in rules.items() for hit in re.finditer(rule, text, re.MULTILINE)]


def test_no_file_names_a_machine_or_loads_unsafely():
    found = {str(path.relative_to(ROOT)): complaints(text_of(path), path.suffix in CODE) for path in project_files()}
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "text",
    [
        "open('" + "/home" + "/someone/x')",
        "index = 'https://pypi" + ".org/simple'",
        "load(name, trust_remote_code" + "=True)",
        "import " + "pickle",
        "from " + "joblib import load",
        "x = torch" + ".load(path)",
        "x = torch" + ".load(path, map_location='cpu')",
    ],
)
def test_the_file_rules_themselves(text: str):
    assert complaints(text, code=True)
    assert not complaints("torch" + ".load(path, weights_only=True)  # see https://example.org/home/page", code=True)


# --- documents that keep up --------------------------------------------------------------------------------------


def paper_rows() -> list[list[str]]:
    """Cells of the rows of `docs/papers.md`, header and ruler left out."""
    lines = [line for line in (ROOT / "docs" / "papers.md").read_text("utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_papers_have_one_row_each():
    rows = paper_rows()
    assert len(rows) == 47
    assert {len(row) for row in rows} == {6}
    assert len({row[0] for row in rows}) == 47
    ids = [re.search(r"abs/(\d{4}\.\d{5})", row[0])[1] for row in rows]
    assert len(set(ids)) == 47


def test_a_paper_that_is_not_planned_names_files_that_exist():
    for title, _method, module, notebook, claim, result in paper_rows():
        if result != "planned":
            cells = ((PACKAGE, module), (ROOT / "tests" / "claims", claim), (ROOT / "notebooks", notebook))
            assert "–" not in (module, claim), "a result needs a module and a claim check; a notebook may be missing"
            places = [folder / re.sub(r".*`(.+?)`.*", r"\1", cell) for folder, cell in cells if cell != "–"]
            assert [place for place in places if not place.exists()] == []
            number = re.search(r"abs/(\d{4}\.\d{5})", title)[1]
            assert number in places[0].read_text("utf-8"), f"{module} does not name its paper, arXiv {number}"


def papers_module() -> ModuleType:
    """`docs/papers.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("papers", ROOT / "docs" / "papers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_papers_is_made_from_their_facts():
    text = (ROOT / "docs" / "papers.md").read_text("utf-8")
    assert papers_module().page(text) == text, "edit docs/papers.toml, not the table, then run `make papers`"


def test_what_claim_checks_gave_is_recorded_under_a_paper_and_a_check_that_exist():
    records = sorted((ROOT / "tests" / "claims" / "results").glob("*.json"))
    assert records
    papers = papers_module()
    listed, shown = papers.papers(), papers.measured()
    for path in (ROOT / "tests" / "claims").glob("claim_*.py"):
        assert f"`{path.name}`" in shown, "recorded, or said to be missing"
    for path in records:
        assert (ROOT / "tests" / "claims" / f"{path.stem}.py").exists(), f"{path.name} has no check any more"
        record = json.loads(path.read_text("utf-8"))
        for found in record["rows"]:
            assert set(found) == set(ROW_KEYS)
            assert papers.paper_of(found, record, listed), f"{path.name}: no paper of the list: {found['paper']}"
            assert papers.cell(found["claim"]) in shown


def test_the_papers_module_itself(tmp_path):
    papers = papers_module()
    facts = {"title": "T", "authors": "A", "year": 2024, "method": "m", "module": "sae/x.py", "claim": "claim_x.py"}
    assert papers.row("2401.00001", facts) == (
        "| [T](https://arxiv.org/abs/2401.00001), A, 2024 | m | `sae/x.py` | – | `claim_x.py` | planned |")
    assert papers.row("2401.00001", facts | {"result": "0.5", "notebook": "01.ipynb"}).endswith(
        "| `sae/x.py` | `01.ipynb` | `claim_x.py` | 0.5 |")
    measured = dict.fromkeys(ROW_KEYS, "a|b") | {"result": 0.123456, "spread": None, "holds": False}
    assert papers.measured_row(measured, "a|b") == (
        "| a\\|b | a\\|b | a\\|b | a\\|b | 0.1235 | – | **no** |")
    assert papers.measured_row(measured | {"paper": "X"}, "2401.00001").startswith("| X: a\\|b |")
    for wrong in ('["1"]\ntitle = "T"\n', '["1"]\n' + "\n".join(f'{name} = "a|b"' for name in papers.NEEDED)):
        (tmp_path / "p.toml").write_text(wrong)
        with pytest.raises(ValueError, match="p.toml, 1: "):
            papers.papers(tmp_path / "p.toml")


def error_classes() -> list[type]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SparselensError)]


def test_every_error_and_every_room_has_a_page_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [f"errors/{error.__name__}.md" for error in error_classes()]
    pages += [f"rooms/{room}.md" for room in sorted(set(RANK) | ALONE)]
    assert [page for page in pages if page not in menu or not (ROOT / "docs" / page).exists()] == []


@pytest.mark.parametrize("name", sorted(sparselens.__all__))
def test_every_public_name_is_explained(name: str):
    value = getattr(sparselens, name)
    own = value.__dict__.get("__doc__") if isinstance(value, type) else value.__doc__
    assert own and len(own.split()) >= 3

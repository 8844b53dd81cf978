"""Pages that derive from the code: the site table, the public names of a room, the notebooks.

A page says `<!-- sites -->`, `<!-- names: sae -->`, `<!-- paper rows: sae -->`, `<!-- measured -->` or
`<!-- file: CHANGELOG.md -->`; the text is put there when the site is built, so it cannot fall behind.
"""

import ast
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # for the module beside this one

import papers  # noqa: E402

MARK = re.compile(r"^<!-- ([a-z ]+?)(?:: ?(\S+))? -->$", re.MULTILINE)


def sites() -> str:
    """The site table as Markdown."""
    from sparselens.models.sites import KINDS

    rows = ["| Name | Shape | Meaning | Also called |", "| --- | --- | --- | --- |"]
    for kind in KINDS:
        others = ", ".join(f"`{alias}`" for alias in kind.aliases)
        rows.append(f"| `{kind.name}` | `{kind.shape}` | {kind.meaning} | {others} |")
    return "\n".join(rows)


def names(room: str) -> str:
    """A documentation entry for every public name of a room: `sae` is a folder, `attach` a single module."""
    folder = ROOT / "sparselens" / room
    if not folder.is_dir():
        return f"::: sparselens.{room}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false"
    tree = ast.parse((folder / "__init__.py").read_text("utf-8"))
    listed = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "submod_attrs"]
    modules = {name: module for module, own in ast.literal_eval(listed[0]).items() for name in own}
    ordered = sorted(modules, key=lambda name: (name.lower() == name, name.lower()))
    return "\n\n".join(f"::: sparselens.{room}.{modules[name]}.{name}" for name in ordered)


def paper_rows(room: str) -> str:
    """The rows of the papers table whose module is in a room."""
    return "\n".join(papers.table(f"{room}/")) or "No paper of the table has its module here."


def notebook_list() -> str:
    """A line for each notebook: its title and the question it answers."""
    import json

    lines = []
    for path in notebooks():
        first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        title, _, rest = first.partition("\n")
        question = " ".join(rest.strip().split("\n\n")[0].split())
        lines.append(f"- [{title.lstrip('# ')}](notebooks/{path.name}): {question}")
    return "\n".join(lines)


def file(path: str) -> str:
    """The text of a file of the project."""
    return (ROOT / path).read_text("utf-8")


SOURCES = {"sites": sites, "names": names, "paper rows": paper_rows, "file": file,
           "notebook list": notebook_list, "measured": papers.measured}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the marks of a page. An unknown mark is an error."""
    return MARK.sub(lambda found: SOURCES[found[1]](*filter(None, [found[2]])), markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks into the menu, after the start page."""
    found = [{path.stem.replace("_", " "): f"notebooks/{path.name}"} for path in notebooks()]
    if found:
        config.nav.insert(1, {"Notebooks": found})
    return config


@event_priority(100)  # before the notebook plugin looks for its files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks, which lie outside the folder of the pages."""
    for path in notebooks():
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def notebooks() -> list[Path]:
    """The project's notebooks in reading order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))

"""Notebooks in which each section that puts something on a model is run twice: `python -m tests.rerun --out FOLDER`.

A reader runs cells again, in no particular order. What was attached must have come off, and the results be the same.
The copies written here say so themselves: they are run by nbmake, in place of the notebooks they are made from. A cell
tagged `timed` may give other numbers, since it measures time.
"""

import argparse
import ast
import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
ATTACHES = re.compile(r"\b(attach|fidelity|sweep|frontier|intervention_panel|channels|masks|landscape|watch_steps"
                      r"|retrieve|feature_card|poles)\(|\bscore\(m\b")
HEADING = re.compile(r"^## ", re.MULTILINE)
START = """import sys
sys.path.insert(0, {root!r})
from tests import rerun
_section = rerun.Section(globals(), {names!r})"""


def sections(cells: list[Any]) -> list[list[Any]]:
    """The cells from heading to heading, in order."""
    parts: list[list[Any]] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            parts.append([])
        parts[-1].append(cell)
    return parts


def twice(notebook: Any) -> int:
    """Write the checks into a notebook. Returns how many sections are run twice."""
    cells, count = [], 0
    for part in sections(notebook.cells):
        code = [cell for cell in part if cell.cell_type == "code"]
        exercise = part and "## Exercises" in part[0].source
        if exercise or not any(ATTACHES.search(cell.source) for cell in code):
            cells += part
            continue
        names = assigned(cell.source for cell in code if "timed" not in cell.metadata.get("tags", []))
        count += 1
        again = [nbformat.v4.new_code_cell(cell.source) for cell in code]
        cells += [nbformat.v4.new_code_cell(START.format(root=str(ROOT), names=names)), *part,
                  nbformat.v4.new_code_cell("_section.first()"), *again,
                  nbformat.v4.new_code_cell("_section.second()")]
    notebook.cells = cells
    return count


def assigned(sources: Iterable[str]) -> list[str]:
    """Names that cells bind outside functions."""
    found = set()
    for source in sources:
        tree = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))
        inner = {id(node) for outer in ast.walk(tree)
                 if isinstance(outer, ast.FunctionDef | ast.Lambda | ast.ListComp | ast.DictComp | ast.SetComp
                               | ast.GeneratorExp) for node in ast.walk(outer) if node is not outer}
        found |= {node.id for node in ast.walk(tree)
                  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in inner}
    return sorted(found)


class Section:
    """What a section binds and how it leaves the models, the first and the second time.

    Args:
        scope: the variables of the notebook.
        names: those that the section binds.
    """

    def __init__(self, scope: dict[str, Any], names: list[str]):
        self.scope, self.names = scope, names
        self.before = self._models()
        self.seen: dict[str, str] = {}

    def first(self) -> None:
        """After the first run: models that were there are as before."""
        self._check_models("after the section ran")
        self.before = self._models()
        self.seen = self._values()

    def second(self) -> None:
        """After the second run: models are as before, and the same came out."""
        self._check_models("after the section ran a second time")
        other = [name for name, value in self._values().items() if self.seen.get(name) != value]
        assert not other, f"run a second time, the section gives something else for {', '.join(other)}"

    def _values(self) -> dict[str, str]:
        return {name: fingerprint(self.scope[name]) for name in self.names if name in self.scope}

    def _models(self) -> dict[str, str]:
        from sparselens.models.live import LiveModel

        found = {name: getattr(value, "live", value) for name, value in self.scope.items()}
        return {name: state(model) for name, model in found.items() if isinstance(model, LiveModel)}

    def _check_models(self, when: str) -> None:
        now = self._models()
        changed = [name for name, was in self.before.items() if name in now and now[name] != was]
        assert not changed, f"{when}, {', '.join(changed)} is not as it was before: hooks, weights or attention differ"


def state(model: Any) -> str:
    """Hooks, weights and settings of a live model in a few characters."""
    import torch

    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [len(getattr(part, kind)) for part in model.module.modules() for kind in kinds]
    said = [(name, p.requires_grad, p.detach().contiguous().view(torch.uint8).to(torch.int64).sum().item())
            for name, p in model.module.named_parameters()]
    return digest(repr((sum(hooks), model.module.training, model.module.config._attn_implementation, said)).encode())


def digest(data: bytes) -> str:
    """A short name for bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(value: Any, depth: int = 6) -> str:
    """A value in a few characters: equal for equal numbers, texts, arrays, tables and objects of them.

    Functions, modules and models say nothing but their kind.
    """
    import numpy as np
    import pandas as pd
    import torch

    kind = type(value).__name__
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path | np.generic):
        return f"{kind} {value!r}"
    if isinstance(value, torch.Tensor):
        return fingerprint(value.detach().float().numpy(), depth)
    if isinstance(value, np.ndarray):
        return f"{kind} {value.shape} {digest(repr(value.tolist()).encode())}"
    if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        axes = [fingerprint(axis.to_numpy()) for axis in getattr(value, "axes", [])]
        return f"{kind} {digest(repr((axes, value.to_numpy().tolist())).encode())}"
    if depth == 0 or callable(value) or isinstance(value, torch.nn.Module):
        return kind
    if isinstance(value, Mapping):
        return digest(repr([(fingerprint(k, depth - 1), fingerprint(v, depth - 1)) for k, v in value.items()]).encode())
    if isinstance(value, list | tuple):
        return digest(repr([fingerprint(item, depth - 1) for item in value]).encode())
    if isinstance(value, set | frozenset):
        return digest(repr(sorted(fingerprint(item, depth - 1) for item in value)).encode())
    if dataclasses.is_dataclass(value):
        return fingerprint({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth - 1)
    return kind


def main(arguments: list[str] | None = None) -> int:
    """Write the copies."""
    parser = argparse.ArgumentParser(prog="python -m tests.rerun", description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.ipynb"):
        old.unlink()  # nbmake runs all that is there
    for path in options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        count = twice(notebook)
        nbformat.write(notebook, options.out / path.name)
        print(f"{path.name}: {count} sections twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())

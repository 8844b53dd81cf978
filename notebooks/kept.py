"""What of a run is kept in a notebook: outputs that show without a kernel, small, and free of one machine and one hour.

`make notebooks` keeps them; the tests hold every notebook against `complaints`.
"""

import base64
import hashlib
import io
import re
from typing import Any

MOST = 300_000  # bytes of a notebook
COLOURS = (128, 64, 32)  # of a figure, as many as keep it below its share
FIGURE = 30_000  # bytes of a figure
PLAIN = 5_000  # characters of an output as plain text
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}
# Written so that no pattern matches its own text.
UNWANTED = {
    "a path of one machine": r"(?<![\w.:/~-])/(?:home|root|tmp|opt|work|mnt|srv|var|usr|Users)/[\w.-]+",
    "an address in memory": r"\bat 0x[0-9a-f]{6,}",
    "a progress bar": r"\d+%\|[ #█▏▎▍▌▋▊▉]*\|",
    "the words for a widget without its kernel": r"(?:HBox|VBox|FloatProgress|IntProgress)\(",
}


def fingerprint(notebook: Any) -> str:
    """A short name for the code: when it changes, the outputs are those of other cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(sources).encode()).hexdigest()[:16]


def tidy(notebook: Any) -> Any:
    """Leave of an executed notebook what is to be kept, and note which code it came from."""
    notebook.metadata = METADATA | {"ran": fingerprint(notebook)}
    count, names = 0, {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        kept = [output for output in cell.outputs
                if output.get("name") != "stderr" and (set(output.get("data", "t")) - {WIDGET, "text/plain"}
                                                       or WIDGET not in output.get("data", {}))]
        for output in kept:
            _tidy_output(output, count, names)
        cell.outputs = kept
    return notebook


def _tidy_output(output: Any, count: int, names: dict[str, str]) -> None:
    """One output, in place: no live half of a view, no metadata, small figures, tables numbered by `names`."""
    if "execution_count" in output:
        output["execution_count"] = count
    if "metadata" in output:
        output["metadata"] = {}
    data = output.get("data", {})
    data.pop(WIDGET, None)
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]{6,}", "", data["text/plain"])
    if "image/png" in data:
        data["image/png"] = smaller(data["image/png"])
    if "text/html" in data:
        html = re.sub(r'(?<=src="data:image/png;base64,)[\w+/=]+', lambda found: smaller(found[0]), data["text/html"])
        # pandas draws the names of its styled tables by lot
        data["text/html"] = re.sub(r"\bT_([0-9a-f]{5})(?=[\s_\"'])",
                                   lambda found: names.setdefault(found[0], f"T_{len(names) + 1:05d}"), html)


def smaller(png: str) -> str:
    """A figure in base64 with fewer colours, or as it is where that is smaller already."""
    from PIL import Image

    best = base64.b64decode(png)
    image = Image.open(io.BytesIO(best)).convert("RGB")
    for colours in COLOURS:
        packed = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        best = min(best, packed.getvalue(), key=len)
        if len(best) <= FIGURE:
            break
    return base64.b64encode(best).decode()


def complaints(notebook: Any, size: int) -> list[str]:
    """What speaks against a notebook as it is; an empty list when nothing does.

    Args:
        notebook: as read by nbformat.
        size: bytes of its file.
    """
    said = [] if size <= MOST else [f"it has {size:,} bytes, more than {MOST:,}"]
    said += [] if set(notebook.metadata) <= {*METADATA, "ran"} else [f"metadata {sorted(notebook.metadata)}"]
    if notebook.metadata.get("ran") != fingerprint(notebook):
        said.append("its code has changed since it was run")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in code):
        said.append("it has no outputs")
    for number, cell in enumerate(code, 1):
        if cell.execution_count != number or "execution" in cell.metadata:
            said.append(f"cell {number}: not numbered in order, or with times")
        for output in cell.outputs:
            said += [f"cell {number}: {why}" for why in _complaints_of(output)]
    return said


def _complaints_of(output: Any) -> list[str]:
    """What speaks against one output."""
    if output.output_type == "error" or output.get("name") == "stderr":
        return ["an error or a warning"]
    data = output.get("data", {})
    texts = [output.get("text", ""), *(text for kind, text in data.items() if not kind.startswith("image/"))]
    said = [why for why, pattern in UNWANTED.items() if any(re.search(pattern, str(text)) for text in texts)]
    if len(data.get("text/plain", "")) > PLAIN:
        said.append(f"{len(data['text/plain']):,} characters of plain text: give the object a short repr")
    said += ["a widget, which nothing shows without a kernel" for kind in (WIDGET, STATE) if kind in data]
    return said + (["metadata"] if output.get("metadata") else [])

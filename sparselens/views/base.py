"""`View`: the forms that everything a person looks at has, and the marked texts that views hand to a browser."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.files import write_whole
from sparselens.views.html import check_row, windows

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

STATIC_BYTES = 200_000  # a notebook output stays small enough to open and to read on a web page
_SAVED_BYTES = 12_000  # of the static form in a saved file, for readers without scripts
_FIGURES = (".png", ".svg", ".pdf")
_TOKENS = 160  # of each text that a widget holds, around the peaks
_CHARS = 400  # of a token or a title


class View(ABC):
    """Numbers and texts to look at: static by default, live when asked.

    Attributes:
        title: a heading, or None.
    """

    title: str | None

    @abstractmethod
    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the static form, which shows in every notebook viewer.

        Args:
            max_bytes: texts shrink around their peaks until the result is no larger.
        """

    @abstractmethod
    def figure(self) -> "matplotlib.figure.Figure":
        """Return the picture as a matplotlib figure."""

    @abstractmethod
    def to_frame(self) -> "pandas.DataFrame":
        """Return the numbers."""

    @abstractmethod
    def _widget(self) -> Any: ...

    def _repr_html_(self) -> str:
        return self.to_html()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def explore(self) -> Any:
        """Return the live widget: click or use the keys, and read the choice in Python.

        Raises:
            ImportError: anywidget is not installed.
        """
        try:
            import anywidget  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "The live view needs anywidget, which is not installed: run `pip install anywidget` and "
                "restart the kernel. Without it, show the view itself, or use .figure() or .to_frame()."
            ) from error
        return self._widget()

    def portable(self) -> Any:
        """Return the live widget in the form that also runs in a saved file."""
        return self.explore()

    def save(self, path: str | Path) -> Path:
        """Write one file: `.html` is interactive without kernel or network, `.png .svg .pdf` are pictures.

        Raises:
            InputError: the name ends otherwise.
            ImportError: `.html`, and anywidget is not installed.
            StorageError: the disk is full or not writable.
        """
        path = Path(path)
        if path.suffix.lower() in _FIGURES:
            with write_whole(path) as temporary:
                self.figure().savefig(temporary, bbox_inches="tight", dpi=150)
        elif path.suffix.lower() == ".html":
            from sparselens.views.export import save_html

            save_html([self], path, title=self.title or type(self).__name__)
        else:
            endings = ", ".join((".html", *_FIGURES))
            raise InputError(f"cannot save to {path.name!r}: the name must end in one of {endings}.")
        return path

    def _fallback(self) -> str:
        """The static form for a saved file, so small that the file stays close to the size of its data."""
        return self.to_html(_SAVED_BYTES)


def figure_of(axes: "matplotlib.axes.Axes") -> "matplotlib.figure.Figure":
    """Return the figure of some axes, closed: the caller shows it, and a notebook shows an open one once more."""
    import matplotlib.figure
    import matplotlib.pyplot as plt

    figure = axes.figure
    assert isinstance(figure, matplotlib.figure.Figure)  # not a part of one
    plt.close(figure)
    return figure


def clean(text: object, limit: int | None = None) -> str:
    """Return any object's text without halves of surrogate pairs, which can be neither written nor sent.

    Args:
        text: the text.
        limit: most characters.
    """
    said = str(text)
    if limit is not None and len(said) > limit:
        said = said[: limit - 1] + "…"
    return said.encode("utf-8", "replace").decode("utf-8")


def pack_texts(rows: Sequence[Mapping[str, Any]], max_tokens: int = _TOKENS) -> dict[str, Any]:
    """Return marked texts as a browser gets them, on one colour scale.

    Args:
        rows: as for `snippets`; `document` (int) may say which text it is.
        max_tokens: tokens sent of each text, around its peaks.

    Returns:
        `texts`, a list of `{title, document, length, spans}` where a span is `[first index, tokens]`; `values`, half
        floats of all tokens in the spans, divided by `peak`; and `signed`.
    """
    texts, shown = [], []
    for row in rows:
        values = check_row(row["tokens"], row["values"])
        spans = windows(values, max_tokens)
        shown += [values[start:stop] for start, stop in spans]
        texts.append({
            "title": clean(row.get("title") or "", _CHARS),
            "document": int(row.get("document", -1)),
            "length": len(values),
            "spans": [[start, [clean(token, _CHARS) for token in row["tokens"][start:stop]]] for start, stop in spans],
        })
    flat = np.concatenate([*shown, np.zeros(0, dtype=np.float32)])
    packed, peaks = pack_columns(flat[:, None])
    return {"texts": texts, "values": packed, "peak": peaks[0], "signed": bool((flat < 0).any())}


def pack_columns(values: np.ndarray) -> tuple[bytes, list[float]]:
    """Return `values` [T, k] as little-endian half floats, column after column, and each column's peak.

    Each column is divided by its largest magnitude, so that half floats do not overflow. A value that is
    not 0 stays not 0.
    """
    peaks = np.abs(values).max(axis=0, initial=0)
    shares = values / np.where(peaks > 0, peaks, 1)
    half = shares.astype("<f2")
    smallest = np.copysign(np.float16(6e-8), values)
    half = np.where((values != 0) & (half == 0), smallest, half).astype("<f2")
    return np.ascontiguousarray(half.T).tobytes(), [float(peak) for peak in peaks]

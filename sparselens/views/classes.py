"""Colours of classes: which group each of many points belongs to, told apart by colour-blind readers."""

import contextlib
from typing import Any, NamedTuple

import numpy as np

# Okabe-Ito without black, which a dark page swallows
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
GREY = "#999999"
_STEPS = ("#003070", "#3c4a6c", "#5f636f", "#7f7e78", "#a39a74", "#cbb965", "#f3db42")  # cividis, low to high
_LEFT_OUT = "others"
_MISSING = "none"


class Classes(NamedTuple):
    """Groups of points.

    Attributes:
        codes: uint8 `[n]` the class of each point.
        names: of the classes.
        colours: of the classes, `#rrggbb`.
    """

    codes: np.ndarray
    names: list[str]
    colours: list[str]


def numbered(codes: np.ndarray, names: list[str]) -> Classes:
    """Classes in a given order; those after the seventh share a grey one.

    Args:
        codes: int `[n]`.
        names: of all classes.
    """
    if len(names) <= len(COLOURS):
        return Classes(codes.astype(np.uint8), names, list(COLOURS[: len(names)]))
    kept = names[: len(COLOURS)]
    return Classes(np.minimum(codes, len(COLOURS)).astype(np.uint8), [*kept, _LEFT_OUT], [*COLOURS, GREY])


def classes_of(values: Any) -> Classes:
    """Group points by a column: as it is where it has few values, in steps of equal counts where it has many numbers.

    Seven classes have a colour of their own; rarer ones share a grey class. Missing values and the cluster -1 are grey.

    Args:
        values: `[n]` labels or numbers.
    """
    import pandas as pd

    column = pd.Series(values).reset_index(drop=True)
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric and column.nunique() > len(COLOURS) and not _are_labels(column):
        return _steps(column)
    missing = column.isna()
    if numeric:
        missing |= column == -1
    counts = column[~missing].value_counts()
    kept = counts.index[: len(COLOURS)].tolist()
    with contextlib.suppress(TypeError):  # values of mixed kinds stay in the order of how frequent they are
        kept = sorted(kept)
    names, colours = [_name(value) for value in kept], list(COLOURS[: len(kept)])
    codes = np.full(len(column), 255)
    for i, value in enumerate(kept):
        codes[(column == value).to_numpy(bool)] = i
    for name, rows in ((_LEFT_OUT, (codes == 255) & ~missing.to_numpy(bool)), (_MISSING, missing.to_numpy(bool))):
        if rows.any():
            codes[rows] = len(names)
            names.append(name)
            colours.append(GREY)
    return Classes(codes.astype(np.uint8), names, colours)


def _are_labels(column: Any) -> bool:
    """Whole numbers that come again and again are labels, of clusters say."""
    return bool((column.dropna() % 1 == 0).all()) and column.nunique() <= min(50, len(column) / 5)


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _steps(column: Any) -> Classes:
    """Numbers in up to seven steps that hold about as many points each."""
    values = column.to_numpy(dtype=float)
    finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, len(_STEPS) + 1)))
    n = len(edges) - 1
    codes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, n - 1)
    names = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:], strict=False)]
    colours = [_STEPS[i] for i in np.linspace(0, len(_STEPS) - 1, n).astype(int)]
    if not finite.all():
        codes[~finite] = n
        names.append(_MISSING)
        colours.append(GREY)
    return Classes(codes.astype(np.uint8), names, colours)

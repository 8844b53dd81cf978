"""One embedding taken apart by a column: each value against all the others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparselens.embeddings.contrasts import carried
from sparselens.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.embeddings.differences import DatasetDiff
    from sparselens.embeddings.embedding import SAEEmbedding

_LEVELS = 100
_SHOWN = 3


@dataclass(frozen=True, eq=False, repr=False)
class LevelDiffs(Mapping[str, "DatasetDiff"]):
    """Each value of a column against all other documents, made by `diff(emb, by=...)`. A mapping of `DatasetDiff`s.

    Attributes:
        by: the column.
        diffs: value -> difference. Each has its own q-values.
    """

    by: str
    diffs: dict[str, "DatasetDiff"]

    def __getitem__(self, level: str) -> "DatasetDiff":
        return self.diffs[level]

    def __iter__(self) -> Iterator[str]:
        return iter(self.diffs)

    def __len__(self) -> int:
        return len(self.diffs)

    def to_frame(self) -> "pandas.DataFrame":
        """The frames of all differences below each other, with the value in the first column, named as the column."""
        import pandas as pd

        parts = pd.concat({level: found.frame for level, found in self.items()}, names=[self.by])
        return parts.reset_index(level=0).reset_index(drop=True)

    def summary(self) -> "pandas.DataFrame":
        """A row a value: how many `documents`, how many features differ (`significant`), and the `features` first."""
        import pandas as pd

        rows = []
        for level, found in self.items():
            more = found.significant().query("difference > 0")
            first = " | ".join(f"{r.feature} {r.description}" for r in more.head(_SHOWN).itertuples())
            rows.append({self.by: level, "documents": len(found.a), "significant": len(found.significant()),
                         "features": first})
        return pd.DataFrame(rows)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, top: int = _SHOWN) -> "matplotlib.axes.Axes":
        """Draw in which share of documents of each value its first `top` features fire, and those of the others."""
        from sparselens.views import share_grid

        firsts = [found.frame[found.frame["difference"] > 0].head(top) for found in self.values()]
        names = {int(r.feature): r.description for rows in firsts for r in rows.itertuples()}
        shares = np.stack([f.a.fires()[:, list(names)].mean(axis=0).A1 for f in self.values()], axis=1)
        return share_grid(shares, [f"{f} · {text}" for f, text in names.items()], list(self), ax)

    def __repr__(self) -> str:
        found = ", ".join(f"{level} {len(d.significant()):,}" for level, d in self.items())
        return f"LevelDiffs by {self.by}: features that differ from the rest: {found}"

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        frame = self.summary()
        return report_html(f"Each {self.by} against the rest", [list(frame.columns), *frame.values.tolist()])


def levels_of(emb: "SAEEmbedding", by: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each value of a carried column the masks of its documents and of all others; missing values are in neither.

    Raises:
        InputError: no such column, or one with fewer than 2 or more than 100 values.
    """
    import pandas as pd

    values = carried(emb, by)
    there = ~np.asarray(pd.isna(values))
    levels = sorted(pd.unique(values[there]).tolist(), key=str)
    if not 2 <= len(levels) <= _LEVELS:
        raise InputError(f"column {by!r} has {len(levels):,} different values; by= takes a column with 2 to {_LEVELS}. "
                         "Compare subsets instead: sl.diff(emb.subset(mask), emb.subset(~mask)).")
    return {str(level): (values == level, there & (values != level)) for level in levels}

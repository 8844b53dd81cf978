"""`DiffView`: from the features that tell two sets of texts apart down to the texts and the firing tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparselens.views.base import STATIC_BYTES, View, figure_of, pack_texts
from sparselens.views.diff import ROWS, Sides, check_columns, diff_html, forest

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    import sparselens.views.diff_widget


def diff_view(
    frame: "pandas.DataFrame",
    examples: Callable[[int], Sides],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    names: tuple[str, str] = ("A", "B"),
) -> "DiffView":
    """Show a dataset difference, with the texts behind each row.

    Args:
        frame: a row a feature, in the order to show, with the columns that `diff_html` names.
        examples: gives for a feature `{"a": rows, "b": rows}`, rows as for `snippets`; `document` in a row says which
            text of its set it is.
        title: a heading.
        notes: sentences shown above the table.
        names: what the two sets are called.

    Raises:
        InputError: a column is missing.
    """
    check_columns(frame)
    return DiffView(frame, examples, title, tuple(notes), names)


@dataclass(frozen=True, eq=False, repr=False)
class DiffView(View):
    """A dataset difference to look at; made by `diff_view`. The attributes are its arguments."""

    frame: "pandas.DataFrame"
    examples: Callable[[int], Sides]
    title: str | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, str] = ("A", "B")
    _kept: dict[int, Sides] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        return f"DiffView({len(self.frame):,} features, {self.names[0]} against {self.names[1]})"

    def sides(self, feature: int) -> Sides:
        """The texts of both sets for a feature; asked for once."""
        if feature not in self._kept:
            self._kept[feature] = self.examples(feature)
        return self._kept[feature]

    def texts(self, feature: int) -> dict[str, Any]:
        """The texts of both sets as a browser gets them, `sides` of them each, on one scale."""
        sides = self.sides(feature)
        rows = [list(sides.get(side, [])) for side in "ab"]
        return {"feature": feature, "sides": [len(part) for part in rows], **pack_texts(rows[0] + rows[1])}

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the first 30 rows as a table, with texts to unfold."""
        examples: Any = {int(f): self.sides(int(f)) for f in self.frame["feature"][:ROWS]}
        words: dict[str, Any] = {"title": self.title or "", "notes": self.notes, "names": self.names}
        return diff_html(self.frame, examples, max_bytes=max_bytes, **words)

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the largest differences with their intervals."""
        return figure_of(forest(self.frame, names=self.names))

    def to_frame(self) -> "pandas.DataFrame":
        """Return a copy of the frame."""
        return self.frame.copy()

    def _widget(self) -> "sparselens.views.diff_widget.DiffWidget":
        from sparselens.views.diff_widget import DiffWidget

        return DiffWidget(self)

"""What small results share: they show themselves as a table."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

_ROWS = 200


class Shown:
    """A result whose frame is its form in a notebook, under a line that sums it up."""

    def to_frame(self) -> "pandas.DataFrame":
        """Return the numbers."""
        raise NotImplementedError

    def _notes(self) -> list[str]:
        return []

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        frame = self.to_frame()
        rows = [tuple(frame.columns), *frame.head(_ROWS).itertuples(index=False, name=None)]
        said = self._notes() + ([f"the first {_ROWS} of {len(frame):,} rows"] if len(frame) > _ROWS else [])
        return report_html(repr(self), [*rows, *(("note", note) for note in said)])

"""Several attachments against one clean pass: one table and one plot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError, closest
from sparselens.measure.reports import BATCH_TOKENS, Report, measure_all

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.models.live import LiveModel


@dataclass(frozen=True)
class Frontier:
    """Reports of several attachments on the same texts.

    Attributes:
        reports: a `Report` each, in the order given.
    """

    reports: list[Report]

    def __getitem__(self, name: str) -> Report:
        """The report of one attachment."""
        found = {report.name: report for report in self.reports}
        if name not in found:
            raise InputError(f"nothing was compared under the name {name!r}.{closest(name, found)}")
        return found[name]

    def to_frame(self) -> "pandas.DataFrame":
        """A row an attachment, a column a number; numbers that an attachment does not have are NaN."""
        import pandas as pd

        return pd.DataFrame([report.to_dict() for report in self.reports])

    def plot(self, x: str = "l0", y: str = "ce", ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw two columns of the table against each other. Returns the axes.

        Args:
            x, y: columns of `to_frame()`.
            ax: axes to draw into.

        Raises:
            InputError: no such column, or no attachment has that number.
        """
        from sparselens.views import frontier

        frame = self.to_frame()
        numeric = [c for c in frame.columns if c != "tokens" and frame[c].dtype.kind == "f" and frame[c].notna().any()]
        for column in (x, y):
            if column not in numeric:
                raise InputError(f"{column!r} is no number that these attachments have.{closest(column, numeric)} "
                                 f"There are {', '.join(numeric)}.")
        return frontier(frame, x, y, "name", ax)

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        frame = self.to_frame().dropna(axis=1, how="all")
        columns = [c for c in frame.columns if c not in ("name", "model", "sites", "tokens", "ce_clean")]
        first = self.reports[0]
        title = f"{first.model} on {first.tokens:,} tokens, cross-entropy {first.ce_clean:.4f} with nothing attached"
        rows = [["", *columns], *([row["name"], *(row[c] for c in columns)] for _, row in frame.iterrows())]
        return report_html(title, rows)


def compare(
    m: "LiveModel",
    attachments: Mapping[str, Any],
    texts: Any,
    *,
    role: str | None = None,
    max_length: int | None = 256,
    long: str = "cut",
    batch_tokens: int = BATCH_TOKENS,
) -> Frontier:
    """Measure several attachments on the same texts, all against the same clean pass. See `fidelity`.

    Args:
        m: a live model.
        attachments: name -> what `m.attach` takes, or `(attachment, sites)`.
        texts: what `m.batches` takes; empty texts are passed over.
        role, max_length, long, batch_tokens: as for `m.batches`.

    Raises:
        InputError: nothing to compare, a thing that cannot be attached, or texts that leave nothing to measure.
        FitError: an attachment does not fit the model.
    """
    if not isinstance(attachments, Mapping) or not attachments:
        raise InputError("nothing to compare: give a dict of name -> attachment, or name -> (attachment, sites).")
    things = {name: thing if isinstance(thing, tuple) else (thing, None) for name, thing in attachments.items()}
    wrong = next((name for name, thing in things.items() if len(thing) != 2), None)
    if wrong is not None:
        raise InputError(f"{wrong!r} is a tuple of {len(things[wrong])}: give (attachment, sites).")
    reading = {"role": role, "max_length": max_length, "long": long, "batch_tokens": batch_tokens}
    return Frontier(measure_all(m, things, texts, reading))

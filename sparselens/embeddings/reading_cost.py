"""What it cost to read texts through a model."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ReadingCost:
    """The cost of an embedding, paid once and used by every analysis of it.

    Attributes:
        documents: how many.
        reader_tokens: tokens that went through the model, special and template tokens counted, padding not.
        seconds: time spent on reading, encoding and pooling them, summed over workers.
    """

    documents: int
    reader_tokens: int
    seconds: float

    @property
    def seconds_per_document(self) -> float:
        return self.seconds / self.documents if self.documents else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.reader_tokens / self.seconds if self.seconds else 0.0

    def to_frame(self) -> "pandas.DataFrame":
        """The numbers in one row."""
        import pandas as pd

        rates = {"seconds_per_document": self.seconds_per_document, "tokens_per_second": self.tokens_per_second}
        return pd.DataFrame([asdict(self) | rates])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        return report_html("Cost of reading", [
            ("documents", f"{self.documents:,}"),
            ("tokens read", f"{self.reader_tokens:,}"),
            ("seconds", f"{self.seconds:,.1f}"),
            ("milliseconds per document", f"{1000 * self.seconds_per_document:,.1f}"),
            ("tokens per second", f"{self.tokens_per_second:,.0f}"),
        ])

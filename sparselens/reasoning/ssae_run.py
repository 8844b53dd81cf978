"""What the training of a step-level SAE leaves behind."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass
class StepRun:
    """The record of `StepSAE.fit`, `start` and `fit_prior`.

    Attributes:
        settings: what was asked for.
        history: an entry per logged step. Of `fit`: `step, ce, l1, l0, weight, off_share`, means since the entry before
            (ce in nats, with noise and masks; weight of the sparsity penalty; share of codes without a feature). Of
            `fit_prior`: `step, nll`.
        seconds: wall time of the steps, over all resumed parts.
        tokens: positions that went through the encoder or the decoder, padding included.
    """

    settings: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed."""
        return self.tokens / self.seconds if self.seconds else float("nan")

    def to_frame(self) -> "pandas.DataFrame":
        """The history, a row an entry."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self) -> "matplotlib.figure.Figure":
        """Draw the controller at work: CE, L1 norm, active features and weight of the penalty, each in a panel."""
        from sparselens.views import curve_figure

        return curve_figure(curves(self.history), title="step-level SAE")

    def _repr_html_(self) -> str:
        speed = f"{self.seconds:.0f} s"
        if self.tokens:
            speed = f"{self.tokens:,} tokens in {speed} ({self.tokens_per_second:,.0f} tokens/s)"
        return f"<p>{speed}</p>{self.to_frame().tail(1).to_html(index=False, float_format='{:.4g}'.format)}"


def curves(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The history as name -> (step, value) pairs."""
    names = [name for name in (history[0] if history else {}) if name not in ("step", "off_share")]
    return {name: [(entry["step"], entry[name]) for entry in history] for name in names}

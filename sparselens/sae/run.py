"""What a training run leaves behind: its history and its cost."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass
class TrainingRun:
    """The record of `train_sae`.

    Attributes:
        settings: what was asked for.
        history: one entry per logged step and SAE: `sae, step, tokens, fvu, l0, dead_share, lr_factor`, where fvu
            and l0 are of that training batch.
        seconds: wall time of the training steps, over all resumed parts; harvesting is not in it.
        n_tokens: tokens trained on (repeats counted).
    """

    settings: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    n_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed, for all SAEs of the run together."""
        return self.n_tokens / self.seconds if self.seconds else float("nan")

    def to_frame(self) -> "pandas.DataFrame":
        """The history, a row per logged step and SAE."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw fvu against tokens, a line per SAE, and return the axes."""
        import matplotlib.pyplot as plt

        from sparselens.views.curves import curve_figure

        ax = ax or plt.subplots(figsize=(6, 3.5))[1]
        parts = self.to_frame().groupby("sae", sort=False)
        curve_figure({name: list(zip(part["tokens"], part["fvu"], strict=True)) for name, part in parts}, ax)
        ax.set(xlabel="tokens", ylabel="fraction of variance unexplained", yscale="log")
        return ax

    def _repr_html_(self) -> str:
        last = self.to_frame().groupby("sae", sort=False).tail(1)
        speed = f"{self.n_tokens:,} tokens in {self.seconds:.0f} s ({self.tokens_per_second:,.0f} tokens/s)"
        return f"<p>{speed}</p>{last.to_html(index=False, float_format='{:.4g}'.format)}"

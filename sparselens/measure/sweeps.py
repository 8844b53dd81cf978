"""Sparsifiers at several sparsities: what each costs, as a table, a plot, and a dial on the live model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any

from sparselens.errors import InputError
from sparselens.measure.frontiers import Frontier, compare
from sparselens.measure.reports import BATCH_TOKENS

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.models.live import LiveModel
    from sparselens.views.dial import SparsityDial
    from sparselens.views.dial_widget import DialWidget

Maker = Callable[[float], Any]
_COLUMNS = ("perplexity", "ce", "kl", "top1", "weight_bytes", "flops")


@dataclass(frozen=True)
class Sweep:
    """Reports of sparsifiers at several sparsities, on the same texts.

    Attributes:
        frontier: a `Report` for each setting.
        settings: `(method, sparsity asked for)` of each.
        model: the live model.
        methods: method -> what makes it at a sparsity.
    """

    frontier: Frontier
    settings: list[tuple[str, float]]
    model: "LiveModel" = field(repr=False)
    methods: Mapping[str, Maker] = field(repr=False)

    def __repr__(self) -> str:
        first = self.frontier.reports[0]
        return f"Sweep({', '.join(self.methods)}; {len(self.settings)} settings on {first.tokens:,} tokens)"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a setting: method, sparsity (asked for), achieved, perplexity, ce, kl, top1, weight_bytes, flops."""
        import pandas as pd

        frame = self.frontier.to_frame()
        named = pd.DataFrame(self.settings, columns=["method", "sparsity"])
        return named.assign(achieved=frame["sparsity"], **{name: frame[name] for name in _COLUMNS})

    def dense(self) -> dict[str, float]:
        """The same numbers of the untouched model, as far as they are known."""
        first = self.frontier.reports[0]
        numbers = {"achieved": 0.0, "perplexity": exp(min(first.ce_clean, 700.0)), "ce": first.ce_clean, "kl": 0.0,
                   "top1": 1.0, "weight_bytes": first.weight_bytes_dense, "flops": first.flops_dense}
        return {name: value for name, value in numbers.items() if value is not None}

    def view(self) -> "SparsityDial":
        """The numbers as a view, to show, save and explore."""
        from sparselens.views import sparsity_dial

        first = self.frontier.reports[0]
        return sparsity_dial(self.to_frame(), self.dense(), title=f"{first.model}: what sparsity costs",
                             note=f"Measured on {first.tokens:,} tokens.")

    def plot(
        self, x: str = "achieved", y: str = "perplexity", ax: "matplotlib.axes.Axes | None" = None
    ) -> "matplotlib.axes.Axes":
        """Draw a line a method. Returns the axes. `x` and `y` are columns of `to_frame()`."""
        return self.view().plot(x, y, ax)

    def explore(self, max_new_tokens: int = 40) -> "DialWidget":
        """Return the live dial. The model answers a prompt at the chosen setting, beside the dense one, when asked to.

        It waits while something else is attached.

        Args:
            max_new_tokens: most tokens of an answer.
        """

        def answer(method: str, sparsity: float, prompt: str, say: Callable[[str], None]) -> None:
            with self.model.untouched(), self.model.attach(self.methods[method](sparsity) if sparsity else []):
                self.model.generate(prompt, max_new_tokens, on_text=say)

        return self.view().explore(answer)

    def _repr_html_(self) -> str:
        return self.view().to_html()


def sweep(
    m: "LiveModel",
    methods: Mapping[str, Maker | tuple[Maker, Sequence[float]]],
    texts: Any,
    sparsities: Sequence[float] = (0.25, 0.4, 0.5, 0.65),
    *,
    role: str | None = None,
    max_length: int | None = 256,
    long: str = "cut",
    batch_tokens: int = BATCH_TOKENS,
) -> Sweep:
    """Measure sparsifiers at several sparsities on the same texts. See `compare`.

    Args:
        m: a live model.
        methods: name -> what makes the attachment at a sparsity, such as `sl.TEAL` or `lambda s: sl.WINA(s,
            scope="all")`; or `(maker, sparsities)` where a method has its own.
        texts: what `m.batches` takes; empty texts are passed over.
        sparsities: of the methods that have none of their own, above 0 and below 1.
        role, max_length, long, batch_tokens: as for `m.batches`.

    Raises:
        InputError: nothing to measure, or a sparsity out of range.
        FitError: an attachment does not fit the model.

    Example:
        >>> sl.sweep(m, {"TEAL": sl.TEAL, "WINA": sl.WINA}, texts).explore()
    """
    if not isinstance(methods, Mapping) or not methods:
        raise InputError('nothing to measure: give a dict of name -> maker, such as {"TEAL": sl.TEAL}.')
    makers: dict[str, Maker] = {}
    settings: list[tuple[str, float]] = []
    for name, given in methods.items():
        makers[name], own = given if isinstance(given, tuple) else (given, sparsities)
        settings += [(name, float(sparsity)) for sparsity in own]
    wrong = next((setting for setting in settings if not 0 < setting[1] < 1), None)
    if wrong is not None or not settings:
        raise InputError(f"sparsity {wrong[1] if wrong else 'of nothing'} is out of range: give sparsities above 0 and "
                         "below 1. The dense model is measured along.")
    if len(set(settings)) < len(settings):
        raise InputError("a method has the same sparsity twice; give each once.")
    things = {f"{name} at {sparsity:g}": makers[name](sparsity) for name, sparsity in settings}
    reading: dict[str, Any] = {"role": role, "max_length": max_length, "long": long, "batch_tokens": batch_tokens}
    return Sweep(compare(m, things, texts, **reading), settings, m, makers)

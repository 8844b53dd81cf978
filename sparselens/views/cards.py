"""`FeatureCard`: one feature on a page: where it fires, how often and how strongly, and what is near it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean, figure_of
from sparselens.views.curves import plain
from sparselens.views.html import (
    LINE,
    ORANGE,
    TABLE,
    TABLE_ROW,
    as_array,
    escape,
    fragment,
    number,
    rgba,
    snippets,
    visible,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    import sparselens.views.card_widget
    from sparselens.views.tokens import TokenView

Rows = Sequence[Mapping[str, Any]]
#: `read(text)` gives the tokens of a text and a feature's value on each.
Reader = Callable[[str], tuple[Sequence[str], Any]]

_BINS = 24
_HEIGHT = 64  # pixels of the highest bar
_NOTE = "font-size:12px;opacity:.7"
_CELL = f"padding:4px 14px 4px 0;text-align:left;vertical-align:top;border-top:1px solid {LINE}"


def card_view(
    feature: int,
    rows: Rows,
    values: Any,
    *,
    n_documents: int,
    n_firing: int,
    description: str = "",
    method: str = "",
    neighbours: Sequence[tuple[int, str, float]] = (),
    promotes: Sequence[str] = (),
    load: "Callable[[int], FeatureCard] | None" = None,
    read: Reader | None = None,
) -> "FeatureCard":
    """Show one feature.

    Args:
        feature: its number.
        rows: texts in which it is strongest, as for `snippets`; `document` in a row says which text it is.
        values: its value on each token on which it fires.
        n_documents: how many texts there are.
        n_firing: in how many of them it fires.
        description: what it is about.
        method: how the description was made.
        neighbours: nearest features as `(feature, description, cosine of the decoder rows)`.
        promotes: words whose logits it raises most.
        load: gives the card of another feature; the live view then goes from card to card.
        read: `read(text)` lets the model read a text and gives its tokens and the feature's value on each; the live
            view then has a box to test a sentence.

    Raises:
        InputError: it fires in more texts than there are.
        NotFiniteError: a value is NaN or infinite.
    """
    if not 0 <= n_firing <= n_documents:
        raise InputError(f"n_firing={n_firing} of n_documents={n_documents}: it must lie between 0 and all.")
    array = as_array(values).ravel()
    words = tuple(map(str, promotes))
    near = tuple((int(other), str(text), float(cosine)) for other, text, cosine in neighbours)
    return FeatureCard(int(feature), list(rows), array, n_documents, n_firing, description, method, near, words, load,
                       read)


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCard(View):
    """One feature to look at; made by `card_view` or `sparselens.feature_card`. The attributes are its arguments."""

    feature: int
    rows: list[Mapping[str, Any]]
    values: np.ndarray
    n_documents: int
    n_firing: int
    description: str = ""
    method: str = ""
    neighbours: tuple[tuple[int, str, float], ...] = ()
    promotes: tuple[str, ...] = ()
    load: "Callable[[int], FeatureCard] | None" = None
    read: Reader | None = None

    def __repr__(self) -> str:
        return f"FeatureCard(feature {self.feature}: fires in {self.n_firing:,} of {self.n_documents:,} documents)"

    @property
    def title(self) -> str:  # type: ignore[override]
        """The heading."""
        return f"feature {self.feature}"

    @property
    def density(self) -> float:
        """Share of the documents in which it fires."""
        return self.n_firing / self.n_documents if self.n_documents else 0.0

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts `[24]` and edges `[25]` of its values on the tokens on which it fires."""
        return np.histogram(self.values.astype(float), bins=_BINS)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What a reader must know, by name."""
        facts = [("fires in", f"{self.n_firing:,} of {self.n_documents:,} documents ({self.density:.1%})"),
                 ("on", f"{len(self.values):,} tokens")]
        if len(self.values):
            strongest = float(self.values[np.abs(self.values).argmax()])
            facts.append(("value", f"{number(float(self.values.mean()))} on average, {number(strongest)} at most"))
        if self.method:
            facts.append(("description from", self.method))
        return facts

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a text: `document`, `value` (its strongest) and `text`."""
        import pandas as pd

        peaks = [as_array(row["values"]) for row in self.rows]
        return pd.DataFrame({
            "document": [int(row.get("document", -1)) for row in self.rows],
            "value": [float(v[np.abs(v).argmax()]) if len(v) else 0.0 for v in peaks],
            "text": [clean("".join(row["tokens"])) for row in self.rows],
        })

    def test(self, text: str) -> "TokenView":
        """Let the model read a text, and show on which of its tokens the feature fires.

        Raises:
            InputError: no model is at hand, or the text is empty.
        """
        if self.read is None:
            raise InputError("no model is at hand to read the text: make the card with the model and its dictionary.")
        from sparselens.views.tokens import token_view

        tokens, values = self.read(text)
        return token_view(tokens, values, [self.feature], {self.feature: self.description} if self.description else {})

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the card without its live parts."""
        for n_texts, max_tokens in ((10, 60), (6, 40), (3, 24), (0, 0)):
            html = self._html(n_texts, max_tokens)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, n_texts: int, max_tokens: int) -> str:
        head = f'<div style="font-size:16px;font-weight:600">{self.title}</div>'
        head += f"<div>{escape(self.description, 400)}</div>"
        facts = "".join(f'<tr style="{TABLE_ROW}"><td style="{_CELL};opacity:.75">{name}</td>'
                        f'<td style="{_CELL}">{escape(text)}</td></tr>' for name, text in self.facts)
        parts = [f'<table style="{TABLE}">{facts}</table>', self._bars(), self._near(), self._words()]
        columns = "".join(f'<div style="flex:1 1 260px;min-width:0">{part}</div>' for part in parts if part)
        body = f'<div style="display:flex;flex-wrap:wrap;gap:10px 28px;margin:8px 0">{columns}</div>'
        rows = self.rows[:n_texts]
        texts = snippets(rows, max_tokens=max_tokens) if rows else "<i>no text fires</i>"
        return fragment(f"{head}{body}{texts if n_texts else ''}", width=1080)

    def _bars(self) -> str:
        if not len(self.values):
            return ""
        counts, edges = self.histogram()
        cells = []
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            height = max(round(_HEIGHT * count / counts.max()), int(count > 0))
            title = f"{number(float(low))} to {number(float(high))}: {count:,} tokens"
            bar = f'<div style="width:9px;height:{height}px;background:{rgba(ORANGE, 1.0)}"></div>'
            cells.append(f'<td style="padding:0 1px 0 0;vertical-align:bottom" title="{title}">{bar}</td>')
        note = f"values on {len(self.values):,} tokens, {number(float(edges[0]))} to {number(float(edges[-1]))}"
        table = f'<table style="{TABLE}"><tr style="{TABLE_ROW}">{"".join(cells)}</tr></table>'
        return f'{table}<div style="{_NOTE}">{note}</div>'

    def _near(self) -> str:
        if not self.neighbours:
            return ""
        lines = [f'<div>{other} · {escape(text, 60)} <span style="{_NOTE}">{number(cosine)}</span></div>'
                 for other, text, cosine in self.neighbours]
        return f'<div style="{_NOTE}">nearest by decoder, cosine</div>{"".join(lines)}'

    def _words(self) -> str:
        if not self.promotes:
            return ""
        said = ", ".join(repr(visible(word, 24)) for word in self.promotes)
        return f'<div style="{_NOTE}">promotes</div><div>{escape(said)}</div>'

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how often each value occurs. Returns the axes."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
        counts, edges = self.histogram()
        ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=[part / 255 for part in ORANGE], linewidth=0)
        said = self.description if len(self.description) <= 60 else self.description[:59] + "…"
        ax.set_title(f"{self.title}: {plain(visible(said))}", fontsize=9, loc="left")
        ax.set(xlabel="value on a token", ylabel="tokens")
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the histogram as a matplotlib figure."""
        return figure_of(self.plot())

    def _widget(self) -> "sparselens.views.card_widget.CardWidget":
        from sparselens.views.card_widget import CardWidget

        return CardWidget(self)

    def portable(self) -> "sparselens.views.card_widget.CardWidget":
        """Return the widget without a way to other cards, and without a model."""
        return replace(self, load=None, read=None)._widget()

"""The live card of a feature."""

from typing import Any

import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean, pack_texts
from sparselens.views.cards import FeatureCard
from sparselens.views.widgets import ViewWidget, read_static


class CardWidget(ViewWidget):
    """A card with its texts to choose from; made by `FeatureCard.explore()`.

    Traits to read, set and observe:
        feature: the feature that is shown. Setting another shows its card, if the view can load it.
        document: the number of the chosen text, -1 for none.

    Attributes:
        view: the card that is shown.
    """

    _esm = read_static("shared.js", "texts.js", "card.js")
    _css = read_static("shared.css", "texts.css", "card.css")

    title = traitlets.Unicode("", read_only=True).tag(sync=True)
    loads = traitlets.Bool(read_only=True).tag(sync=True)
    card = traitlets.Dict(read_only=True).tag(sync=True)
    feature = traitlets.Int().tag(sync=True)
    document = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: FeatureCard) -> None:
        super().__init__(view, {"loads": view.load is not None, "card": _state(view)}, feature=view.feature)

    @property
    def selected(self) -> int:
        """The number of the chosen text, -1 for none."""
        return self.document

    @traitlets.validate("feature")
    def _check_feature(self, proposal: Any) -> int:
        feature = proposal["value"]
        if feature != self.view.feature:
            if self.view.load is None:
                raise InputError(f"this card shows feature {self.view.feature} and cannot load feature {feature}.")
            self._next = self.view.load(feature)
        return feature

    @traitlets.observe("feature")
    def _show(self, change: Any) -> None:
        if change["new"] != self.view.feature:
            self.view = self._next
            self.document = -1
            self.set_trait("card", _state(self.view))


def _state(view: FeatureCard) -> dict[str, Any]:
    counts, edges = view.histogram()
    return {
        "feature": view.feature,
        "description": clean(view.description, 400),
        "facts": [[name, clean(text)] for name, text in view.facts],
        "counts": counts.tolist(),
        "edges": [float(edge) for edge in edges],
        "neighbours": [[other, clean(text, 120), cosine] for other, text, cosine in view.neighbours],
        "promotes": [clean(word, 40) for word in view.promotes],
        "texts": pack_texts(view.rows),
    }

"""The live card of a feature, and the box in which a sentence is tested."""

import math
from typing import Any

import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean, pack_texts
from sparselens.views.cards import FeatureCard
from sparselens.views.turns import Turn, Turns
from sparselens.views.widgets import ViewWidget, checks, read_static

TESTED = 2000  # tokens of a tested text that are shown


class TestBox(ViewWidget):
    """What widgets with a box to test a sentence share. The model reads in a thread, so that the kernel stays free.

    Traits to read, set and observe:
        test_text: the sentence to read; setting it makes the model read.
        result: the sentence with the feature's values, packed as by `pack_texts`; empty before.
        status: what is going on, or what went wrong.
    """

    can_test = traitlets.Bool(read_only=True).tag(sync=True)
    test_text = traitlets.Unicode("").tag(sync=True)
    result = traitlets.Dict(read_only=True).tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)

    def __init__(self, view: Any, fixed: dict[str, Any], **chosen: Any) -> None:
        self._turns = Turns()
        super().__init__(view, fixed, **chosen)

    def _open_card(self) -> FeatureCard | None:
        """The card whose feature is tested."""
        raise NotImplementedError

    @checks("test_text")
    def _check_test_text(self, proposal: Any) -> str:
        if proposal["value"] and not self.can_test:
            raise InputError("no model is at hand to read the text: make the card with the model and its dictionary.")
        return proposal["value"]

    @traitlets.observe("test_text")
    def _test(self, _: Any = None) -> None:
        card = self._open_card()
        self.set_trait("result", {})
        if card is None or card.read is None or not self.test_text.strip():
            self._turns.end()
            return
        read, text = card.read, self.test_text

        def work(turn: Turn) -> None:
            self.status = "the model reads"
            tokens, values = read(text)
            turn.check()
            self.set_trait("result", pack_texts([{"tokens": list(tokens), "values": values}], TESTED))

        self._turns.begin(work, self._tell, lambda: None)

    def _tell(self, status: str) -> None:
        self.status = status


class CardWidget(TestBox):
    """A card with its texts to choose from; made by `FeatureCard.explore()`.

    Traits to read, set and observe, beside those of the test box:
        feature: the feature that is shown. Setting another shows its card, if the view can load it.
        document: the number of the chosen text, -1 for none.

    Attributes:
        view: the card that is shown.
    """

    _esm = read_static("shared.js", "texts.js", "card_parts.js", "card.js")
    _css = read_static("shared.css", "texts.css", "card.css")

    title = traitlets.Unicode("", read_only=True).tag(sync=True)
    loads = traitlets.Bool(read_only=True).tag(sync=True)
    card = traitlets.Dict(read_only=True).tag(sync=True)
    feature = traitlets.Int().tag(sync=True)
    document = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: FeatureCard) -> None:
        fixed = {"loads": view.load is not None, "can_test": view.read is not None, "card": card_state(view)}
        super().__init__(view, fixed, feature=view.feature)

    def _open_card(self) -> FeatureCard:
        return self.view

    @property
    def selected(self) -> int:
        """The number of the chosen text, -1 for none."""
        return self.document

    @checks("feature")
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
            self.set_trait("card", card_state(self.view))
            self._test()  # the same sentence, for this feature


def card_state(view: FeatureCard) -> dict[str, Any]:
    """A card as a browser gets it."""
    counts, edges = view.histogram()
    return {
        "feature": view.feature,
        "description": clean(view.description, 400),
        "facts": [[name, clean(text)] for name, text in view.facts],
        "counts": counts.tolist(),
        "edges": [float(edge) for edge in edges],
        "neighbours": [[other, clean(text, 120), cosine if math.isfinite(cosine) else None]
                       for other, text, cosine in view.neighbours],
        "promotes": [clean(word, 40) for word in view.promotes],
        "texts": pack_texts(view.rows),
    }

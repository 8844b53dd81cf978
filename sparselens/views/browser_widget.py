"""The live feature browser."""

from typing import Any

import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean
from sparselens.views.browser import FeatureBrowser, packed
from sparselens.views.card_widget import TestBox, card_state
from sparselens.views.cards import FeatureCard
from sparselens.views.selection import Ids
from sparselens.views.widgets import checks, read_static

SENT = 400  # rows that a browser holds; with a kernel, those that fit the query best
_SAVED_CARDS = 8  # of the first rows, in a saved file
_PINNED = 4


class BrowserWidget(TestBox):
    """Features to search, open and compare; made by `FeatureBrowser.explore()`.

    Traits to read, set and observe, beside those of the test box:
        query: a number, or a part of a description.
        sort: "density", "peak" or "feature"; "" for the given order.
        feature: the feature whose card is open, -1 for none.
        pinned: the features whose cards stay beside it, a tuple.
        document: the number of the chosen text, -1 for none.
    """

    view: FeatureBrowser
    _esm = read_static("shared.js", "texts.js", "card_parts.js", "browser.js")
    _css = read_static("shared.css", "texts.css", "card.css", "browser.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    notes: Any = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    live = traitlets.Bool(read_only=True).tag(sync=True)
    total = traitlets.Int(read_only=True).tag(sync=True)
    found = traitlets.Int(read_only=True).tag(sync=True)
    columns = traitlets.Bytes(read_only=True).tag(sync=True)
    descriptions: Any = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    cards: Any = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    query = traitlets.Unicode("").tag(sync=True)
    sort = traitlets.Unicode("").tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)
    pinned: Any = Ids().tag(sync=True)
    document = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: FeatureBrowser, live: bool = True) -> None:
        rows = view.frame.head(SENT)
        columns, descriptions = packed(rows)
        first = [int(feature) for feature in rows["feature"][: 1 if live else _SAVED_CARDS]]
        cards = [view.card(feature) for feature in first]
        fixed = {"title": clean(view.title or ""), "notes": [clean(note) for note in view.notes], "live": live,
                 "total": len(view.frame), "found": len(view.frame), "columns": columns, "descriptions": descriptions,
                 "cards": [card_state(card) for card in cards],
                 "can_test": live and any(card.read is not None for card in cards)}
        super().__init__(view, fixed, feature=first[0] if first else -1)

    @property
    def selected(self) -> tuple[int, ...]:
        """The pinned features; if none, the open one."""
        return self.pinned or ((self.feature,) if self.feature >= 0 else ())

    def _open_card(self) -> FeatureCard | None:
        return None if self.feature < 0 else self.view.card(self.feature)

    @checks("sort")
    def _check_sort(self, proposal: Any) -> str:
        self.view.find("", proposal["value"])
        return proposal["value"]

    @checks("feature")
    def _check_feature(self, proposal: Any) -> int:
        if proposal["value"] != -1:
            self.view.card(proposal["value"])
        return proposal["value"]

    @checks("pinned")
    def _check_pinned(self, proposal: Any) -> Any:
        if len(proposal["value"]) > _PINNED:
            raise InputError(f"{len(proposal['value'])} cards to keep: at most {_PINNED} fit beside each other.")
        for feature in proposal["value"]:
            self.view.card(feature)
        return proposal["value"]

    @traitlets.observe("query", "sort")
    def _find(self, _: Any) -> None:
        rows = self.view.find(self.query, self.sort)
        columns, descriptions = packed(rows.head(SENT))
        with self.hold_sync():  # numbers and descriptions together
            self.set_trait("found", len(rows))
            self.set_trait("descriptions", descriptions)
            self.set_trait("columns", columns)

    @traitlets.observe("feature", "pinned")
    def _show(self, change: Any) -> None:
        if not self.live:  # the cards of a saved file stay as they are
            return
        wanted = [*([self.feature] if self.feature >= 0 else []), *self.pinned]
        self.set_trait("cards", [card_state(self.view.card(feature)) for feature in dict.fromkeys(wanted)])
        if change["name"] == "feature":
            self.document = -1
            self._test()  # the same sentence, for this feature

    def __repr__(self) -> str:
        return f"BrowserWidget({self.total:,} features, {len(self.pinned)} pinned)"

"""What is chosen, shared between views and Python."""

import contextlib
from typing import Any

import numpy as np
import traitlets

from sparselens.errors import InputError

SHARED = ("documents", "document", "picked", "feature", "step", "token")


class Ids(traitlets.TraitType):
    """Whole numbers from 0, as a tuple; 32-bit numbers on their way to the browser and back."""

    default_value = ()
    info_text = "whole numbers from 0"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tag(to_json=lambda ids, _: np.asarray(ids, dtype="<u4").tobytes(),
                 from_json=lambda packed, _: np.frombuffer(packed, dtype="<u4"))

    def validate(self, owner: Any, value: Any) -> tuple[int, ...]:
        """Accept any sequence of whole numbers."""
        ids = np.asarray(value)
        if ids.ndim == 1 and not len(ids):
            return ()
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0:
            self.error(owner, value)
        return tuple(ids.tolist())


class Selection(traitlets.HasTraits):
    """One choice for several widgets: what is chosen in one is shown in the others, and read here.

    Args:
        widgets: what `.explore()` gave, of views on the same texts and dictionary.

    Attributes:
        documents: the chosen texts, a tuple of numbers.
        document: the text that is open, -1 for none.
        picked: the chosen features.
        feature: the feature that is open, -1 for none.
        step: the chosen step of a chain of thought, from 0; -1 for none.
        token: the chosen token of a text, from 0; -1 for none.

    `observe` tells of changes, as for any widget: `chosen.observe(print, "documents")`.
    """

    documents = Ids()
    document = traitlets.Int(-1)
    picked = Ids()
    feature = traitlets.Int(-1)
    step = traitlets.Int(-1)
    token = traitlets.Int(-1)

    def __init__(self, *widgets: traitlets.HasTraits) -> None:
        super().__init__()
        self._widgets: list[traitlets.HasTraits] = []
        self.observe(self._tell, list(SHARED))
        for widget in widgets:
            self.join(widget)

    def join(self, widget: traitlets.HasTraits) -> None:
        """Add a widget. It takes over what is chosen here; where nothing is, its own choice is taken over.

        Raises:
            InputError: the widget has nothing to choose.
        """
        own = [name for name in SHARED if widget.has_trait(name)]
        if not own:
            raise InputError(f"{type(widget).__name__} has none of {', '.join(SHARED)}: there is nothing to share.")
        self._widgets.append(widget)
        for name in own:
            if getattr(self, name) == self.trait_defaults(name):
                setattr(self, name, getattr(widget, name))
            self._give(widget, name)
        widget.observe(self._hear, own)

    def leave(self, widget: traitlets.HasTraits) -> None:
        """Take a widget out; it keeps what it shows."""
        self._widgets.remove(widget)
        widget.unobserve(self._hear, [name for name in SHARED if widget.has_trait(name)])

    def _hear(self, change: Any) -> None:
        setattr(self, change["name"], change["new"])

    def _tell(self, change: Any) -> None:
        for widget in list(self._widgets):
            if widget.has_trait(change["name"]):
                self._give(widget, change["name"])

    def _give(self, widget: traitlets.HasTraits, name: str) -> None:
        # a view that does not hold what is chosen keeps what it shows
        with contextlib.suppress(traitlets.TraitError, InputError):
            setattr(widget, name, getattr(self, name))

    def __repr__(self) -> str:
        chosen = f"{len(self.documents):,} documents, {len(self.picked):,} features"
        return f"Selection({chosen}; document {self.document}, feature {self.feature}; {len(self._widgets)} views)"

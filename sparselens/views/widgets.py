"""The live widgets. Importing this module imports anywidget, so everything else imports it lazily."""

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from sparselens.errors import InputError
from sparselens.views.base import View, pack_columns

if TYPE_CHECKING:
    from sparselens.views.tokens import TokenView

PAGE_TOKENS = 2000  # spans a browser lays out in about a tenth of a second


@cache
def read_static(*names: str) -> str:
    """Return files of the folder `static`, one after the other."""
    folder = Path(__file__).parent / "static"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


class Refused(InputError, traitlets.TraitError):
    """A value that a widget does not take. Both kinds at once: only for the second is what a page sent taken back."""


def checks(*names: str) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """As `traitlets.validate`, for a check that raises InputError."""

    def wrap(check: Callable[[Any, Any], Any]) -> Any:
        @wraps(check)
        def checked(widget: Any, proposal: Any) -> Any:
            try:
                return check(widget, proposal)
            except InputError as error:
                raise Refused(str(error)) from error

        return traitlets.validate(*names)(checked)

    return wrap


class ViewWidget(anywidget.AnyWidget):
    """What all live views share: the view they show, its static form beside the live one, and checks.

    Attributes:
        view: the static view it was made from.
    """

    view: Any

    def __init__(self, view: View, fixed: dict[str, Any], **chosen: Any) -> None:
        self.view = view
        for name, value in fixed.items():
            self.set_trait(name, value)
        super().__init__(**chosen)

    @staticmethod
    def _between(value: int, low: int, high: int, name: str) -> int:
        if not low <= value <= high:
            raise traitlets.TraitError(f"{name} is {value}; it must lie between {low} and {high}.")
        return value

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take what a page sent, all of it or nothing: then the page is told what holds."""
        try:
            super().set_state(sync_data)
        except traitlets.TraitError:
            self.send_state([name for name in sync_data if name in self.keys])
            raise

    def __repr__(self) -> str:
        return repr(self.view).replace("View(", "Widget(", 1)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        # the static form is what a reader without this kernel sees
        return {**data, "text/plain": repr(self), "text/html": self.view.to_html()}, metadata


class TokenWidget(ViewWidget):
    """A token strip to click and to steer; made by `TokenView.explore()`.

    Traits to read, set and observe:
        token: index of the chosen token, -1 for none.
        feature: id of the feature that colours the strip.
        threshold: tokens with a smaller magnitude stay plain, in units of the activation.
        page: which page of `page_size` tokens is open, from 0.
    `tokens`, `features`, `labels` and the packed numbers are set once.
    """

    _esm = read_static("shared.js", "tokens.js")
    _css = read_static("shared.css", "tokens.css")

    tokens = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    features = traitlets.List(traitlets.Int(), read_only=True).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    title = traitlets.Unicode(read_only=True).tag(sync=True)
    values = traitlets.Bytes(read_only=True).tag(sync=True)
    peaks = traitlets.List(traitlets.Float(), read_only=True).tag(sync=True)
    page_size = traitlets.Int(PAGE_TOKENS, read_only=True).tag(sync=True)
    token = traitlets.Int(-1).tag(sync=True)
    feature = traitlets.Int().tag(sync=True)
    threshold = traitlets.Float(0.0).tag(sync=True)
    page = traitlets.Int(0).tag(sync=True)

    def __init__(self, view: "TokenView") -> None:
        packed, peaks = pack_columns(view.values)
        fixed = {
            "tokens": view.tokens,
            "features": view.features,
            "labels": [view.labels.get(feature, "") for feature in view.features],
            "title": view.title or "",
            "values": packed,
            "peaks": peaks,
        }
        super().__init__(view, fixed, feature=view.features[0])

    @checks("token")
    def _check_token(self, proposal: Any) -> int:
        return self._between(proposal["value"], -1, len(self.tokens) - 1, "token")

    @checks("page")
    def _check_page(self, proposal: Any) -> int:
        return self._between(proposal["value"], 0, (len(self.tokens) - 1) // self.page_size, "page")

    @checks("feature")
    def _check_feature(self, proposal: Any) -> int:
        self.view.column(proposal["value"])
        return proposal["value"]

    @checks("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        if not proposal["value"] >= 0:
            raise traitlets.TraitError(f"threshold is {proposal['value']}; it must be 0 or larger.")
        return proposal["value"]

    @property
    def selected(self) -> int:
        """The chosen token, -1 for none."""
        return self.token

    def __repr__(self) -> str:
        return f"TokenWidget({len(self.tokens):,} tokens, {len(self.features)} features)"

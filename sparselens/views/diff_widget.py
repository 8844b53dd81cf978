"""The live table of a dataset difference."""

from typing import Any

import numpy as np
import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean
from sparselens.views.diff import ROWS
from sparselens.views.diff_view import DiffView
from sparselens.views.selection import Ids
from sparselens.views.widgets import ViewWidget, checks, read_static

SENT = 500  # rows a browser sorts and filters; the texts of the first 30 come along, others when asked for
_COLUMNS = ["feature", "freq_a", "freq_b", "difference", "ci_low", "ci_high", "q_value"]


class DiffWidget(ViewWidget):
    """A table of features to sort, filter and open; made by `DiffView.explore()`.

    Traits to read, set and observe:
        feature: the feature whose texts are shown, -1 for none.
        picked: the features that were marked, a tuple.
        text: the chosen text as `(side, document)`, side "a" or "b"; empty for none.
    """

    _esm = read_static("shared.js", "texts.js", "diff.js")
    _css = read_static("shared.css", "texts.css", "diff.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    notes = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    names = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    columns = traitlets.Bytes(read_only=True).tag(sync=True)
    descriptions = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    total = traitlets.Int(read_only=True).tag(sync=True)
    store = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    extra = traitlets.Dict(read_only=True).tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)
    picked = Ids().tag(sync=True)
    text = traitlets.Tuple().tag(sync=True)

    def __init__(self, view: DiffView) -> None:
        frame = view.frame
        self._known = dict(zip(map(int, frame["feature"]), map(str, frame["description"]), strict=True))
        sent = frame.head(SENT)
        features = [int(feature) for feature in sent["feature"][:ROWS]]
        fixed = {
            "title": clean(view.title or ""),
            "notes": [clean(note) for note in view.notes],
            "names": [clean(name) for name in view.names],
            "columns": np.ascontiguousarray(sent[_COLUMNS].to_numpy(dtype="<f8").T).tobytes(),
            "descriptions": [clean(text, 400) for text in sent["description"]],
            "total": len(frame),
            "store": [view.texts(feature) for feature in features],
        }
        super().__init__(view, fixed, feature=features[0] if features else -1)

    @property
    def selected(self) -> tuple[int, ...]:
        """The features that were marked; if none, the one that is open."""
        return self.picked or ((self.feature,) if self.feature >= 0 else ())

    @checks("feature")
    def _check_feature(self, proposal: Any) -> int:
        if proposal["value"] not in self._known and proposal["value"] != -1:
            raise InputError(f"feature {proposal['value']} is not in this difference: it fires in neither set.")
        return proposal["value"]

    @traitlets.observe("feature")
    def _fetch(self, change: Any) -> None:
        feature = change["new"]
        if feature >= 0 and all(entry["feature"] != feature for entry in self.store):
            texts = self.view.texts(feature)
            self.set_trait("extra", texts | {"description": clean(self._known[feature])})

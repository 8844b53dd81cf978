"""The live timeline of a chain of thought."""

from typing import Any

import numpy as np
import traitlets

from sparselens.views.base import clean, pack_texts
from sparselens.views.reasoning import ReasoningTimeline
from sparselens.views.widgets import ViewWidget, checks, read_static

_CHARS = 4000  # of a step
_STEPS = 500
_FEATURES = 12  # of a step


class TimelineWidget(ViewWidget):
    """A chain of thought to walk through; made by `ReasoningTimeline.explore()`. It holds the first 500 steps.

    Traits to read, set and observe:
        step: the chosen step, from 0; -1 for none.
        probe: number of the score that is drawn.
        threshold: a step whose score is below it is doubted.
        feature: the feature that was picked in the open step, -1 for none.
    """

    _esm = read_static("shared.js", "texts.js", "reasoning.js")
    _css = read_static("shared.css", "texts.css", "reasoning.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    question = traitlets.Unicode(read_only=True).tag(sync=True)
    notes = traitlets.Unicode(read_only=True).tag(sync=True)
    probes = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    chains = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    step = traitlets.Int(-1).tag(sync=True)
    probe = traitlets.Int(0).tag(sync=True)
    threshold = traitlets.Float(0.5).tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: ReasoningTimeline) -> None:
        chains = [view] if view.other is None else [view, view.other]
        said = {True: "the answer is right", False: "the answer is wrong", None: ""}
        fixed = {
            "title": clean(view.title or "", 400),
            "question": clean(view.question, _CHARS),
            "notes": " · ".join(filter(None, (f"{len(view):,} steps", said[view.verdict]))),
            "probes": [clean(name, 80) for name in view.probes],
            "chains": [_packed(chain) for chain in chains],
        }
        first = min(max(view.first_below(), 0), _STEPS - 1)  # open where the doubt begins
        super().__init__(view, fixed, threshold=view.threshold, step=first)

    @property
    def selected(self) -> int:
        """The chosen step, -1 for none."""
        return self.step

    @checks("step")
    def _check_step(self, proposal: Any) -> int:
        most = max(len(chain["steps"]) for chain in self.chains)
        return self._between(proposal["value"], -1, most - 1, "step")

    @checks("probe")
    def _check_probe(self, proposal: Any) -> int:
        return self._between(proposal["value"], 0, max(len(self.probes) - 1, 0), "probe")

    @checks("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] <= 1:
            raise traitlets.TraitError(f"threshold is {proposal['value']}; it must lie between 0 and 1.")
        return proposal["value"]

    def __repr__(self) -> str:
        return repr(self.view).replace("ReasoningTimeline(", "TimelineWidget(", 1)


def _packed(view: ReasoningTimeline) -> dict[str, Any]:
    """One chain as a browser gets it; scores as float32 `[probes, 3, steps]`."""
    n = min(len(view), _STEPS)
    rows = [] if view.tokens is None else view.tokens[:n]
    return {
        "steps": [clean(step, _CHARS) for step in view.steps[:n]],
        "total": len(view),
        "labels": [-1 if label is None else int(label >= 0.5) for label in view.labels[:n]],
        "scores": np.ascontiguousarray(view.scores[:, :, :n]).astype("<f4").tobytes(),
        "features": [[[f, clean(text, 200), value] for f, text, value in row[:_FEATURES]] for row in view.features[:n]],
        "tokens": pack_texts([{"tokens": tokens, "values": values} for tokens, values in rows]) if rows else None,
    }

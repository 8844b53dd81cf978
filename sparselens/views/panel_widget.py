"""The live panel: set features, and watch both answers come."""

import math
from dataclasses import replace
from typing import Any

import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean
from sparselens.views.panel import MOST_KNOBS, InterventionPanel
from sparselens.views.turns import Turn, Turns
from sparselens.views.widgets import ViewWidget, checks, read_static

SIDES = ("untouched", "steered")


class PanelWidget(ViewWidget):
    """Features to set, and a model that answers; made by `InterventionPanel.explore()`.

    Traits to read, set and observe:
        values: what each feature is set to, None where it is left to the model; in the order of `features`.
        prompt: what the model is asked.
        running: True while it answers; set it to start and to stop. Other values begin a running answer anew.
        untouched_answer, steered_answer: the texts so far.
        status: what is going on, or what went wrong.
        feature: a feature chosen here or in another view; one without a knob gets one.
        features, code, numbers: the features, the call that does the same, and the numbers; to read.

    Attributes:
        view: the panel with the last answers.
    """

    view: InterventionPanel
    _esm = read_static("shared.js", "answers.js", "panel.js")
    _css = read_static("shared.css", "answers.css", "panel.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    can_answer = traitlets.Bool(read_only=True).tag(sync=True)
    features = traitlets.List(traitlets.Int(), read_only=True).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    ranges: Any = traitlets.List(read_only=True).tag(sync=True)
    values: Any = traitlets.List(traitlets.Float(allow_none=True)).tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    untouched_answer = traitlets.Unicode().tag(sync=True)
    steered_answer = traitlets.Unicode().tag(sync=True)
    untouched_note = traitlets.Unicode().tag(sync=True)
    steered_note = traitlets.Unicode().tag(sync=True)
    numbers: Any = traitlets.List(read_only=True).tag(sync=True)
    code = traitlets.Unicode(read_only=True).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    feature = traitlets.Int(-1).tag(sync=True)

    def __init__(self, view: InterventionPanel) -> None:
        self._turns = Turns()
        self._asked = view.prompt if view.untouched else None  # the prompt of the whole untouched answer that is shown
        fixed = {"title": clean(view.title or ""), "can_answer": view.answer is not None, **_knobs(view),
                 "numbers": _numbers(view), "code": clean(view.code(view.values, view.prompt))}
        texts = {"untouched_answer": clean(view.untouched), "steered_answer": clean(view.steered)}
        super().__init__(view, fixed, values=[knob.value for knob in view.knobs], prompt=clean(view.prompt), **texts)

    @property
    def selected(self) -> dict[int, float]:
        """What is set, by feature."""
        return {f: v for f, v in zip(self.features, self.values, strict=True) if v is not None}

    @checks("values")
    def _check_values(self, proposal: Any) -> list[float | None]:
        values = proposal["value"]
        if len(values) != len(self.features):
            raise InputError(f"{len(values)} values for {len(self.features)} features: give one a feature, or None.")
        bad = next((v for v in values if v is not None and not math.isfinite(v)), None)
        if bad is not None:
            raise InputError(f"a feature cannot be set to {bad}; give a number, or None to leave it to the model.")
        return values

    @checks("running")
    def _check_running(self, proposal: Any) -> bool:
        if proposal["value"] and self.view.answer is None:
            raise InputError("there is no model to answer: make the panel with one.")
        return proposal["value"]

    @checks("feature")
    def _check_feature(self, proposal: Any) -> int:
        feature = proposal["value"]
        self._found = None if feature in (-1, *self.features) else self.view.knob(feature)
        if self._found is not None and len(self.features) >= MOST_KNOBS and None not in self.values:
            raise InputError(f"there are {MOST_KNOBS} features, and all are set: leave one to the model first.")
        return feature

    @traitlets.observe("feature")
    def _add(self, _: Any) -> None:
        """A feature that was chosen elsewhere gets a knob; a full panel gives up one that is not set."""
        if self._found is None:
            return
        knobs = [k._replace(value=v) for k, v in zip(self.view.knobs, self.values, strict=True)]
        if len(knobs) >= MOST_KNOBS:
            knobs.pop(next(i for i, knob in enumerate(knobs) if knob.value is None))
        self.view = replace(self.view, knobs=(*knobs, self._found))
        with self.hold_sync():
            for name, value in _knobs(self.view).items():
                self.set_trait(name, value)
            self.values = [knob.value for knob in self.view.knobs]

    @traitlets.observe("values", "prompt")
    def _follow(self, change: Any) -> None:
        self.set_trait("code", clean(self.view.code(self.selected, self.prompt)))
        if self.running and change["name"] == "values":
            self._start()

    @traitlets.observe("running")
    def _start_or_stop(self, change: Any) -> None:
        if change["new"]:
            self._start()
        else:
            self._turns.end()

    def _start(self) -> None:
        knobs = tuple(k._replace(value=v) for k, v in zip(self.view.knobs, self.values, strict=True))
        panel = replace(self.view, knobs=knobs, prompt=self.prompt)

        def work(turn: Turn) -> None:
            self.steered_answer = self.steered_note = ""
            self.set_trait("numbers", [])
            if self._asked != panel.prompt:
                self._asked = None
                self.untouched_answer = self.untouched_note = ""
                self.status = "the untouched model answers"
                self._stream(turn, panel, "untouched")
                self._asked = panel.prompt
            self.status = "the steered model answers"
            self._stream(turn, panel, "steered")
            self.status = "measuring"
            done = panel.answered(self.untouched_answer, self.steered_answer)
            turn.check()
            # knobs may have come in the meantime
            self.view = replace(done, knobs=self.view.knobs)
            self.set_trait("numbers", _numbers(done))

        self._turns.begin(work, self._tell, self._done)

    def _tell(self, status: str) -> None:
        self.status = status

    def _done(self) -> None:
        self.running = False

    def _stream(self, turn: Turn, panel: InterventionPanel, side: str) -> None:
        answer = panel.answer
        assert answer is not None
        values = panel.values if side == "steered" else {}

        def show(text: str, note: str) -> None:
            setattr(self, f"{side}_answer", text)
            setattr(self, f"{side}_note", note)

        turn.listen(lambda say: answer(values, panel.prompt, say), show, side)

    def __repr__(self) -> str:
        return f"PanelWidget({len(self.features)} features, {len(self.selected)} set)"


def _knobs(view: InterventionPanel) -> dict[str, Any]:
    return {"features": [knob.feature for knob in view.knobs],
            "labels": [clean(knob.label, 200) for knob in view.knobs],
            "ranges": [[float(knob.low), float(knob.high)] for knob in view.knobs]}


def _numbers(view: InterventionPanel) -> list[list[Any]]:
    return [[name, *(x if math.isfinite(x) else None for x in both)] for name, *both in view.numbers]

"""The live sparsity dial, with an answer of the model at the chosen setting beside the dense one."""

from typing import Any

import numpy as np
import traitlets

from sparselens.errors import InputError
from sparselens.views.base import clean
from sparselens.views.dial import COSTS, Answer, SparsityDial
from sparselens.views.turns import Turn, Turns
from sparselens.views.widgets import ViewWidget, checks, read_static


class DialWidget(ViewWidget):
    """A dial over measured settings; made by `SparsityDial.explore()`.

    Traits to read, set and observe:
        method, sparsity: the chosen setting, one that was measured.
        x, y: the cost and the quality that are drawn.
        prompt: what the model is asked.
        running: True while it answers; set it to start and to stop.
        dense_answer, sparse_answer: the texts so far.
        dense_note, sparse_note: which setting each was made at, and how long it took.
        status: what is going on, or what went wrong.

    Attributes:
        answer: what lets the model answer, as for `SparsityDial.explore`; None where no model is at hand.
    """

    view: SparsityDial
    _esm = read_static("shared.js", "answers.js", "dial_plot.js", "dial.js")
    _css = read_static("shared.css", "answers.css", "dial.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    note = traitlets.Unicode(read_only=True).tag(sync=True)
    methods = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    metrics = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    costs = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    rows = traitlets.Bytes(read_only=True).tag(sync=True)
    can_answer = traitlets.Bool(read_only=True).tag(sync=True)
    method = traitlets.Unicode().tag(sync=True)
    sparsity = traitlets.Float().tag(sync=True)
    x = traitlets.Unicode().tag(sync=True)
    y = traitlets.Unicode().tag(sync=True)
    prompt = traitlets.Unicode("The capital of France is").tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    dense_answer = traitlets.Unicode().tag(sync=True)
    sparse_answer = traitlets.Unicode().tag(sync=True)
    dense_note = traitlets.Unicode().tag(sync=True)
    sparse_note = traitlets.Unicode().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)

    def __init__(self, view: SparsityDial) -> None:
        self._answer: Answer | None = None
        self._turns = Turns()
        self._asked: str | None = None  # the prompt of the whole dense answer that is shown
        frame, metrics = view.frame, view.metrics
        codes = frame["method"].map(view.methods.index)
        columns = np.stack([codes, frame["sparsity"], *(frame[metric.key] for metric in metrics)]).astype("<f8")
        fixed = {
            "title": clean(view.title or ""),
            "note": clean(view.note),
            "methods": view.methods,
            "metrics": [metric._asdict() | {"dense": view.dense.get(metric.key)} for metric in metrics],
            "costs": list(COSTS),
            "rows": columns.tobytes(),
        }
        x, y = view.axes
        stops = view.stops(view.methods[0])
        super().__init__(view, fixed, method=view.methods[0], sparsity=stops[len(stops) // 2], x=x, y=y)

    @property
    def answer(self) -> Answer | None:
        return self._answer

    @answer.setter
    def answer(self, answer: Answer | None) -> None:
        self._answer = answer
        self.set_trait("can_answer", answer is not None)

    @property
    def selected(self) -> tuple[str, float]:
        """The chosen method and sparsity."""
        return self.method, self.sparsity

    @checks("method")
    def _check_method(self, proposal: Any) -> str:
        self.view.stops(proposal["value"])
        return proposal["value"]

    @checks("sparsity")
    def _check_sparsity(self, proposal: Any) -> float:
        place = self.view.place(self.method, proposal["value"])
        return float(self.view.frame["sparsity"].iloc[place])

    @checks("x", "y")
    def _check_axis(self, proposal: Any) -> str:
        keys = ["sparsity", *(metric.key for metric in self.view.metrics)]
        if proposal["value"] not in keys:
            raise InputError(f"{proposal['value']!r} was not measured; there are {', '.join(keys)}.")
        return proposal["value"]

    @checks("running")
    def _check_running(self, proposal: Any) -> bool:
        if proposal["value"] and self._answer is None:
            raise InputError("there is no model to answer: make the dial with .explore(answer=...).")
        return proposal["value"]

    @traitlets.observe("method")
    def _keep_to_stops(self, change: Any) -> None:
        """Another method may have been measured at other sparsities: take the nearest."""
        self.sparsity = min(self.view.stops(change["new"]), key=lambda stop: abs(stop - self.sparsity))

    @traitlets.observe("running")
    def _start_or_stop(self, change: Any) -> None:
        if not change["new"]:
            self._turns.end()
            return
        method, sparsity, prompt = self.method, self.sparsity, self.prompt

        def work(turn: Turn) -> None:
            self.sparse_answer = self.sparse_note = ""
            if self._asked != prompt:
                self._asked = None
                self.dense_answer = self.dense_note = ""
                self.status = "the dense model answers"
                self._stream(turn, "dense", method, 0.0, prompt)
                self._asked = prompt
            self.status = f"{method} at {sparsity:.0%} answers"
            self._stream(turn, "sparse", method, sparsity, prompt)

        self._turns.begin(work, self._tell, self._done)

    def _tell(self, status: str) -> None:
        self.status = status

    def _done(self) -> None:
        self.running = False

    def _stream(self, turn: Turn, side: str, method: str, sparsity: float, prompt: str) -> None:
        answer = self._answer
        assert answer is not None

        def show(text: str, note: str) -> None:
            setattr(self, f"{side}_answer", text)
            setattr(self, f"{side}_note", note)

        name = f"{method} at {sparsity:.0%}" if sparsity else "dense"
        turn.listen(lambda say: answer(method, sparsity, prompt, say), show, name)

    def __repr__(self) -> str:
        return f"DialWidget({self.method} at {self.sparsity:.0%}; {len(self.view.frame)} settings)"

"""The live curve, the static plots and the result table."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

from sparselens.errors import InputError
from sparselens.views import LiveCurve, curve_figure, frontier, report_html
from tests.views.allowed import check
from tests.views.samples import HOSTILE


class _Kernel:
    """Stands in for a notebook: records what would be shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[bytes] = []
        self.updated: list[bytes] = []
        handle = types.SimpleNamespace(update=lambda image: self.updated.append(image.data))

        def display(image, display_id):
            assert display_id
            self.shown.append(image.data)
            return handle

        import IPython
        import IPython.display
        import matplotlib.pyplot as plt

        plt.close(plt.figure())  # the first figure asks for the shell
        monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(kernel=object()))
        monkeypatch.setattr(IPython.display, "display", display)


@pytest.fixture
def kernel(monkeypatch) -> _Kernel:
    return _Kernel(monkeypatch)


def test_one_picture_is_shown_and_then_replaced(kernel):
    curve = LiveCurve("t", min_seconds=0.0)
    curve.update(0, {"loss": 2.0})
    curve.close()
    assert len(kernel.shown) == 1
    assert len(kernel.updated) == 1
    assert kernel.shown[0].startswith(b"\x89PNG")


def test_drawing_is_rare(kernel, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    curve = LiveCurve(min_seconds=2.0)
    for step in range(100):
        curve.update(step, {"loss": 1.0})
        now[0] += 0.1
    assert len(kernel.shown) == 1
    assert len(kernel.updated) == 4


def test_slow_drawing_is_rarer_still(kernel, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    curve = LiveCurve(min_seconds=0.1)
    real = curve.figure

    def slow():
        now[0] += 1.0
        return real()

    monkeypatch.setattr(curve, "figure", slow)
    for step in range(100):
        curve.update(step, {"loss": 1.0})
        now[0] += 0.3
    assert len(kernel.shown) + len(kernel.updated) == 2


def test_outside_a_notebook_it_only_records(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    curve = LiveCurve()
    for step in range(5):
        curve.update(step, {"loss": 5.0 - step, "fvu": 0.5})
    curve.close()
    assert curve.history["loss"] == [(0, 5.0), (1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert repr(curve) == "LiveCurve(loss 1, fvu 0.5)"
    assert capsys.readouterr().out == ""


def test_curve_figures(tmp_path):
    import matplotlib.pyplot as plt

    history = {"$loss": [(i, 100.0 * 0.9**i) for i in range(100)], "b": [(0, 1.0)], "c": [(0, float("nan")), (1, 2.0)]}
    panels = curve_figure(history, title="$t")
    assert [axes.get_title(loc="left") for axes in panels.axes] == ["\\$loss: 0.00295", "b: 1", "c: 2"]
    assert panels.axes[0].get_yscale() == "log"
    together = curve_figure(history, x="tokens", y="loss")
    assert len(together.axes) == 1
    assert together.axes[0].get_xlabel() == "tokens"
    for figure in (panels, together):
        figure.savefig(tmp_path / "x.png")
    assert plt.get_fignums() == []
    _, axes = plt.subplots()
    assert curve_figure(history, axes) is axes.figure
    assert len(axes.lines) == 3
    plt.close("all")
    with pytest.raises(InputError, match="nothing was recorded"):
        curve_figure({})


def test_long_curves_are_thinned():
    figure = curve_figure({"loss": [(i, 1.0) for i in range(100_000)]})
    assert len(figure.axes[0].lines[0].get_xdata()) <= 2100


def test_frontier():
    import matplotlib.pyplot as plt

    frame = pd.DataFrame({"cost": [3, 1, 2, np.nan], "loss": [1.0, 3.0, 2.0, 1.0], "name": ["$a", "$a", "b", "b"]})
    axes = frontier(frame, "cost", "loss", "name")
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1.0, 3.0], [2.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["\\$a", "b"]
    styles = {(line.get_color(), line.get_marker()) for line in frontier(
        pd.DataFrame({"x": range(20), "y": range(20), "n": range(20)}), "x", "y", "n").lines}  # fmt: skip
    assert len(styles) == 20
    plt.close("all")
    with pytest.raises(InputError, match=r"no column 'lost'. Closest: loss"):
        frontier(frame, "cost", "lost", "name")


def test_report_table():
    rows = [("l0", 31.98214), ("tokens", 4_000_000), ("ok", np.bool_(True)), (HOSTILE[0], HOSTILE[1]), ("x", 1, np.nan)]
    read = check(report_html("Fit <of> it", rows))
    for text in ("Fit <of> it", "32", "4,000,000", "yes", HOSTILE[0], HOSTILE[1], "–"):
        assert text in read.text

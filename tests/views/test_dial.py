"""The sparsity dial: only measured settings are shown, the choice reaches Python, and a model answers and stops."""

import threading
import time

import numpy as np
import pandas as pd
import pytest

from sparselens.errors import InputError
from sparselens.views import sparsity_dial
from tests.views.allowed import check
from tests.views.samples import HOSTILE

DENSE = {"perplexity": 10.0, "kl": 0.0, "top1": 1.0, "weight_bytes": 500e6}


def sample(methods=("TEAL", "WINA"), **options):
    """Two methods, measured at different sparsities."""
    rows = [
        {"method": name, "sparsity": s, "achieved": s - 0.01, "perplexity": (10 + i) * np.exp(4 * s**3),
         "kl": s**3, "top1": 1 - s / 4, "weight_bytes": 500e6 - 400e6 * s}
        for i, name in enumerate(methods)
        for s in ((0.65, 0.25, 0.5) if i == 0 else (0.5, 0.8))
    ]  # fmt: skip
    return sparsity_dial(pd.DataFrame(rows), DENSE, **{"title": "a dial", "note": "on 1,024 tokens", **options})


def wait_until(done, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_settings_are_sorted_and_start_at_the_dense_model():
    view = sample()
    frame = view.to_frame()
    assert frame["method"].tolist() == ["TEAL"] * 4 + ["WINA"] * 3
    assert view.stops("TEAL") == [0, 0.25, 0.5, 0.65]
    assert view.stops("WINA") == [0, 0.5, 0.8]
    starts = frame[frame["sparsity"] == 0]
    assert (starts["perplexity"] == 10).all()
    assert (starts["achieved"] == 0).all()
    assert repr(view) == "SparsityDial(TEAL, WINA; 7 settings)"


def test_a_measured_start_is_kept():
    frame = pd.DataFrame({"method": ["a", "a"], "sparsity": [0.0, 0.5], "kl": [0.001, 0.2]})
    assert sparsity_dial(frame, {"kl": 0.0}).to_frame()["kl"].tolist() == [0.001, 0.2]
    assert sparsity_dial(frame.tail(1)).stops("a") == [0.5], "nothing is made up where nothing is known"


def test_a_setting_is_found_or_the_nearest_is_named():
    view = sample()
    assert view.frame.iloc[view.place("WINA", 0.8)]["weight_bytes"] == 500e6 - 400e6 * 0.8
    with pytest.raises(InputError, match=r"at 0, 0.25, 0.5, 0.65. Closest: 0.5"):
        view.place("TEAL", 0.55)
    with pytest.raises(InputError, match="'TEEL' was not measured; there are TEAL, WINA. Closest: TEAL"):
        view.stops("TEEL")


@pytest.mark.parametrize(
    ("change", "dense", "says"),
    [
        (lambda f: f.drop(columns="method"), {}, "lacks method"),
        (lambda f: f.head(0), {}, "0 rows"),
        (lambda f: f[["method", "sparsity"]], {}, "holds no quality"),
        (lambda f: f.assign(kl=np.nan), {}, "holds no quality"),
        (lambda f: f.assign(sparsity=1.0), {}, "out of range"),
        (lambda f: f.assign(sparsity=-0.1), {}, "out of range"),
        (lambda f: f.assign(sparsity=np.nan), {}, "out of range"),
        (lambda f: pd.concat([f, f]), {}, "more than once"),
        (lambda f: f, {"perplexty": 1.0}, "Closest: perplexity"),
    ],
)
def test_what_cannot_be_shown(change, dense, says):
    frame = pd.DataFrame({"method": ["a"], "sparsity": [0.5], "kl": [0.2], "weight_bytes": [1.0]})
    with pytest.raises(InputError, match=says):
        sparsity_dial(change(frame), dense)


def test_the_static_form_is_safe_and_small():
    view = sample((HOSTILE[0], HOSTILE[7]), title=HOSTILE[1], note=HOSTILE[9])
    for most in (200_000, 12_000):
        html = view.to_html(most)
        assert len(html.encode()) <= most
        read = check(html)
        for text in (HOSTILE[0], HOSTILE[7], HOSTILE[1], HOSTILE[9]):
            assert text in read.text
    assert "<img" in view.to_html()


def test_the_table_shows_units():
    text = check(sample().to_html(12_000)).text
    assert "weights read per token, MB" in text
    row = text[text.index("TEAL25%") :]
    assert row.startswith("TEAL25%2410.60.015693.8400")


def test_the_figure_rings_the_setting():
    view = sample()
    axes = view.figure("WINA", 0.8).axes[0]
    ring = next(line for line in axes.lines if line.get_markersize() == 14)
    assert ring.get_xdata()[0] == pytest.approx(79)
    assert ring.get_ydata()[0] == pytest.approx(11 * np.exp(4 * 0.8**3))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("achieved sparsity, %", "perplexity")
    assert len(view.figure().axes[0].lines) == len(axes.lines) - 1


def test_many_settings_are_cut_and_said_so():
    frame = pd.DataFrame({"method": [f"m{i}" for i in range(400)], "sparsity": 0.5, "kl": 0.1})
    html = sparsity_dial(frame).to_html()
    assert "more settings: see .to_frame()" in check(html).text
    assert len(html.encode()) <= 200_000


def test_the_choice_reaches_python():
    dial = sample().explore()
    heard = []
    dial.observe(lambda change: heard.append((change["name"], change["new"])), ["method", "sparsity"])
    assert dial.selected == ("TEAL", 0.5)
    dial.set_state({"sparsity": 0.65})
    dial.set_state({"method": "WINA", "sparsity": 0.8})
    assert dial.selected == ("WINA", 0.8)
    assert heard[0] == ("sparsity", 0.65)
    assert set(heard[1:]) == {("method", "WINA"), ("sparsity", 0.8)}


def test_another_method_keeps_to_its_own_settings():
    dial = sample().explore()
    dial.sparsity = 0.65
    dial.method = "WINA"
    assert dial.sparsity in (0.5, 0.8)
    with pytest.raises(InputError, match="Closest: 0.5"):
        dial.sparsity = 0.3
    with pytest.raises(InputError, match="was not measured"):
        dial.method = "CATS"
    with pytest.raises(InputError, match="'ce' was not measured"):
        dial.y = "ce"


def test_rows_survive_packing():
    view = sample()
    dial = view.explore()
    packed = np.frombuffer(dial.rows, "<f8").reshape(-1, len(view.frame))
    np.testing.assert_array_equal(packed[0], [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(packed[1:], view.frame.drop(columns="method").to_numpy().T)
    assert [metric["key"] for metric in dial.metrics] == list(view.frame.columns[2:])


class Model:
    """Answers letter by letter, and records what was asked."""

    def __init__(self, text: str = "abc", pause: float = 0.0):
        self.text, self.pause = text, pause
        self.asked: list[tuple[str, float, str]] = []
        self.running = self.most = 0

    def __call__(self, method, sparsity, prompt, say):
        self.asked.append((method, sparsity, prompt))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for letter in self.text if sparsity else self.text.upper():
                time.sleep(self.pause)
                say(letter)
        finally:
            self.running -= 1


def run(dial) -> None:
    dial.running = True
    wait_until(lambda: not dial.running)
    dial._turns.thread.join(10)


def test_both_models_answer():
    model = Model("one")
    dial = sample().explore(answer=model)
    dial.prompt = HOSTILE[0]
    run(dial)
    assert (dial.dense_answer, dial.sparse_answer, dial.status) == ("ONE", "one", "")
    assert dial.dense_note.startswith("dense · 3 pieces")
    assert dial.sparse_note.startswith("TEAL at 50% · 3 pieces")
    assert model.asked == [("TEAL", 0.0, HOSTILE[0]), ("TEAL", 0.5, HOSTILE[0])]


def test_the_dense_answer_is_kept_for_the_same_prompt():
    model = Model()
    dial = sample().explore(answer=model)
    run(dial)
    dial.sparsity = 0.65
    run(dial)
    assert [sparsity for _, sparsity, _ in model.asked] == [0.0, 0.5, 0.65]
    dial.prompt = "another"
    run(dial)
    assert [sparsity for _, sparsity, _ in model.asked[3:]] == [0.0, 0.65]


def test_stop_stops_soon_and_takes_the_model_off():
    model = Model("x" * 10_000, pause=0.005)
    dial = sample().explore(answer=model)
    dial.running = True
    wait_until(lambda: dial.dense_answer)
    began = time.monotonic()
    dial.running = False
    dial._turns.thread.join(10)
    assert time.monotonic() - began < 0.3
    assert (model.running, dial.status, dial.sparse_answer) == (0, "stopped", "")
    assert 0 < len(dial.dense_answer) < 10_000


def test_a_new_run_waits_until_the_old_one_is_off():
    model = Model("x" * 400, pause=0.001)
    dial = sample().explore(answer=model)
    for sparsity in (0.25, 0.5, 0.65):
        dial.sparsity = sparsity
        dial.running = False
        dial.running = True
        time.sleep(0.02)
    wait_until(lambda: not dial.running)
    dial._turns.thread.join(10)
    assert model.most == 1
    assert dial.sparse_note.startswith("TEAL at 65%")
    assert dial.sparse_answer == "x" * 400


def test_what_goes_wrong_is_said():
    def broken(method, sparsity, prompt, say):
        say("half a ")
        raise ValueError("no <b>room</b>")

    dial = sample().explore(answer=broken)
    run(dial)
    assert dial.status == "ValueError: no <b>room</b>"
    assert dial.dense_answer == "half a "


def test_without_a_model_nothing_runs():
    dial = sample().explore()
    assert dial.can_answer is False
    with pytest.raises(InputError, match=r"explore\(answer=...\)"):
        dial.running = True
    assert threading.active_count() < 20


def test_the_bundle_and_the_saved_file(tmp_path):
    view = sample((HOSTILE[0], HOSTILE[1]), title=HOSTILE[2])
    data, _ = view.explore(answer=Model())._repr_mimebundle_()
    assert data["text/html"] == view.to_html()
    assert data["text/plain"].startswith("DialWidget(")
    assert view.save(tmp_path / "x.html").stat().st_size < 60_000
    assert view.save(tmp_path / "x.png").stat().st_size > 1000

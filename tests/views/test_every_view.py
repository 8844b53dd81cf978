"""What every view and every widget has: a static form in each output, traits that keep to their range, bounds."""

import re
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import traitlets

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import (
    Knob,
    Selection,
    channel_map,
    diff_view,
    map_view,
    mask_view,
    network_view,
    panel_view,
    sparsity_dial,
    timeline_view,
    widgets,
)
from sparselens.views.export import _own_state, _split
from tests.views.allowed import check
from tests.views.samples import diff_frame
from tests.views.scale_views import AT_SCALE, a_row, words

WIDGET = "application/vnd.jupyter.widget-view+json"
# Bytes that travel to the browser at the size that a view is made for.
BUDGETS = {
    "tokens": 150_000, "diff": 200_000, "points": 1_000_000, "network": 100_000, "card": 60_000, "browser": 120_000,
    "panel": 5_000, "timeline": 250_000, "dial": 10_000, "channels": 700_000, "masks": 1_050_000,
}


@pytest.fixture(scope="module")
def at_scale():
    """Views by name, each made once."""
    return cache(lambda name: AT_SCALE[name]())


@pytest.fixture(scope="module")
def static(at_scale):
    """Their static forms, each drawn once."""
    return cache(lambda name: at_scale(name).to_html())


def payload(widget) -> int:
    """Bytes of the state and of the buffers beside it."""
    import json

    state, buffers = _split(_own_state(widget))
    return len(json.dumps(state, separators=(",", ":"))) + sum(len(text) * 3 // 4 for _, text in buffers)


@pytest.mark.parametrize("name", AT_SCALE)
def test_every_output_holds_the_static_form(at_scale, static, monkeypatch, name):
    view, html = at_scale(name), static(name)
    monkeypatch.setattr(type(view), "to_html", lambda self: html)  # drawn once is enough
    still, live = view._repr_mimebundle_(), view.portable()._repr_mimebundle_()[0]
    assert set(still) == {"text/plain", "text/html"}, "without a widget manager or a kernel this is what shows"
    assert set(live) == {"text/plain", "text/html", WIDGET}
    assert live["text/html"] == still["text/html"] == html
    assert len(html) <= 200_000
    assert len(check(html).text) > 20
    for said in (still["text/plain"], live["text/plain"]):
        assert re.fullmatch(r"\w+\(.{1,200}\)", said), "a line, not all the traits"


def test_a_page_made_of_live_outputs_shows_all_of_them(static):
    from nbconvert import HTMLExporter

    cells = []
    for name in AT_SCALE:
        bundle = {"text/plain": name, "text/html": static(name), WIDGET: {"model_id": name, "version_major": 2}}
        cell = nbformat.v4.new_code_cell(f"{name}.explore()")
        cell.outputs = [nbformat.v4.new_output("display_data", data=bundle)]
        cells.append(cell)
    html, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells))

    def letters(source):
        return "".join(unescape(re.sub("<[^>]*>", "", source)).split())

    shown = letters(html)
    for name in AT_SCALE:  # no widget state was stored, so the static form is what the page has
        assert letters(static(name))[:400] in shown, name


@pytest.mark.parametrize("name", AT_SCALE)
def test_what_travels_keeps_to_its_budget(at_scale, name):
    assert payload(at_scale(name).portable()) <= BUDGETS[name]


# a trait of each widget, a value in its range and one outside, and what is said
TRAITS = {
    "tokens": ("token", 5, 2000, "between -1 and 1999"),
    "diff": ("feature", None, 99_999, "not in this difference"),
    "points": ("document", 7, 20_000, "between -1 and 19999"),
    "network": ("feature", None, 99_999, "99999 is in none of the 250 pairs"),
    "card": ("feature", 7, 99_999, "cannot load feature 99999"),
    "browser": ("feature", 3, 65_536, "65536"),
    "panel": ("feature", 2, 99_999, "no knob"),
    "timeline": ("step", 5, 300, "between -1 and 299"),
    "dial": ("method", "method 2", "method 9", "method 9"),
    "channels": ("channel", 5, 14_336, "between -1 and 14335"),
    "masks": ("head", 5, 9, "between 0 and 8"),
}


@pytest.mark.parametrize("name", AT_SCALE)
def test_what_is_out_of_range_is_refused_and_the_old_choice_stays(at_scale, name):
    trait, good, bad, said = TRAITS[name]
    widget = at_scale(name).portable()
    if good is not None:
        setattr(widget, trait, good)
    before = getattr(widget, trait)
    with pytest.raises((InputError, traitlets.TraitError), match=said):
        setattr(widget, trait, bad)
    assert getattr(widget, trait) == before
    with pytest.raises((InputError, traitlets.TraitError)):  # a front end may send it too
        widget.set_state({trait: bad})
    assert getattr(widget, trait) == before


@pytest.mark.parametrize("name", AT_SCALE)
def test_a_cell_that_is_run_again_makes_a_widget_of_its_own(at_scale, name):
    view = at_scale(name)
    trait, good, *_ = TRAITS[name]
    old = view.portable()
    start = getattr(old, trait)
    if good is not None:
        setattr(old, trait, good)
    new = view.portable()
    assert new.model_id != old.model_id
    assert getattr(new, trait) == start, "it starts afresh"
    old.close()
    new.send_state()


def test_a_hub_outlives_the_widgets_of_earlier_runs(at_scale):
    first = at_scale("points").portable()
    chosen = Selection(first)
    chosen.document = 4
    first.close()  # its cell was run again
    second, third = at_scale("points").portable(), at_scale("points").portable()
    chosen.join(second)
    assert second.document == 4
    again = Selection(second, third)  # so was the cell with the hub
    again.document = 9
    assert (chosen.document, second.document, third.document) == (9, 9, 9)


def test_nan_has_no_colour_in_masks_and_is_a_dash_in_tables():
    with pytest.raises(NotFiniteError, match="NaN"):
        mask_view(np.full((1, 1, 2, 2), np.nan), ["a", "b"], 1)
    rows = pd.DataFrame({"method": "m", "sparsity": [0.25, 0.5], "perplexity": [np.nan, 11.0]})
    text = check(sparsity_dial(rows, {"perplexity": 10.0}).to_html()).text
    assert "nan" not in text.lower()
    assert "–" in text
    with pytest.raises((InputError, NotFiniteError)):
        panel_view([Knob(1, "a", 0.0, float("nan"))], "p")


def test_no_tokens_have_no_mask():
    with pytest.raises(InputError):
        mask_view(np.zeros((1, 1, 0, 0)), [], 1)
    with pytest.raises(InputError):
        mask_view(np.zeros((0, 2, 1, 1)), ["a"], 1)


def test_a_million_features_and_pairs_stay_small():
    n = 1_000_000
    frame = diff_frame(100).sample(n, replace=True, random_state=0, ignore_index=True).assign(feature=range(n))
    many = diff_view(frame, lambda feature: {"a": [a_row(0)], "b": []})
    assert payload(many.explore()) < BUDGETS["diff"]
    pairs = pd.DataFrame({"feature_a": np.arange(n) % 999, "feature_b": 1000 + np.arange(n) // 999,
                          "npmi": np.linspace(0.9, 0.1, n), "support": 9})
    network = network_view(pairs)
    assert payload(network.explore()) < BUDGETS["network"]
    for view in (many, network):
        assert len(view.to_html()) <= 200_000
        assert re.search(r"1,000,000|999,9\d\d more", check(view.to_html()).text), "how many there are is said"


def test_no_style_of_one_widget_falls_on_another(at_scale):
    """JupyterLab has the styles of all widgets on one page."""
    folder = Path(widgets.__file__).parent / "static"
    made = [at_scale(name).portable() for name in AT_SCALE]
    for path in folder.glob("*.css"):
        text = path.read_text("utf-8")
        others = [widget for widget in made if text not in str(widget._css)]
        bare = set(re.findall(r"^\.sl-view \.(sl-[\w-]+)(?:[ ,{:\[]|$)", text, re.MULTILINE))
        used = {name for widget in others for name in bare if re.search(rf"\b{name}\b(?!-)", str(widget._esm))}
        allowed = set(re.findall(r"\.(sl-[\w-]+)", (folder / "shared.css").read_text("utf-8")))
        assert used - allowed == set(), path.name


LONG = 50_000


def long_row(document: int) -> dict:
    """A text of 50,000 tokens of which every thirteenth fires."""
    return {"tokens": words(LONG), "values": (np.arange(LONG) % 13 == 0).astype(float), "document": document}


OF_LONG_TEXTS = {
    "diff": lambda: diff_view(diff_frame(2), lambda feature: {"a": [long_row(0)] * 3, "b": [long_row(1)] * 3}),
    "network": lambda: network_view(pd.DataFrame({"feature_a": [1], "feature_b": [2], "npmi": [0.5], "support": [3]}),
                                    lambda a, b: {"a": [long_row(0)], "b": [long_row(1)]}),
    "map": lambda: map_view([[0, 0], [1, 1]], ["".join(words(LONG))] * 2),
    "timeline": lambda: timeline_view(["".join(words(LONG))] * 3, tokens=[(words(LONG), np.ones(LONG))] * 3),
    "masks": lambda: mask_view(np.tile(np.tri(782), (1, 2, 1, 1)), words(LONG), 64, possible=np.tri(782) > 0),
    "channels": lambda: channel_map(np.arange(LONG * 64).reshape(LONG, 64) % 3 > 0, words(LONG)),
    "panel": lambda: panel_view([Knob(1, "a", 0.0, 9.0, 3.0)], "".join(words(LONG)), code=lambda v, p: "code",
                                answer=lambda v, p, say: [say(word) for word in words(LONG)]).run(),
}


@pytest.mark.parametrize("name", OF_LONG_TEXTS)
def test_views_of_texts_of_50_000_tokens_stay_small(name, tmp_path):
    view = OF_LONG_TEXTS[name]()
    html = view.to_html()
    assert len(html) <= 200_000
    assert re.search(r"…|\d,\d\d\d", check(html).text), "that it is cut, or how long it is, is said"
    assert payload(view.portable()) < 1_100_000
    assert view.save(tmp_path / "x.html").stat().st_size < 1_600_000

"""What every view has: a static form that is safe and small, a bundle, files, a widget; and the packing of texts."""

import json

import numpy as np
import pytest

from sparselens.errors import InputError
from sparselens.views import export_html, save_html
from sparselens.views.base import clean, pack_texts
from sparselens.views.export import _split
from tests.views.allowed import check
from tests.views.sample_views import VIEWS, hostile_row
from tests.views.samples import HOSTILE

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # the plain font has no control characters


@pytest.fixture(params=VIEWS)
def view(request):
    return VIEWS[request.param]()


def test_the_static_form_is_safe_and_small(view):
    html = view.to_html()
    assert len(html.encode()) <= 200_000
    assert "<script>window.hacked=1</script>" in check(html).text
    assert len(view.to_html(max_bytes=len(html) * 3 // 4)) <= len(html) * 3 // 4


def test_the_bundle(view):
    bundle = view._repr_mimebundle_()
    assert bundle == {"text/plain": repr(view), "text/html": view.to_html()}
    data, _ = view.portable()._repr_mimebundle_()
    assert data["text/html"] == view.to_html()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert len(data["text/plain"]) < 200


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_pictures(view, name, tmp_path):
    import matplotlib.pyplot as plt

    assert view.save(tmp_path / name).stat().st_size > 2000
    assert plt.get_fignums() == []


def test_a_hostile_text_cannot_leave_a_saved_file(view, tmp_path):
    html = view.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script") == 2
    assert "<!--" not in html.split("sparselens-data", 1)[1]
    assert "http" not in html.split("sparselens-data", 1)[1].replace("http://www.w3.org/2000/svg", "")


def longest_list(value) -> int:
    """The length of the longest list of numbers in a state."""
    if isinstance(value, dict):
        return max(map(longest_list, value.values()), default=0)
    if not isinstance(value, list):
        return 0
    own = len(value) if all(isinstance(item, int | float) for item in value) else 0
    return max([own, *map(longest_list, value)])


def test_the_widget_holds_bytes_and_no_long_lists_of_numbers(view):
    widget = view.portable()
    state, buffers = _split({k: v for k, v in widget.get_state().items() if not k.startswith("_")})
    assert longest_list(state) < 40
    assert len(json.dumps(state)) + sum(len(text) for _, text in buffers) < 400_000


def test_another_ending(view, tmp_path):
    with pytest.raises(InputError, match=r"must end in one of .html, .png"):
        view.save(tmp_path / "x.docx")


def test_without_anywidget(view, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match="pip install anywidget"):
        view.explore()


def test_several_views_in_one_file(tmp_path):
    path = save_html([VIEWS["map"](), VIEWS["diff"]().explore()], tmp_path / "x.html", title="two")
    assert path.read_text(encoding="utf-8").count('"esm":') == 2
    with pytest.raises(InputError, match="there is no view to save"):
        export_html([], title="t")


def test_texts_survive_packing():
    rows = [hostile_row(3), {"tokens": ["a"] * 500, "values": np.eye(500)[300] * -4}]
    packed = pack_texts(rows, max_tokens=60)
    first, second = packed["texts"]
    assert (packed["peak"], packed["signed"]) == (4.0, True)
    assert (first["document"], second["document"]) == (3, -1)
    assert first["length"] == len(HOSTILE)
    assert second["spans"][0][0] == 292
    assert len(second["spans"][0][1]) == 17
    values = np.frombuffer(packed["values"], "<f2") * packed["peak"]
    shown = np.concatenate([hostile_row()["values"], np.eye(500)[300][292:309] * -4])
    np.testing.assert_allclose(values, shown, atol=1e-3)
    assert pack_texts([])["texts"] == []


def test_long_tokens_are_cut():
    assert len(pack_texts([hostile_row()])["texts"][0]["spans"][0][1][-1]) == 400
    assert clean("x" * 10, 5) == "xxxx…"
    assert clean("\ud800") == "?"


def test_every_live_view_is_among_those_that_the_browser_goes_through():
    import importlib
    import pkgutil

    import sparselens.views
    from sparselens.views.widgets import ViewWidget
    from tests.views.scale_views import AT_SCALE

    for module in pkgutil.iter_modules(sparselens.views.__path__):
        importlib.import_module(f"sparselens.views.{module.name}")
    kinds = [ViewWidget]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # by name: anywidget makes a class of its own for every widget
    shown = {kind.__qualname__ for make in AT_SCALE.values() for kind in type(make().portable()).__mro__}
    own = {kind.__qualname__ for kind in kinds if "_esm" in vars(kind)}
    assert own - shown == set(), "give each a place in tests/views/scale_views.py"

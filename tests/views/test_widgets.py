"""The live widget without a browser: traits, checks, payload, the bundle, and what its files contain."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import traitlets

import sparselens.views
from sparselens.errors import InputError
from sparselens.views import token_view
from sparselens.views.base import pack_columns
from sparselens.views.export import _split, export_html
from tests.views.allowed import check
from tests.views.samples import HOSTILE, hostile_view, long_view

STATIC = Path(sparselens.views.__file__).parent / "static"


def _unpack(widget) -> np.ndarray:
    half = np.frombuffer(widget.values, "<f2").reshape(len(widget.features), len(widget.tokens))
    return half.astype(np.float32).T * np.float32(widget.peaks)


def test_the_numbers_survive_packing():
    view = long_view(300, 5)
    back = _unpack(view.explore())
    np.testing.assert_allclose(back, view.values, rtol=1e-3)
    np.testing.assert_array_equal(back != 0, view.values != 0)


def test_no_activation_is_too_large_or_too_small_to_pack():
    values = np.float32([[1e30, 0, 1e-9], [-1e10, 0, -3e38]])
    packed, peaks = pack_columns(values)
    half = np.frombuffer(packed, "<f2").reshape(3, 2).T
    assert np.isfinite(half).all()
    np.testing.assert_array_equal(np.sign(half), np.sign(values))
    assert peaks == [np.float32(1e30), 0.0, np.float32(3e38)]


def test_a_front_end_sets_the_traits_and_python_hears_it():
    widget = long_view(4100, 3).explore()
    heard = []
    widget.observe(
        lambda change: heard.append((change["name"], change["new"])), ["token", "feature", "threshold", "page"]
    )
    widget.set_state({"token": 4099})
    widget.set_state({"feature": 20})
    widget.set_state({"threshold": 0.5})
    widget.set_state({"page": 2})
    assert heard == [("token", 4099), ("feature", 20), ("threshold", 0.5), ("page", 2)]


@pytest.mark.parametrize(
    ("name", "value"), [("token", 300), ("token", -2), ("page", 1), ("page", -1), ("threshold", -0.1)]
)
def test_traits_keep_to_their_range(name, value):
    widget = long_view(300, 2).explore()
    with pytest.raises(traitlets.TraitError, match=name):
        setattr(widget, name, value)


def test_threshold_must_be_a_number():
    with pytest.raises(traitlets.TraitError, match="threshold"):
        long_view(30, 2).explore().threshold = float("nan")


def test_feature_must_be_in_the_view():
    with pytest.raises(InputError, match="feature 5 is not in this view"):
        long_view(30, 2).explore().feature = 5


def test_the_data_is_fixed():
    with pytest.raises(traitlets.TraitError):
        long_view(30, 2).explore().tokens = ["x"]


def test_the_bundle_carries_the_static_form():
    view = hostile_view()
    data, _ = view.explore()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"] == view.to_html()
    assert data["text/plain"] == f"TokenWidget({len(HOSTILE)} tokens, 2 features)"


def test_payload_of_2000_tokens_and_16_features():
    state = long_view(2000, 16).explore().get_state()
    own = {key: value for key, value in state.items() if not key.startswith("_")}
    state_json, buffers = _split(own)
    size = len(json.dumps(state_json)) + sum(len(text) * 3 // 4 for _, text in buffers)
    assert [path for path, _ in buffers] == [["values"]]
    assert size <= 150_000


def test_the_saved_file_is_its_data_and_40_kB(tmp_path):
    view = long_view(2000, 16)
    path = view.save(tmp_path / "deep" / "x.html")
    data = len(json.dumps(view.tokens)) + 4 * len(view.explore().values) // 3
    assert path.stat().st_size <= data + 40_000


def test_a_hostile_text_cannot_leave_the_data_of_a_saved_file():
    view = hostile_view()
    html = export_html([view], title=view.title)
    assert len(re.findall("<script", html)) == 2
    assert len(re.findall("</script", html)) == 2
    assert "<!--" not in html
    packed = re.search(r'id="sparselens-data">(.*?)</script>', html, re.DOTALL).group(1)
    state = json.loads(packed)["views"][0]["state"]
    assert state["tokens"] == view.tokens
    assert set(state) == {
        "tokens", "features", "labels", "title", "values", "peaks", "page_size",
        "token", "feature", "threshold", "page",
    }  # fmt: skip
    check(re.search("<noscript>(.*?)</noscript>", html, re.DOTALL).group(1))


def test_buffers_are_found_at_every_depth():
    state, buffers = _split({"a": [{"b": b"xy"}, 1], "c": (memoryview(b"z"),), "d": "text"})
    assert state == {"a": [{"b": None}, 1], "c": [None], "d": "text"}
    assert buffers == [(["a", 0, "b"], "eHk="), (["c", 0], "eg==")]


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_the_front_end_fetches_nothing_and_builds_no_html_from_text(path):
    code = path.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 400
    code = code.replace('"http://www.w3.org/2000/svg"', "")  # the name of a kind of element
    for word in ("http", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(",
                 "XMLHttpRequest", "WebSocket", "@import", "url("):  # fmt: skip
        assert word not in code, word
    assert not re.search(r"^\s*import\s", code, re.MULTILINE)


def test_python_and_javascript_hide_the_same_characters():
    from sparselens.views.html import visible

    code = (STATIC / "shared.js").read_text(encoding="utf-8")
    inside = re.search(r"HIDDEN =\s*/\[(.*?)\]/g", code).group(1)
    hidden = re.compile(f"[{inside}]")
    for point in (*range(0x3000), *range(0xFE00, 0x10000)):
        letter = chr(point)
        assert bool(hidden.match(letter)) == (visible(letter) != letter), hex(point)


def test_several_widgets_do_not_share_state():
    first, second = (token_view(["a", "b"], [1.0, 2.0]).explore() for _ in range(2))
    first.token = 1
    assert second.token == -1

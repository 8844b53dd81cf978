"""The saved `TokenView` in a real browser, from a file, under its strict policy."""

import json
import re
import time

import numpy as np
import pytest

from sparselens.views import token_view
from sparselens.views.html import visible
from tests.views.samples import HOSTILE, hostile_view, long_view

READY = "html[data-ready='1']"


@pytest.fixture
def show(open_page, tmp_path):
    """Save a view, open the file, and return the tab when the view has started."""

    def show_one(view, **options):
        watched = open_page(view.save(tmp_path / "view.html"), **options)
        watched.page.locator(READY).wait_for(state="attached")
        return watched

    return show_one


def _selected(page) -> list[str]:
    return page.locator("[role=option][aria-selected=true]").evaluate_all("all => all.map(s => s.dataset.i)")


def _focused(page) -> str | None:
    return page.evaluate("document.activeElement?.dataset?.i ?? null")


@pytest.fixture
def small():
    tokens = ["The", " cat", " sat", " on", " the", " mat", "."]
    values = np.zeros((7, 2))
    values[[1, 5], 0] = 2.0, 1.0
    values[[2, 5], 1] = -3.0, 1.5
    return token_view(tokens, values, [11, 4], {11: "animals"}, title="A cat")


def test_it_is_rendered_and_marks_what_fires(show, small):
    watched = show(small)
    page = watched.page
    assert page.locator("[role=option]").all_inner_texts() == small.tokens
    marked = page.locator("[role=option][title]")
    assert marked.evaluate_all("all => all.map(s => s.title)") == ["1: 2", "5: 1"]
    colour = marked.first.evaluate("s => getComputedStyle(s).backgroundColor")
    assert colour == "rgb(230, 159, 0)"
    assert page.locator("[role=option]").first.get_attribute("style") is None
    assert page.get_by_text("fires on 2 of 7 tokens (28.6%)").is_visible()
    watched.assert_quiet()


def test_click_and_keys_change_the_selection(show, small):
    watched = show(small)
    page = watched.page
    page.locator("[data-i='3']").click()
    assert _selected(page) == ["3"]
    assert page.get_by_text("none of these features fires here").is_visible()
    page.keyboard.press("ArrowRight")
    assert (_focused(page), _selected(page)) == ("4", ["3"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert (_focused(page), _selected(page)) == ("5", ["5"])
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert _selected(page) == ["1"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert _focused(page) == "0"
    page.keyboard.press("End")
    assert _focused(page) == "6"
    page.keyboard.press("Escape")
    assert _selected(page) == []
    watched.assert_quiet()


def test_keys_alone_reach_everything(show, small):
    page = show(small).page
    for name in ("SELECT", "INPUT", "SPAN"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == name
    assert _focused(page) == "0"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert _selected(page) == ["1"], "the strongest token in the list beside the text"


def test_feature_and_threshold_repaint(show, small):
    watched = show(small)
    page = watched.page
    page.locator("select").select_option(label="4")
    titles = page.locator("[role=option][title]").evaluate_all("all => all.map(s => s.title)")
    assert titles == ["2: −3", "5: +1.5"]
    lines = page.locator("[role=option][title]").evaluate_all("all => all.map(s => s.style.borderBottomStyle)")
    assert lines == ["dashed", "solid"]
    page.locator("input[type=range]").focus()
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "3"
    assert page.locator("[role=option][title]").count() == 1
    watched.assert_quiet()


def test_a_token_lists_its_features_and_one_can_be_chosen(show, small):
    page = show(small).page
    page.locator("[data-i='5']").click()
    rows = page.locator(".sl-row")
    assert [row.split("\n") for row in rows.all_inner_texts()] == [["4", "+1.5"], ["11 · animals", "1"]]
    rows.first.click()
    assert page.locator("select").input_value() == "4"
    assert _focused(page) is None, "the focus stays on the row"
    assert page.evaluate("document.activeElement.dataset.key") == "feature 4"
    page.get_by_role("button", name="clear").click()
    assert _selected(page) == []


def test_the_list_is_named_for_screen_readers(show, small):
    page = show(small).page
    box = page.get_by_role("listbox", name="tokens")
    assert box.get_attribute("aria-orientation") == "horizontal"
    assert box.get_by_role("option").count() == 7
    assert page.locator("[role=option][tabindex='0']").count() == 1
    assert page.get_by_role("combobox", name="feature").count() == 1
    assert page.get_by_role("slider", name="threshold").count() == 1


def test_hostile_texts_are_shown_and_never_run(show):
    view = hostile_view()
    watched = show(view)
    page = watched.page
    shown = page.locator("[role=option]").evaluate_all("all => all.map(s => s.textContent)")
    expected = [visible(token, 400).replace("\n", "↵\n") or "∅" for token in view.tokens]
    assert shown == expected
    assert page.locator(".sl-title").inner_text() == HOSTILE[0]
    for i in range(len(HOSTILE)):
        page.locator(f"[data-i='{i}']").dispatch_event("click")
        assert _selected(page) == [str(i)]
    page.locator("select").select_option("1")
    assert page.locator("script:not([type])").count() == 0
    assert page.locator("b, style:not(head style), img, .sl-view script").count() == 0
    watched.assert_quiet()


def test_the_policy_stops_a_script_that_slips_in(show, small):
    watched = show(small)
    watched.page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
    }""")
    assert watched.page.evaluate("window.hacked") is None
    assert any("script-src" in error for error in watched.errors)


def test_without_scripts_the_static_form_shows(open_page, tmp_path, small):
    page = open_page(small.save(tmp_path / "x.html"), java_script_enabled=False).page
    assert page.locator("summary").first.inner_text().startswith("feature 11 · animals")
    assert page.locator(":is(b, i)[title]").count() == 4
    assert page.locator(":is(b, i)[title]").first.is_visible()


def test_2000_tokens_draw_and_repaint_in_time(show):
    watched = show(long_view(2000, 16))
    page = watched.page
    assert page.locator("[role=option]").count() == 2000
    took = page.evaluate("""() => {
        const select = document.querySelector('select'), began = performance.now();
        for (let i = 0; i < 10; i++) {
            select.selectedIndex = i;
            select.dispatchEvent(new Event('change'));
            document.body.offsetHeight;
        }
        return (performance.now() - began) / 10;
    }""")
    assert took < 250, f"a change of feature takes {took:.0f} ms"
    watched.assert_quiet()


def test_long_texts_come_in_pages(show):
    view = long_view(4500, 2)
    began = time.monotonic()
    watched = show(view)
    assert time.monotonic() - began < 15
    page = watched.page
    assert page.get_by_text("page 1 of 3").is_visible()
    page.get_by_role("button", name="next page").click()
    assert page.locator("[role=option]").first.get_attribute("data-i") == "2000"
    page.locator("[role=option]").first.focus()
    page.keyboard.press("PageDown")
    assert page.locator("[role=option]").count() == 500
    assert _focused(page) == "4000"
    page.keyboard.press("PageDown")
    assert page.get_by_text("page 3 of 3").is_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("PageUp")
    assert _selected(page) == [], "the chosen token is on another page"
    page.get_by_role("button", name="clear").click()
    strongest = int(np.abs(view.column(0)).argmax())
    page.locator(".sl-row").first.click()
    assert _selected(page) == [str(strongest)]
    watched.assert_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(show, small, scheme):
    page = show(small, color_scheme=scheme).page
    plain = page.locator("[role=option]").first.evaluate("s => getComputedStyle(s).color")
    strong = page.locator("[role=option][title]").first.evaluate("s => getComputedStyle(s).color")
    assert plain == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    assert strong == "rgb(0, 0, 0)", "strong orange has black text in every scheme"


def test_two_views_of_one_model_and_the_clean_up(open_page, tmp_path, small):
    """The module as a notebook uses it: one model, two views, one of them closed."""
    path = small.save(tmp_path / "x.html")
    packed = re.search(r'id="sparselens-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL).group(1)
    data = json.loads(packed)["views"][0]
    watched = open_page("about:blank")
    page = watched.page
    page.evaluate(
        """async ([esm, state, b64]) => {
            state.values = new DataView(Uint8Array.from(atob(b64), c => c.charCodeAt(0)).buffer);
            const on = {};
            const model = {
                get: k => state[k],
                set(k, v) {
                    if (state[k] === v) return;
                    state[k] = v;
                    [...(on['change:' + k] ?? [])].forEach(f => f());
                },
                save_changes() {},
                on(n, f) { (on[n] ??= new Set()).add(f); },
                off(n, f) { on[n]?.delete(f); },
            };
            const url = URL.createObjectURL(new Blob([esm], {type: 'text/javascript'}));
            const { render } = (await import(url)).default;
            const homes = [0, 1].map(() => document.body.appendChild(document.createElement('section')));
            const clean = homes.map(el => render({ model, el }));
            Object.assign(window, { model, clean, heard: () => Object.values(on).reduce((n, s) => n + s.size, 0) });
        }""",
        [data["esm"], data["state"], data["buffers"][0][1]],
    )
    page.locator("section").first.locator("[data-i='2']").click()
    assert _selected(page) == ["2", "2"]
    page.evaluate("model.set('token', 5)")
    assert _selected(page) == ["5", "5"]
    assert page.evaluate("heard()") == 10  # four traits each, and whether the kernel is there
    page.evaluate("clean[0]()")
    assert page.evaluate("heard()") == 5
    page.evaluate("model.set('feature', 4)")
    assert page.locator("select").input_value() == "4"
    page.evaluate("clean[1]()")
    assert page.evaluate("heard()") == 0
    assert page.locator("section *").count() == 0
    watched.assert_quiet()

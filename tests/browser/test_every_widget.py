"""Every widget at the size it is made for: first paint, no requests, no errors, accessibility, a picture."""

import numpy as np
import pandas as pd
import pytest

from sparselens.views import browser_view, card_view, diff_view, save_html, token_view
from tests.browser import axe
from tests.browser.test_saved_tokens import READY
from tests.views.samples import diff_frame
from tests.views.scale_views import AT_SCALE, a_row, words

FIRST_PAINT = 1000  # milliseconds, from the start of navigation until the widget is drawn
PAINTED = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(
    performance.now() - performance.getEntriesByType('navigation')[0].startTime))))"""


@pytest.fixture(scope="session")
def axe_script(tmp_path_factory, missing):
    """axe-core, or a loud skip."""
    try:
        return axe.source(tmp_path_factory.mktemp("axe"))
    except axe.NoAxe as problem:
        missing(f"accessibility cannot be checked: {problem}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved files by name, each written once."""
    folder = tmp_path_factory.mktemp("views")
    return lambda name: folder / f"{name}.html" if (folder / f"{name}.html").exists() else AT_SCALE[name]().save(
        folder / f"{name}.html")


@pytest.mark.parametrize("name", AT_SCALE)
def test_it_paints_in_time_and_asks_for_nothing(saved, open_page, picture, name):
    watched = open_page("about:blank")
    tasks = watched.page.context.new_cdp_session(watched.page)
    tasks.send("Performance.enable", {"timeDomain": "threadTicks"})
    watched.page.goto(saved(name).as_uri())
    watched.page.locator(READY).wait_for(state="attached")
    passed = watched.page.evaluate(PAINTED)
    if passed > FIRST_PAINT:  # on a busy machine the time counts in which the page had a processor
        found = tasks.send("Performance.getMetrics")["metrics"]
        passed = 1000 * next(metric["value"] for metric in found if metric["name"] == "TaskDuration")
    assert passed < FIRST_PAINT
    assert watched.page.locator(".sl-view").count() == 1
    picture(watched.page, name)
    watched.assert_quiet()


@pytest.mark.parametrize("name", AT_SCALE)
def test_axe_finds_nothing_serious(saved, open_page, picture, axe_script, name):
    watched = open_page(saved(name))
    page = watched.page
    page.locator(READY).wait_for(state="attached")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert axe.violations(page, axe_script) == [], scheme
    picture(page, f"{name}-dark")


def test_the_check_sees_what_it_must_see(open_page, axe_script):
    page = open_page("about:blank").page
    page.set_content("<html lang='en'><button></button><p style='color:#ccc;background:#fff'>pale</p></html>")
    assert {one["id"] for one in axe.violations(page, axe_script)} >= {"button-name", "color-contrast"}


def test_what_is_not_known_is_a_dash_on_the_page(open_page, tmp_path):
    frame = diff_frame(2).assign(ci_low=float("nan"), ci_high=float("nan"), q_value=float("nan"), freq_a=float("nan"))
    rows = pd.DataFrame({"feature": [1, 2], "description": "d", "density": [float("nan"), 0.5], "peak": float("nan")})
    card = card_view(1, [a_row(0)], [1.0], n_documents=1, n_firing=1, neighbours=[(3, "x", float("nan"))])
    views = [diff_view(frame, lambda feature: {"a": [a_row(0)], "b": []}), browser_view(rows, lambda feature: card)]
    watched = open_page(save_html(views, tmp_path / "x.html", title="t"))
    watched.page.locator(READY).wait_for(state="attached")
    text = watched.page.locator("body").inner_text()
    assert "NaN" not in text
    assert text.count("–") >= 5
    watched.assert_quiet()


def test_a_long_text_opens_in_time(open_page, tmp_path):
    path = token_view(words(50_000), np.arange(50_000) % 13 == 0).save(tmp_path / "x.html")
    watched = open_page(path)
    watched.page.locator(READY).wait_for(state="attached")
    assert watched.page.locator("[role=option]").count() == 2000
    watched.page.get_by_role("button", name="next page").click()
    assert watched.page.get_by_text("page 2 of 25").is_visible()
    watched.assert_quiet()

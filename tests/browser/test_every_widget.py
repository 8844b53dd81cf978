"""Every widget at the size it is made for: first paint, no requests, no errors, accessibility, a picture."""

import pytest

from tests.browser import axe
from tests.browser.test_saved_tokens import READY
from tests.views.scale_views import AT_SCALE

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
    path = saved(name)
    best = float("inf")
    for _ in range(3):  # the least of three; a busy machine may slow one
        watched = open_page(path)
        watched.page.locator(READY).wait_for(state="attached")
        best = min(best, watched.page.evaluate(PAINTED))
        if best < FIRST_PAINT:
            break
    assert best < FIRST_PAINT
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

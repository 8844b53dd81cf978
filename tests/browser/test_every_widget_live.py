"""Every widget live: keys alone reach it, two views of one model show the same, and nothing is left behind."""

import pytest

from tests.browser.live import LivePage
from tests.views.scale_views import AT_SCALE

# what the tab key must reach, the keys that are pressed there, and the trait that changes
KEYS = {
    "tokens": ("[role=option]", ["ArrowRight", "Enter"], "token"),
    "diff": ("tbody tr", ["ArrowDown", "Enter"], "feature"),
    "points": (".sl-item", ["ArrowDown", "Enter"], "document"),
    "network": (".sl-side .sl-item", ["ArrowDown", "Enter"], "pair"),
    "card": (".sl-item", ["ArrowDown", "Enter"], "document"),
    "browser": (".sl-found .sl-item", ["ArrowDown", "Enter"], "feature"),
    "panel": ("input[type=range]", ["ArrowRight"], "values"),
    "timeline": (".sl-step", ["ArrowDown", "Enter"], "step"),
    "dial": ("input[type=range]", ["ArrowRight"], "sparsity"),
    "channels": ("canvas", ["ArrowRight"], "channel"),
    "masks": (".sl-mask canvas", ["ArrowDown", "ArrowRight"], "query"),
}
SHOWN = """() => [...document.querySelectorAll('.sl-view')].map(view =>
    [view.innerText, ...[...view.querySelectorAll('[aria-selected=true]')].map(node => node.innerText)].join('|'))"""


@pytest.mark.parametrize("name", AT_SCALE)
def test_keys_alone_move_both_views_of_a_model(open_page, name):
    css, keys, trait = KEYS[name]
    watched = open_page("about:blank")
    view = AT_SCALE[name]()
    widget = view.portable() if name == "points" else view.explore()  # the map on its own canvas
    page = watched.page
    live = LivePage(watched, widget, copies=2)
    before = getattr(widget, trait)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("css => document.activeElement.matches('.sl-view ' + css)", css):
            break
    else:
        raise AssertionError(f"the tab key does not reach {css}")
    for key in keys:
        page.keyboard.press(key)
    live.until(lambda: getattr(widget, trait) != before)
    live.until(lambda: len(set(page.evaluate(SHOWN))) == 1)
    assert page.locator(".sl-view").count() == 2
    setattr(widget, trait, before)  # from Python
    live.until(lambda: len(set(page.evaluate(SHOWN))) == 1)
    page.evaluate("clean.forEach(done => done())")
    assert page.locator(".sl-view").count() == 0
    assert page.evaluate("heard()") == 0, "a view that is gone must not listen"
    watched.assert_quiet()


def test_a_view_says_that_its_kernel_is_gone(open_page):
    watched = open_page("about:blank")
    live = LivePage(watched, AT_SCALE["card"]().explore())
    assert watched.page.locator(".sl-lost").count() == 0
    watched.page.evaluate("tell('comm_live_update'); tell('comm_live_update')")  # Jupyter may say it twice
    live.pump()
    assert watched.page.get_by_role("status").filter(has_text="kernel behind this view is gone").count() == 1

"""Saved differences, maps, networks and cards in a real browser, from a file, under their strict policy."""

import pytest

from sparselens.views import save_html, token_view
from tests.browser.test_saved_tokens import READY
from tests.views.sample_views import VIEWS, a_card, a_diff, a_map, a_network, a_timeline
from tests.views.samples import HOSTILE

TEXT = {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}


@pytest.fixture
def show(open_page, tmp_path):
    """Save views, open the file, and return the tab when they have started."""

    def show_all(*views, **options):
        watched = open_page(save_html(views, tmp_path / "view.html", title="Views"), **options)
        watched.page.locator(READY).wait_for(state="attached")
        return watched

    return show_all


def _selected(page, items=".sl-item") -> list[int]:
    """Which of the items are selected, by their place."""
    return page.locator(items).evaluate_all(
        "all => all.map((n, i) => n.ariaSelected === 'true' ? i : -1).filter(i => i >= 0)")


def _drag(page, *corners: tuple[float, float]) -> None:
    """Draw a lasso on the map through corners, as shares of its width and height."""
    box = page.locator("canvas").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def _tab_to(page, css: str) -> None:
    """Press the tab key until an element that fits has the focus."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("css => document.activeElement.matches(css)", css):
            return
    raise AssertionError(f"the tab key does not reach {css}")


@pytest.mark.parametrize("name", VIEWS)
def test_hostile_texts_are_shown_and_never_run(show, name):
    watched = show(VIEWS[name]())
    page = watched.page
    assert HOSTILE[0] in page.locator(".sl-view").inner_text()
    assert page.locator("script:not([type])").count() == 0
    assert page.locator(".sl-view :is(b, style, img, script)").count() == 0
    for scheme, colour in TEXT.items():
        page.emulate_media(color_scheme=scheme)
        assert page.locator(".sl-view").evaluate("n => getComputedStyle(n).color") == colour
    assert "mathjax_ignore" in page.locator(".sl-view").get_attribute("class")
    unmarked = page.locator(".sl-view :is(button, input, select, [tabindex])").evaluate_all(
        "all => all.filter(n => n.dataset.lmSuppressShortcuts !== 'true').length")
    assert unmarked == 0, "a notebook around would take the keys for commands"
    unnamed = page.locator(".sl-view :is([role=listbox], [role=grid], [role=img], [role=group], button, input)")
    named = "n.ariaLabel || n.textContent || n.closest('label')?.textContent"
    assert unnamed.evaluate_all(f"all => all.filter(n => !({named})).length") == 0
    watched.assert_quiet()


@pytest.mark.parametrize("name", VIEWS)
def test_without_scripts_the_static_form_shows(show, open_page, tmp_path, name):
    path = VIEWS[name]().save(tmp_path / "x.html")
    watched = open_page(path, java_script_enabled=False)
    assert HOSTILE[0] in watched.page.locator("body").inner_text()
    loaded = watched.page.locator("img").evaluate_all("all => all.map(i => i.naturalWidth > 100)")
    assert all(loaded)
    assert watched.external == []


def test_a_row_of_a_difference_opens_its_texts(show):
    watched = show(a_diff())
    page = watched.page
    rows = page.locator("tbody tr")
    assert rows.count() == 15
    assert page.get_by_text("40 of 40").is_visible()
    assert page.locator(".sl-open .sl-name").all_inner_texts()[1:] == ["left", "<b>right"]
    rows.nth(3).click()
    assert _selected(page, "tbody tr") == [3]
    feature = rows.nth(3).get_attribute("data-feature")
    assert page.locator(".sl-open .sl-name").first.inner_text() == f"feature {feature}"
    lists = page.locator(".sl-texts")
    assert lists.nth(0).get_by_text("no text fires").is_visible(), "as the sample has it for every third feature"
    assert lists.nth(1).locator(".sl-item").count() == 2
    marks = lists.nth(1).locator(".sl-item").first.locator(".sl-mark")
    assert marks.count() == sum(i % 3 > 0 for i in range(len(HOSTILE)))
    lists.nth(1).locator(".sl-item").nth(1).click()
    assert _selected(page) == [1]
    boxes = [page.locator(f".sl-texts >> nth={i}").bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"], "both sets side by side"
    watched.assert_quiet()


def test_a_difference_is_sorted_searched_and_paged(show):
    watched = show(a_diff())
    page = watched.page
    features = page.locator("tbody td:nth-child(2)")
    frame = a_diff().to_frame()
    page.get_by_role("button", name="sort by in left").click()
    assert features.all_inner_texts() == [str(f) for f in frame.sort_values("freq_a", ascending=False)["feature"][:15]]
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_role("button", name="sort by q").click()
    assert features.first.inner_text() == str(frame.sort_values("q_value")["feature"].iloc[0])
    page.get_by_role("button", name="next page").click()
    assert page.get_by_text("page 2 of 3").is_visible()
    page.get_by_role("searchbox", name="find").fill("BOLD")
    assert page.locator("tbody td:nth-child(3)").all_inner_texts() == ["<b>bold</b>"] * 2
    watched.assert_quiet()


def test_a_difference_by_keys_alone(show):
    page = show(a_diff()).page
    page.get_by_role("searchbox", name="find").focus()
    _tab_to(page, "tr")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _selected(page, "tbody tr") == [2]
    page.keyboard.press(" ")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    assert page.locator("tbody input").evaluate_all("all => all.map(b => b.checked)")[:4] == [True, False, True, False]
    page.keyboard.press("PageDown")
    assert page.get_by_text("page 2 of 3").is_visible()
    assert page.evaluate("document.activeElement.tagName") == "TR"
    page.keyboard.press("PageUp")
    page.keyboard.press("Escape")
    assert not any(page.locator("tbody input").evaluate_all("all => all.map(b => b.checked)"))
    _tab_to(page, ".sl-item")
    page.keyboard.press("Enter")
    assert len(_selected(page)) == 1


def test_a_lasso_chooses_what_it_holds(show):
    watched = show(a_map())
    page = watched.page
    items = page.locator(".sl-item")
    assert page.get_by_text("60 texts").is_visible()
    _drag(page, (0, 0), (1, 0), (1, 0.35), (0, 0.35), (0, 0))  # the two upper rows of the grid
    assert page.get_by_text("20 texts chosen").is_visible()
    assert items.evaluate_all("all => all.map(n => Number(n.dataset.i))") == list(range(40, 60))
    page.keyboard.down("Shift")
    _drag(page, (0, 0.85), (1, 0.85), (1, 1), (0, 1), (0, 0.85))
    page.keyboard.up("Shift")
    assert page.get_by_text("29 texts chosen").is_visible(), "the lowest row too, without the text that has no place"
    page.get_by_role("button", name="clear").click()
    assert page.get_by_text("60 texts").is_visible()
    watched.assert_quiet()


def test_a_point_and_a_class_and_a_word(show):
    watched = show(a_map())
    page = watched.page
    box = page.locator("canvas").bounding_box()
    unit = min((box["width"] - 28) / 9, (460 - 28) / 5)
    place = {"x": box["width"] / 2 + (3 - 4.5) * unit, "y": 230 - (2 - 2.5) * unit}
    page.locator("canvas").hover(position=place)
    assert page.locator(".sl-tip").inner_text().startswith("23: ")
    page.locator("canvas").click(position=place)
    assert _selected(page) == [23], "column 3 of row 2 is text 23"
    page.get_by_role("button", name="<b>even (30)").click()
    assert page.get_by_text("30 texts chosen").is_visible()
    page.get_by_role("searchbox", name="find").fill("text number 17")
    page.keyboard.press("Enter")
    assert page.get_by_text("1 texts chosen").is_visible()
    assert page.locator(".sl-item").evaluate_all("all => all.map(n => n.dataset.i)") == ["23", "17"]
    watched.assert_quiet()


def test_the_colours_are_on_the_canvas(show):
    page = show(a_map()).page
    colours = page.locator("canvas").evaluate("""canvas => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const seen = {};
        for (let i = 0; i < data.length; i += 4) {
            if (data[i + 3] > 200) seen[[data[i], data[i + 1], data[i + 2]]] = true;
        }
        return Object.keys(seen);
    }""")
    close = lambda rgb: any(sum(abs(int(a) - b) for a, b in zip(c.split(","), rgb, strict=True)) < 6 for c in colours)  # noqa: E731
    assert close((0, 114, 178))
    assert close((213, 94, 0))


def test_a_map_by_keys_alone(show):
    watched = show(a_map())
    page = watched.page
    page.locator("canvas").focus()
    before = page.locator("canvas").evaluate("c => c.toDataURL()")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert page.locator("canvas").evaluate("c => c.toDataURL()") != before
    page.keyboard.press("0")
    assert page.locator("canvas").evaluate("c => c.toDataURL()") == before
    _tab_to(page, ".sl-item")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _selected(page) == [2]
    page.keyboard.press("Escape")
    assert _selected(page) == []
    watched.assert_quiet()


def test_a_network_opens_pairs(show):
    watched = show(a_network())
    page = watched.page
    assert page.locator(".sl-net line").count() == 40
    assert page.locator(".sl-item").evaluate_all("all => all.length") >= 40
    pairs = page.get_by_role("listbox", name="pairs")
    pairs.locator(".sl-item").nth(5).click()
    assert _selected(page)[0] == 5
    assert page.locator(".sl-open .sl-name").first.inner_text().startswith("10 · ")
    assert page.locator(".sl-open .sl-item").count() == 3, "one text on the left, two on the right"
    page.locator(".sl-node[data-i='0'] circle").click()
    assert pairs.locator(".sl-item").count() == 5, "the pairs of feature 0"
    page.locator(".sl-view input[type=range]").focus()
    page.keyboard.press("End")
    assert page.locator(".sl-net line:visible").count() <= 1
    page.keyboard.press("Home")
    page.get_by_role("button", name="show all").click()
    assert pairs.locator(".sl-item").count() == 40
    pairs.locator(".sl-item").nth(35).click()
    assert page.get_by_text("its texts come with a running kernel").is_visible()
    watched.assert_quiet()


def test_a_network_by_keys_alone(show):
    page = show(a_network(("prompts", "answers"))).page
    page.locator(".sl-view input[type=range]").focus()
    _tab_to(page, ".sl-node")
    page.keyboard.press("Enter")
    pairs = page.get_by_role("listbox", name="pairs")
    assert pairs.locator(".sl-item").count() == 5
    page.keyboard.press("Escape")
    assert pairs.locator(".sl-item").count() == 40
    _tab_to(page, ".sl-item")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _selected(page)[0] == 1
    assert page.locator(".sl-open .sl-name").all_inner_texts()[1:] == ["prompts", "answers"]


def test_a_card_points_at_the_value_of_a_token(show):
    watched = show(a_card())
    page = watched.page
    assert page.get_by_text("50 of 200 documents (25.0%)").is_visible()
    assert page.locator(".sl-stick").count() == 24
    assert page.locator("input[type=number]").count() == 0, "a file has no other card to go to"
    mark = page.locator(".sl-mark[data-value='2']").first
    mark.hover()
    line, bars = page.locator(".sl-needle").bounding_box(), page.locator(".sl-hist").bounding_box()
    assert (line["x"] - bars["x"]) / bars["width"] == pytest.approx((2 - 0.1) / 9.9, abs=0.02)
    page.locator(".sl-item").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _selected(page) == [1]
    page.keyboard.press("Escape")
    assert _selected(page) == []
    watched.assert_quiet()


def test_views_on_one_page_share_the_choice(show):
    import numpy as np

    strip = token_view(["a", "b"], np.eye(2), [7, 14])
    watched = show(a_map(), a_map(), a_diff(), strip, a_card(7))
    page = watched.page
    maps = page.locator(".sl-view:has(canvas)")
    maps.nth(0).get_by_role("button", name="odd (30)").click()
    assert maps.nth(1).get_by_text("30 texts chosen").is_visible()
    page.get_by_role("searchbox").nth(2).fill("14")
    page.locator("tbody tr[data-feature='14']").click()
    assert page.locator(".sl-view:has(.sl-strip) select").input_value() == "14"
    page.locator(".sl-view:has(.sl-hist) .sl-item").nth(1).click()
    assert maps.nth(1).locator("[aria-selected=true]").first.get_attribute("data-i") == "10"
    watched.assert_quiet()


def test_a_timeline_is_walked_scored_and_opened(show):
    watched = show(VIEWS["timeline"]())
    page = watched.page
    steps = page.locator(".sl-step")
    assert steps.count() == 12
    assert page.locator(".sl-first").inner_text() == "7 ◀"
    page.get_by_role("button", name="first below the line").click()
    assert _selected(page, ".sl-step") == [6]
    side = page.locator(".sl-side")
    assert side.locator(".sl-name").inner_text() == "step 7"
    assert side.locator(".sl-mark").count() == sum(i % 3 > 0 for i in range(len(HOSTILE)))
    side.locator(".sl-row").first.click()
    assert side.locator("[aria-pressed=true]").count() == 1
    page.get_by_label("probe").select_option("1")
    assert page.locator(".sl-first").inner_text() == "1 ◀"
    steps.nth(6).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _selected(page, ".sl-step") == [7]
    page.keyboard.press("Escape")
    assert _selected(page, ".sl-step") == []
    page.locator("input[type=range]").fill("0")
    assert page.get_by_role("button", name="first below the line").is_disabled()
    watched.assert_quiet()


def test_chains_on_one_page_share_step_and_feature(show):
    watched = show(a_timeline(12), a_timeline(3, beside=False))
    page = watched.page
    long, short = (page.locator(".sl-view").nth(i) for i in range(2))
    long.locator(".sl-step").nth(2).click()
    assert short.locator(".sl-side .sl-name").inner_text() == "step 3"
    short.locator(".sl-side .sl-row").nth(1).click()
    assert long.locator(".sl-side [aria-pressed=true]").inner_text().startswith("9 nine")
    long.locator(".sl-step").nth(7).click()
    assert short.locator(".sl-side .sl-name").inner_text() == "step 3", "it has no such step"
    watched.assert_quiet()

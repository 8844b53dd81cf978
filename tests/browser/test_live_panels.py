"""Widgets with a model behind them, in a real browser: the test box of a card, and the panel of interventions."""

import pytest

from sparselens.views import card_view
from tests.browser.live import LivePage
from tests.views.sample_views import a_browser, a_card, a_panel, hostile_row
from tests.views.samples import HOSTILE


@pytest.fixture
def live(open_page):
    """Show a widget in a tab, with the test as its kernel."""
    return lambda widget, copies=1: LivePage(open_page("about:blank"), widget, copies)


def a_reading_card():
    """A card whose model fires on capital letters; "fail" makes it fail."""

    def read(text):
        if text == "fail":
            raise ValueError(HOSTILE[0])
        return list(text), [2.0 * letter.isupper() for letter in text]

    return card_view(41, [hostile_row()], [1.0, 2.0], n_documents=2, n_firing=1, read=read, load=lambda f: a_card(f))


def test_a_sentence_is_tested_by_keys_alone(live):
    shown = live(a_reading_card().explore(), copies=2)
    page = shown.page
    page.get_by_role("textbox", name="a text to test").first.fill("aBc")
    page.keyboard.press("Enter")
    marks = page.locator(".sl-tested .sl-mark")
    shown.until(lambda: marks.count() == 2)
    assert marks.all_inner_texts() == ["B", "B"], "in both views of the one model"
    assert page.locator(".sl-test [role=status]").first.inner_text() == "at most 2"
    page.get_by_role("textbox", name="a text to test").first.fill("abc")
    page.keyboard.press("Enter")
    shown.until(lambda: "it does not fire" in page.locator(".sl-test [role=status]").first.inner_text())
    page.get_by_role("textbox", name="a text to test").first.fill("fail")
    page.get_by_role("button", name="let the model read it").first.click()
    shown.until(lambda: page.get_by_text(f"ValueError: {HOSTILE[0]}").count() == 2)
    page.get_by_role("textbox", name="a text to test").first.fill(HOSTILE[2].upper())
    page.keyboard.press("Enter")
    shown.until(lambda: marks.count() > 2)
    assert page.locator(".sl-tested img").count() == 0
    shown.watched.assert_quiet()


def test_a_card_without_a_model_has_no_box(live):
    shown = live(a_card(loads=False).explore())
    assert shown.page.locator(".sl-test").count() == 0


def test_features_are_set_and_both_answers_come(live):
    widget = a_panel(words=200, pause=0.001).explore()
    shown = live(widget, copies=2)
    page = shown.page
    assert page.get_by_role("group", name="features to set").count() == 2
    box = page.get_by_role("checkbox").nth(1)  # feature 7 of the first view
    assert not box.is_checked()
    box.focus()
    page.keyboard.press(" ")  # the model answers at once
    shown.until(lambda: widget.running)
    shown.until(lambda: page.locator(".sl-answers .sl-code").nth(3).inner_text().startswith("one 41=8, 7=0 three"))
    assert widget.selected == {41: 8.0, 7: 0.0}
    slider = page.get_by_role("slider").nth(1)
    slider.focus()
    page.keyboard.press("ArrowRight")
    shown.until(lambda: widget.selected == {41: 8.0, 7: 0.05})
    shown.until(lambda: not widget.running)
    new = page.locator(".sl-answers").first.locator(".sl-new")  # the page hears of the end a little later
    shown.until(lambda: [text.strip() for text in new.all_inner_texts()] == ["two", "41=8,", "7=0.05"])
    assert page.get_by_text("7=0.05").count() >= 2
    shown.until(lambda: page.locator(".sl-outcome").first.get_by_role("row").count() == 4)
    assert page.locator(".sl-outcome td").all_inner_texts()[:2] == ["200", "201"]
    shown.watched.assert_quiet()


def test_stop_and_the_code(live):
    widget = a_panel(words=5000, pause=0.002).explore()
    shown = live(widget)
    page = shown.page
    page.get_by_role("textbox", name="prompt").fill("another <b>prompt</b>")
    page.get_by_role("button", name="answer", exact=True).click()
    shown.until(lambda: " more" in widget.untouched_answer)
    assert page.evaluate("document.activeElement.textContent") == "stop", "the focus stays in the row"
    page.keyboard.press("Enter")
    shown.until(lambda: not widget.running and widget.status == "stopped", seconds=1)
    shown.until(lambda: page.locator(".sl-ask [role=status]").first.inner_text() == "stopped")
    page.get_by_role("button", name="copy as code").click()
    page.locator("summary").wait_for()
    shown.until(lambda: page.locator(".sl-field [role=status]").nth(1).inner_text() != "")
    assert "prompt='another <b>prompt</b>'" in page.locator(".sl-source .sl-code").text_content()
    assert page.locator(".sl-view b").count() == 0
    shown.watched.assert_quiet()


def test_a_feature_from_another_view_gets_a_knob(live):
    widget = a_panel().explore()
    shown = live(widget, copies=2)
    widget.feature = 3
    shown.until(lambda: shown.page.get_by_role("slider").count() == 6)
    assert shown.page.get_by_text("3 · found").count() == 2
    heard = shown.page.evaluate("heard()")
    shown.page.evaluate("clean[0]()")
    assert shown.page.evaluate("heard()") == heard / 2
    shown.page.evaluate("clean[1]()")
    assert shown.page.evaluate("heard()") == 0
    assert shown.page.locator("section *").count() == 0


def test_features_are_searched_opened_and_kept(live):
    widget = a_browser().explore()
    shown = live(widget, copies=2)
    page = shown.page
    first = page.locator("section").first
    first.get_by_role("searchbox").fill("number 5")
    shown.until(lambda: widget.query == "number 5")
    items = first.locator(".sl-found .sl-item")
    shown.until(lambda: items.count() == 11)
    page.keyboard.press("Tab")  # the field, then the chooser, then the list
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shown.until(lambda: widget.feature == 150)
    shown.until(lambda: page.get_by_role("group", name="feature 150").count() == 2)
    page.keyboard.press("p")
    shown.until(lambda: widget.pinned == (150,))
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    shown.until(lambda: first.locator(".sl-card").count() == 2)
    first.get_by_role("button", name="unpin feature 150").click()
    shown.until(lambda: widget.pinned == ())
    first.get_by_role("combobox").select_option("feature")
    shown.until(lambda: widget.sort == "feature")
    first.get_by_role("searchbox").fill("nothing like it")
    shown.until(lambda: first.get_by_text("no feature fits").count() == 1)
    shown.watched.assert_quiet()


def test_a_saved_browser_searches_without_a_kernel(open_page, tmp_path):
    watched = open_page(a_browser().save(tmp_path / "x.html"))
    page = watched.page
    page.get_by_role("listbox", name="features").wait_for()
    page.get_by_role("searchbox").fill("number 1")
    assert page.get_by_text("11 of 60").is_visible()
    page.locator(".sl-found .sl-item").nth(3).click()
    assert page.get_by_text("the card of feature 36 comes with a running kernel").is_visible()
    page.locator(".sl-found .sl-item").first.click()
    assert page.get_by_role("group", name="feature 3").is_visible()
    watched.assert_quiet()

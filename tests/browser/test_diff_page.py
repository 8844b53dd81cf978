"""The page of a dataset difference in a real browser, from a file."""

from sparselens.views import diff_page, page, snippets
from tests.views.samples import HOSTILE, diff_examples, diff_frame


def test_it_opens_and_unfolds(open_page, tmp_path):
    frame = diff_frame()
    path = tmp_path / "diff.html"
    html = diff_page(frame, diff_examples(frame), title="Left & right", notes=["A note."], names=("left", "<b>right"))
    path.write_text(html, encoding="utf-8")
    watched = open_page(path)
    tab = watched.page
    assert tab.title() == "Left & right"
    assert tab.get_by_role("heading", name="Left & right").is_visible()
    assert tab.locator("td > b").all_inner_texts() == [str(feature) for feature in frame["feature"].head(30)]
    folded = tab.locator("details").nth(1)
    assert not folded.locator(":is(b, i)[title]").first.is_visible()
    folded.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert folded.locator(":is(b, i)[title]").first.is_visible()
    left, right = (folded.get_by_text(name, exact=True).bounding_box() for name in ("left", "<b>right"))
    assert left["y"] == right["y"], "both sets side by side"
    assert left["x"] < right["x"]
    watched.assert_quiet()


def test_bars_are_as_long_as_their_numbers(open_page, tmp_path):
    frame = diff_frame(1).assign(freq_a=0.25, freq_b=1.0, difference=0.75, ci_low=-1.0, ci_high=1.0)
    path = tmp_path / "diff.html"
    path.write_text(diff_page(frame, {}, title="t"), encoding="utf-8")
    tab = open_page(path).page
    bars = tab.locator("td div > div")
    widths = bars.evaluate_all("all => all.map(b => b.offsetWidth / b.parentElement.offsetWidth)")
    assert [round(width, 2) for width in widths] == [0.25, 1.0, 1.0]


def test_hostile_snippets_are_shown_and_never_run(open_page, tmp_path):
    path = tmp_path / "snippets.html"
    rows = [{"tokens": HOSTILE, "values": [1.0] * len(HOSTILE), "title": HOSTILE[0]}]
    path.write_text(page("Snippets", snippets(rows)), encoding="utf-8")
    watched = open_page(path)
    assert watched.page.locator(":is(b, i)[title]").count() == len(HOSTILE)
    assert watched.page.locator(":is(b, i)[title]").first.inner_text() == HOSTILE[0]
    assert watched.page.locator("body b:not([title]), body script, body img, body style").count() == 0
    watched.assert_quiet()

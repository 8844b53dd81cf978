"""Saved masks of attention heads in a real browser, from a file, under its strict policy."""

import numpy as np
import pytest

from sparselens.views import Mark
from tests.views.test_masks import sample

READY = "html[data-ready='1']"


@pytest.fixture
def show(open_page, tmp_path):
    """Save a view, open the file, and return the tab when the view has started."""

    def show_one(view):
        watched = open_page(view.save(tmp_path / "view.html"))
        watched.page.on("console", lambda message: watched.errors.append(message.text))
        watched.page.locator(READY).wait_for(state="attached")
        return watched

    return show_one


def _told(page) -> str:
    return page.locator(".sl-told [role=status]").inner_text()


def test_the_masks_tell_what_they_hold(show):
    view = sample(title="a title")
    watched = show(view)
    page = watched.page
    assert page.locator(".sl-thumb").count() == 3
    page.get_by_role("combobox", name="layer").select_option(label="7")
    page.get_by_role("button", name="head 1").click()
    assert _told(page).startswith("layer 7, head 1: keeps 100.0% of its tiles, loses")
    page.get_by_role("button", name="head 2").click()
    page.locator(".sl-mask canvas").focus()
    for key, times in (("ArrowDown", 4), ("ArrowRight", 2)):
        for _ in range(times):
            page.keyboard.press(key)
    assert f"{100 * view.kept[1, 2, 3, 2]:.0f}% kept" in _told(page)
    assert "tokens 12 to 15" in _told(page) and "tokens 8 to 11" in _told(page)
    page.keyboard.press("Escape")
    assert "looking at" not in _told(page)
    watched.assert_quiet()


@pytest.mark.parametrize("other", [False, True])
def test_the_large_mask_is_true_to_the_data(show, other):
    view = sample(other=other)
    page = show(view).page
    for q, k in np.argwhere(view.possible):
        red, _, blue, alpha = page.evaluate(
            "([x, y]) => [...document.querySelector('.sl-mask canvas').getContext('2d').getImageData(x, y, 1, 1).data]",
            [int((k + 0.5) * 84), int((q + 0.5) * 84)],
        )
        value = view.kept[0, 0, q, k] - (view.other[0, 0, q, k] if other else 0)
        if abs(value) < 0.006:  # a byte a share: such a difference may be sent as none
            continue
        assert abs(alpha - (60 + 195 * abs(value))) < 3
        assert (red > blue) == (other and value >= 0)


def test_marks_are_framed_told_and_mapped(show):
    kept, lost = np.random.default_rng(1).integers(1, 256, (2, 2, 3, 5)) / 255  # as they are sent
    kept[1, 2] = 0
    mark = Mark([(4, 8)], kept, lost)
    watched = show(sample(marks={"needle": mark, "other": Mark([(0, 1)], kept[::-1], lost)}))
    page = watched.page
    assert f"tokens 16 to 17 keep {100 * kept[0, 0, 4]:.0f}% of “needle”" in _told(page)
    assert f"and lose {100 * lost[0, 0, 4]:.1f}% of their attention there" in _told(page)
    pixel = "([x, y, of]) => [...document.querySelector(of).getContext('2d').getImageData(x, y, 1, 1).data]"
    green = page.evaluate(pixel, [84, 210, ".sl-mask canvas"])
    assert green[1] > green[0] and green[1] > green[2], "the frame of tokens 4 to 7 begins at the second tile"
    wide, seen = page.evaluate(
        "() => { const map = document.querySelector('.sl-sight canvas');"
        "return [map.width, [...map.getContext('2d').getImageData(0, 0, map.width, map.height).data]]; }"
    )
    seen = np.reshape(seen, (-1, wide, 4))[5::12, 5::12, 3]
    share = kept[..., 4]
    np.testing.assert_allclose(seen, 255 * np.where(share > 0, 0.25 + 0.75 * share, 0.15).T, atol=3)
    page.locator(".sl-sight canvas").click(position={"x": 12 + 5, "y": 12 * 2 + 5})
    assert _told(page).startswith("layer 7, head 2") and "keep 0% of “needle”" in _told(page)
    page.get_by_role("combobox", name="mark").select_option(label="other")
    assert "“other”" in page.locator(".sl-sight canvas").get_attribute("aria-label")
    watched.assert_quiet()

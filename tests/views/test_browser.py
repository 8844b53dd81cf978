"""The feature browser: search, sorting, cards that are made once, pins, and what it sends."""

import numpy as np
import pandas as pd
import pytest

from sparselens.errors import InputError
from sparselens.views import browser_view
from sparselens.views.browser import COLUMNS
from tests.views.allowed import check
from tests.views.sample_views import a_browser, a_card
from tests.views.test_live_views import reading_card


def many(n: int) -> pd.DataFrame:
    return pd.DataFrame({"feature": np.arange(n), "description": [f"word {i}" for i in range(n)],
                         "density": np.linspace(0, 1, n), "peak": 1.0})


def test_a_search_finds_numbers_and_words():
    view = browser_view(many(200), a_card)
    assert view.find("19")["feature"].tolist() == [19, *range(119, 120), *range(190, 200)]
    assert view.find(" WORD 7")["feature"].tolist() == [7, *range(70, 80)]
    assert view.find("(")["feature"].tolist() == [], "a word, no pattern"
    assert view.find("", "density")["feature"].tolist() == list(range(199, -1, -1))
    assert view.find("", "feature")["feature"].tolist() == list(range(200))
    with pytest.raises(InputError, match="cannot sort by 'size'"):
        view.find("", "size")


def test_what_cannot_be_shown():
    with pytest.raises(InputError, match="lacks description, density, peak"):
        browser_view(pd.DataFrame({"feature": [1]}), a_card)
    with pytest.raises(InputError, match="feature 0 comes more than once"):
        browser_view(pd.concat([many(2), many(2)]), a_card)


def test_without_features():
    view = browser_view(pd.DataFrame(columns=list(COLUMNS)), a_card)
    assert "There is no feature to show" in check(view.to_html()).text
    assert view.explore().feature == -1
    assert view.explore().selected == ()
    view.figure()


def test_the_rows_that_fit_come_from_python():
    widget = browser_view(many(5000), a_card).explore()
    assert (len(widget.descriptions), widget.found, widget.total) == (400, 5000, 5000)
    widget.query = "word 49"
    assert widget.found == 111
    columns = np.frombuffer(widget.columns, "<f8").reshape(3, -1)
    assert columns[0].tolist() == [float(d.split()[1]) for d in widget.descriptions]
    widget.set_state({"query": "", "sort": "density"})
    assert np.frombuffer(widget.columns, "<f8")[0] == 4999
    with pytest.raises(InputError, match="cannot sort by 'x'"):
        widget.sort = "x"


def test_cards_are_made_once_and_can_be_kept():
    asked = []
    view = browser_view(many(50), lambda feature: (asked.append(feature), a_card(feature))[1])
    widget = view.explore()
    widget.feature = 4
    widget.pinned = [4, 9]
    widget.feature = 0
    assert [card["feature"] for card in widget.cards] == [0, 4, 9]
    assert asked == [0, 4, 9]
    assert widget.selected == (4, 9)
    with pytest.raises(InputError, match="at most 4 fit"):
        widget.pinned = range(5)


def test_a_feature_without_a_card_leaves_the_open_one():
    widget = a_browser().explore()
    for name, value in (("feature", 7), ("pinned", [7])):
        with pytest.raises(InputError, match="there is no feature 7"):
            setattr(widget, name, value)
    assert (widget.feature, widget.pinned) == (0, ())


def test_the_same_sentence_is_tested_for_the_next_feature():
    widget = browser_view(many(3), reading_card).explore()
    assert widget.can_test
    widget.test_text = "an apple in bed"
    widget._turns.thread.join(10)
    assert widget.result["peak"] == 5.0
    widget.feature = 1
    widget._turns.thread.join(10)
    assert widget.result["peak"] == 3.0


def test_a_saved_browser_has_the_first_cards():
    widget = a_browser().portable()
    assert (widget.live, widget.can_test, len(widget.cards)) == (False, False, 8)

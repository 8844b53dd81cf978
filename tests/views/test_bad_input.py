"""What is too long, too many, empty, NaN or out of range: something honest is shown, or one clear error raised."""

import numpy as np
import pandas as pd
import pytest
import traitlets

from sparselens.errors import InputError, NotFiniteError, SparselensError
from sparselens.views import (
    browser_view,
    card_view,
    channel_map,
    diff_view,
    map_view,
    network_view,
    panel_view,
    sparsity_dial,
    timeline_view,
    token_view,
)
from sparselens.views.browser import COLUMNS
from tests.views import scale_views
from tests.views.allowed import check
from tests.views.samples import diff_frame
from tests.views.scale_views import a_row, words

LONG = 50_000


def test_a_text_of_50_000_tokens(tmp_path):
    values = np.zeros((LONG, 4))
    values[::13] = 1
    view = token_view(words(LONG), values)
    assert len(view.to_html()) < 200_000
    widget = view.explore()
    widget.token = LONG - 1
    assert view.save(tmp_path / "x.html").stat().st_size < 1_200_000
    rows = [{"tokens": view.tokens, "values": values[:, 0]}] * 10
    card = card_view(1, rows, [1.0], n_documents=10, n_firing=10)
    assert len(card.to_html()) < 200_000
    assert card.save(tmp_path / "y.html").stat().st_size < 100_000
    assert "49," in check(card.to_html()).text, "how many tokens are left out is said"


def test_a_million_points():
    view = scale_views.points(1_000_000)
    html = view.to_html()
    assert len(html) < 200_000
    assert "5,000 of 1,000,000 documents are drawn" in html
    widget = view.portable()
    widget.documents = [999_999]
    assert widget.selected.tolist() == [999_999]
    assert max(map(len, widget.texts)) <= 40, "the list holds the beginnings"


NOTHING = {
    "tokens": lambda: token_view([], []),
    "map": lambda: map_view(np.zeros((0, 2)), []),
    "panel": lambda: panel_view([], "p"),
    "timeline": lambda: timeline_view([]),
    "channels": lambda: channel_map(np.zeros((0, 4), dtype=bool)),
    "dial": lambda: sparsity_dial(pd.DataFrame({"method": [], "sparsity": []})),
}
ROWLESS = {
    "diff": lambda: diff_view(diff_frame().head(0), lambda feature: {}),
    "network": lambda: network_view(pd.DataFrame(columns=["feature_a", "feature_b", "npmi", "support"], dtype=float)),
    "card": lambda: card_view(0, [], [], n_documents=0, n_firing=0),
    "browser": lambda: browser_view(pd.DataFrame(columns=list(COLUMNS)), lambda f: None),
}


@pytest.mark.parametrize("make", NOTHING.values(), ids=NOTHING)
def test_nothing_to_show_is_said(make):
    with pytest.raises(SparselensError, match=r"nothing|no document|no steps|0 features|at least|0 rows"):
        make()


@pytest.mark.parametrize("make", ROWLESS.values(), ids=ROWLESS)
def test_tables_without_rows_say_so(make, tmp_path):
    view = make()
    read = check(view.to_html())
    assert any(word in read.text.lower() for word in ("no feature", "no pair", "no text", "0 of 0"))
    view.figure()
    view.explore()
    assert view.save(tmp_path / "x.html").stat().st_size > 1000


def test_scores_that_are_nan_are_refused():
    row = {"tokens": ["a"], "values": [float("nan")]}
    makers = [
        lambda: token_view(["a"], [np.nan]),
        lambda: card_view(1, [], [np.inf], n_documents=1, n_firing=1),
        lambda: card_view(1, [row], [1.0], n_documents=1, n_firing=1).to_html(),
        lambda: timeline_view(["a"], {"p": [np.nan]}),
        lambda: channel_map(np.ones((1, 1), dtype=bool), scores=[[np.nan]]),
        lambda: network_view(pd.DataFrame({"feature_a": [1], "feature_b": [2], "npmi": [np.nan], "support": [3]})),
    ]
    for make in makers:
        with pytest.raises(NotFiniteError, match="NaN"):
            make()


def test_numbers_that_are_not_known_are_a_dash_in_tables():
    frame = diff_frame(4)
    frame.iloc[0, frame.columns.get_indexer(["ci_low", "ci_high", "q_value"])] = np.nan
    frame.iloc[1, frame.columns.get_indexer(["freq_a", "difference"])] = np.nan
    rows = pd.DataFrame({"feature": [1, 2], "description": "d", "density": [np.nan, 0.5], "peak": [np.nan, 1.0]})
    cards = browser_view(rows, lambda f: card_view(f, [a_row(0)], [1.0], n_documents=1, n_firing=1,
                                                   neighbours=[(3, "x", float("nan"))]))
    for view in (diff_view(frame, lambda feature: {"a": [a_row(0)], "b": []}), cards):
        text = check(view.to_html()).text
        assert "nan" not in text.lower()
        assert "–" in text
        saved = view.portable()
        assert saved is not None


def test_places_that_are_nan_are_left_out():
    view = map_view([[0, 0], [np.nan, 1], [1, 1]], ["a", "b", "c"], [1.0, np.nan, 2.0])
    assert view.placed.tolist() == [True, False, True]
    view.to_html()
    view.figure()


def test_features_and_tokens_out_of_range():
    tokens = scale_views.tokens().explore()
    with pytest.raises(InputError, match="feature 99 is not in this view"):
        tokens.feature = 99
    with pytest.raises(traitlets.TraitError, match="token is 2000; it must lie between -1 and 1999"):
        tokens.token = 2000
    with pytest.raises(traitlets.TraitError, match="page is 1"):
        tokens.page = 1
    card = scale_views.card().explore()
    with pytest.raises(InputError, match="cannot load feature 8"):
        card.feature = 8
    panel = scale_views.panel().explore()
    with pytest.raises(InputError, match="feature 99 has no knob here"):
        panel.feature = 99
    diff = diff_view(diff_frame(2), lambda feature: {}).explore()
    with pytest.raises(InputError, match="feature 3 is not in this difference"):
        diff.feature = 3
    assert (tokens.feature, tokens.token, card.feature) == (0, -1, 7)

"""The widgets of differences, maps, networks and cards without a browser."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import traitlets

from sparselens.errors import InputError
from sparselens.views import card_view, diff_view, map_view, network_view
from sparselens.views.networks import places, spring
from tests.views.allowed import check
from tests.views.sample_views import a_card, a_diff, a_map, a_network, hostile_row
from tests.views.samples import diff_frame


def test_the_table_of_a_difference_survives_packing():
    view = a_diff()
    widget = view.explore()
    columns = np.frombuffer(widget.columns, "<f8").reshape(7, -1)
    frame = view.to_frame()
    np.testing.assert_array_equal(columns[0], frame["feature"])
    np.testing.assert_array_equal(columns[6], frame["q_value"])
    assert widget.total == 40


def test_texts_of_further_features_come_when_asked_for():
    asked = []
    view = a_diff()
    counted = diff_view(view.frame, lambda feature: (asked.append(feature), view.examples(feature))[1])
    widget = counted.explore()
    assert len(widget.store) == len(asked) == 30
    last = int(view.frame["feature"].iloc[-1])
    widget.feature = last
    assert widget.extra["feature"] == last == asked[-1]
    assert widget.extra["texts"]
    widget.feature = int(view.frame["feature"].iloc[0])
    assert len(asked) == 31


def test_what_is_selected_in_a_difference():
    widget = a_diff().explore()
    first = widget.feature
    assert widget.selected == (first,)
    widget.picked = [7, 14]
    assert widget.selected == (7, 14)
    widget.set_state({"text": ["b", 10]})
    assert widget.text == ("b", 10)
    with pytest.raises(InputError, match="feature 3 is not in this difference"):
        widget.feature = 3


def test_a_difference_without_rows():
    view = diff_view(diff_frame().head(0), lambda feature: {"a": [], "b": []})
    assert "No feature fires" in check(view.to_html()).text
    assert view.explore().feature == -1


def test_a_long_difference_sends_its_first_500_rows():
    widget = diff_view(diff_frame(600), lambda feature: {"a": [hostile_row()], "b": []}).explore()
    assert len(widget.descriptions) == 500
    assert widget.total == 600


def test_a_map_checks_what_it_is_given():
    with pytest.raises(InputError, match=r"xy has shape \[3, 2\], but 2 texts need \[2, 2\]"):
        map_view(np.zeros((3, 2)), ["a", "b"])
    with pytest.raises(InputError, match="no document has a place"):
        map_view(np.full((2, 2), np.nan), ["a", "b"])
    with pytest.raises(InputError, match="colour has 1 entries, but there are 2 texts"):
        map_view(np.zeros((2, 2)), ["a", "b"], ["x"])


def test_the_numbers_of_a_map():
    view = a_map()
    frame = view.to_frame()
    assert frame["class"].tolist()[:12] == ["<b>even"] * 10 + ["odd"] * 2
    assert view.placed.sum() == 59
    assert view._central(view.members(1), 3)[0] in range(10, 60)
    axes = view.plot()
    assert sum(len(points.get_offsets()) for points in axes.collections) == 60


def test_a_choice_on_a_map_is_described_and_read():
    widget = a_map().portable()
    widget.documents = [1, 2, 3]
    np.testing.assert_array_equal(widget.selected, [1, 2, 3])
    assert widget.about[0][0] == 7
    assert widget.about[0][2] == pytest.approx(0.05)
    widget.document = 4
    assert widget.reading["text"].endswith("text number 4")
    widget.feature = 20
    assert widget.documents == (0, 20, 40)
    widget.documents = range(60)
    assert widget.about == [], "all documents have nothing more often than the others"
    with pytest.raises(traitlets.TraitError, match="documents is 60; it must lie between 0 and 59"):
        widget.documents = [60]
    with pytest.raises(traitlets.TraitError, match="document is -2"):
        widget.document = -2


def test_jupyter_scatter_and_the_list_choose_together():
    pytest.importorskip("jscatter")
    widget = a_map().explore()
    widget.scatter.widget.selection = [4, 5]  # of the points that have a place
    assert widget.documents == widget.list.documents == (4, 6)
    np.testing.assert_array_equal(widget.selected, [4, 6])
    widget.documents = [0, 5, 59]
    assert sorted(widget.scatter.widget.selection) == [0, 58], "document 5 has no place"
    assert widget.documents == (0, 5, 59)
    widget.list.feature = 30
    assert widget.documents == (0, 30)
    data = widget._repr_mimebundle_()
    assert data["text/html"] == widget.view.to_html()


def test_a_map_without_jupyter_scatter(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(a_map().explore()).__name__ == "MapWidget"


def test_the_picture_of_a_large_map_is_thinned():
    random = np.random.default_rng(0)
    html = map_view(random.normal(size=(30_000, 2)), ["t"] * 30_000).to_html()
    assert len(html) < 200_000
    assert "5,000 of 30,000 documents are drawn" in html


def test_the_list_of_a_large_map_is_cut():
    n = 20_000
    widget = map_view(np.random.default_rng(0).normal(size=(n, 2)), ["x" * 1000] * n).portable()
    assert len(json.dumps(widget.texts)) < 1_500_000


def test_the_graph_of_a_network():
    graph = a_network().graph
    assert graph.nodes[:3] == [(0, 0), (0, 1), (0, 2)]
    assert graph.edges[:5].tolist() == [[0, i] for i in range(1, 6)]
    assert graph.classes.names == [*(f"part {i}" for i in range(7)), "others"]
    assert (graph.classes.codes[:6] == 0).all(), "the largest part comes first"
    assert (graph.classes.codes[-1], graph.classes.colours[-1]) == (7, "#999999")
    between = a_network(("prompts", "answers")).graph
    assert between.nodes[:2] == [(0, 0), (1, 1)]
    assert between.classes.names == ["prompts", "answers"]


def test_linked_nodes_lie_near_each_other_and_always_in_the_same_place():
    edges = np.array([[i, i + 1] for i in range(0, 40, 2)])
    xy = places(40, edges)
    np.testing.assert_array_equal(xy, places(40, edges))
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    linked = apart[edges[:, 0], edges[:, 1]]
    assert np.isfinite(xy).all()
    assert linked.max() < np.median(apart) / 2
    assert linked.min() > 0
    nearest = np.where(np.eye(40, dtype=bool), np.inf, apart).argmin(axis=1)
    assert (nearest == np.arange(40) ^ 1).mean() > 0.8, "of most nodes, the nearest is the one it is linked to"


def test_parts_of_a_network_lie_side_by_side():
    random = np.random.default_rng(0)
    edges = np.concatenate([[[0, 1], [2, 3]], 4 + np.array([[i, random.integers(i)] for i in range(1, 30)])])
    xy = places(34, edges)
    boxes = [(xy[part].min(axis=0), xy[part].max(axis=0)) for part in ([0, 1], [2, 3], range(4, 34))]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            assert (low > other_high).any() or (high < other_low).any(), "boxes do not overlap"
    assert places(0, np.zeros((0, 2), dtype=np.int64)).shape == (0, 2)


def test_the_ends_of_a_chain_lie_far_apart():
    xy = spring(8, np.array([[i, i + 1] for i in range(7)]))
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    assert apart[0, 7] == apart.max()
    assert max(apart[i, i + 1] for i in range(7)) < apart[0, 7] / 2


def test_a_choice_in_a_network():
    widget = a_network().explore()
    assert widget.pair == widget.selected == (0, 1)
    assert len(widget.store) == 30
    widget.pair = (78, 79)
    assert widget.extra["pair"] == [78, 79]
    assert widget.extra["sides"] == [1, 2]
    widget.picked = [5]
    assert widget.selected == (5,)
    with pytest.raises(InputError, match=r"\(1, 2\) is not among the 40 pairs"):
        widget.pair = (1, 2)
    with pytest.raises(InputError, match="feature 6 is in none of the 40 pairs"):
        widget.feature = 6


def test_a_network_checks_what_it_is_given():
    frame = a_network().to_frame()
    with pytest.raises(InputError, match="lacks npmi"):
        network_view(frame.drop(columns="npmi"))
    same = frame.assign(feature_b=frame["feature_a"])
    with pytest.raises(InputError, match="feature 0 is paired with itself"):
        network_view(same)
    assert len(network_view(same, names=("prompts", "answers")).graph.nodes) == 72
    empty = network_view(frame.head(0))
    assert "No pair of features passes" in check(empty.to_html()).text
    assert empty.explore().selected == ()
    empty.figure()


def test_captions_in_the_picture_do_not_overlap():
    from sparselens.views import svg

    view = a_network()
    points = svg.fit(view.graph.xy, pad=40)[view.named]
    width = np.array([6 * len(view.caption(i)) for i in view.named])
    over = (np.abs(points[:, None, 1] - points[None, :, 1]) <= 12) & (
        2 * np.abs(points[:, None, 0] - points[None, :, 0]) <= width[:, None] + width[None])
    assert over.sum() == len(view.named)
    assert len(view.named) >= 8


def test_the_numbers_of_a_card():
    card = a_card()
    counts, edges = card.histogram()
    assert counts.sum() == 100
    assert (edges[0], edges[-1]) == (float(np.float32(0.1)), 10.0)
    assert card.density == 0.25
    assert dict(card.facts)["value"] == "5.05 on average, 10 at most"
    frame = card.to_frame()
    assert frame["document"].tolist() == [0, 10, 20]
    assert frame["value"].tolist() == [2.0] * 3
    with pytest.raises(InputError, match="n_firing=3 of n_documents=2"):
        card_view(0, [], [], n_documents=2, n_firing=3)


def test_a_feature_that_fires_nowhere_has_a_card():
    card = card_view(3, [], [], n_documents=5, n_firing=0)
    assert "0 of 5 documents" in check(card.to_html()).text
    card.figure()
    assert card.explore().card["counts"] == [0] * 24


def test_a_card_goes_to_another_feature():
    widget = a_card().explore()
    widget.document = 10
    widget.set_state({"feature": 3})
    assert widget.view.feature == widget.card["feature"] == 3
    assert widget.document == -1
    with pytest.raises(InputError, match="shows feature 41 and cannot load feature 3"):
        a_card(loads=False).explore().feature = 3


def test_a_card_that_cannot_be_loaded_leaves_the_old_one():
    def load(feature):
        raise InputError(f"there is no feature {feature}")

    widget = card_view(1, [hostile_row()], [1.0], n_documents=2, n_firing=1, load=load).explore()
    with pytest.raises(InputError, match="there is no feature 9"):
        widget.feature = 9
    assert widget.feature == widget.card["feature"] == 1


def test_a_small_card_and_a_small_difference_are_small():
    row = {"tokens": [" word"] * 60, "values": np.eye(60)[7], "title": "text 3", "document": 3}
    card = card_view(1, [row] * 10, np.arange(1.0, 50), n_documents=99, n_firing=9).explore()
    assert len(json.dumps(card.card, default=lambda packed: len(packed) * "x")) < 60_000
    widget = diff_view(diff_frame(500), lambda feature: {"a": [row] * 3, "b": [row] * 3}).explore()
    assert len(json.dumps(widget.store, default=lambda packed: len(packed) * "x")) < 250_000


def test_pairs_without_texts():
    frame = pd.DataFrame({"feature_a": [1], "feature_b": [2], "npmi": [0.5], "support": [9]})
    widget = network_view(frame).explore()
    assert widget.store[0]["sides"] == [0, 0]


def reading_card(feature: int, pause: float = 0.0):
    """A card whose model fires on the words that begin with the letter of its number."""

    def read(text):
        time.sleep(pause)
        if "fail" in text:
            raise ValueError("cannot <b>read</b> that")
        words = text.split()
        return words, [float(len(word)) * word.startswith(chr(97 + feature)) for word in words]

    return card_view(feature, [hostile_row()], [1.0, 2.0], n_documents=2, n_firing=1, read=read, load=reading_card)


def finish(widget) -> None:
    widget._turns.thread.join(10)


def test_a_sentence_is_tested():
    widget = reading_card(0).explore()
    widget.test_text = "an apple in bed"
    finish(widget)
    packed = widget.result
    np.testing.assert_allclose(np.frombuffer(packed["values"], "<f2") * packed["peak"], [2, 5, 0, 0], rtol=1e-3)
    assert widget.status == ""
    widget.feature = 1  # the same sentence for another feature
    finish(widget)
    assert widget.result["peak"] == 3.0
    widget.test_text = "fail"
    finish(widget)
    assert (widget.status, widget.result) == ("ValueError: cannot <b>read</b> that", {})
    widget.test_text = "   "
    assert widget.result == {}


def test_the_last_sentence_wins():
    widget = reading_card(0, pause=0.05).explore()
    for text in ("a", "aa", "aaa"):
        widget.test_text = text
    finish(widget)
    assert widget.result["peak"] == 3.0
    assert widget.status == ""


def test_without_a_model_no_sentence_is_tested():
    card = a_card()
    assert card.explore().can_test is False
    with pytest.raises(InputError, match="no model is at hand"):
        card.explore().test_text = "a"
    with pytest.raises(InputError, match="no model is at hand"):
        card.test("a")
    assert reading_card(0).test("an egg").values[:, 0].tolist() == [2, 0]
    assert reading_card(0).portable().can_test is False

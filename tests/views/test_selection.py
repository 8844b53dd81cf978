"""The shared choice: widgets hear each other, and Python hears them."""

import numpy as np
import pytest
import traitlets

from sparselens.errors import InputError
from sparselens.views import Selection, token_view
from sparselens.views.selection import Ids
from tests.views.sample_views import a_card, a_diff, a_map, a_network, a_timeline


class Holder(traitlets.HasTraits):
    ids = Ids()


@pytest.mark.parametrize("given", [[3, 1], (3, 1), np.array([3, 1]), np.array([3, 1], dtype="<u4")])
def test_ids_of_every_kind(given):
    assert Holder(ids=given).ids == (3, 1)
    assert Holder(ids=given[:0]).ids == ()


@pytest.mark.parametrize("bad", [[-1], [0.5], [[1]], "12", 3, None])
def test_what_is_no_list_of_ids(bad):
    with pytest.raises(traitlets.TraitError, match="whole numbers from 0"):
        Holder().ids = bad


def test_ids_travel_as_bytes():
    widget = a_map().portable()
    widget.documents = [1, 2, 59]
    packed = widget.get_state("documents")["documents"]
    assert packed == np.array([1, 2, 59], dtype="<u4").tobytes()
    widget.set_state({"documents": memoryview(np.array([4], dtype="<u4").tobytes())})
    assert widget.documents == (4,)
    widget.set_state({"documents": memoryview(b"")})
    assert widget.documents == ()


def test_widgets_hear_each_other():
    first, second, table = a_map().portable(), a_map().portable(), a_diff().explore()
    chosen = Selection(first, second, table)
    heard = []
    chosen.observe(lambda change: heard.append((change["name"], change["new"])), ["documents", "feature"])
    first.set_state({"documents": np.array([3, 4], dtype="<u4").tobytes()})
    assert second.documents == chosen.documents == (3, 4)
    table.feature = 14
    assert first.feature == second.feature == chosen.feature == 14
    assert chosen.documents == tuple(range(0, 60, 14)), "the map chose the texts in which it fires"
    assert ("documents", (3, 4)) in heard
    assert ("feature", 14) in heard
    chosen.document = 7
    assert (first.document, second.document) == (7, 7)


def test_who_joins_takes_over_the_choice():
    early, late = a_map().portable(), a_map().portable()
    early.documents = [1]
    late.documents = [2]
    chosen = Selection(early)
    assert chosen.documents == (1,)
    chosen.join(late)
    assert late.documents == (1,)
    chosen.leave(late)
    chosen.documents = [5]
    assert (early.documents, late.documents) == ((5,), (1,))


def test_a_view_that_does_not_hold_a_feature_keeps_what_it_shows():
    strip = token_view(["a", "b"], np.eye(2), [7, 14]).explore()
    network = a_network().explore()
    chosen = Selection(strip, network)
    assert (chosen.feature, network.feature) == (7, -1)
    chosen.feature = 10
    assert (strip.feature, network.feature) == (7, 10)
    chosen.feature = 14
    assert (strip.feature, network.feature) == (14, 14)


def test_a_card_goes_along():
    card, table = a_card().explore(), a_diff().explore()
    chosen = Selection(table, card)
    table.feature = 21
    assert card.view.feature == card.card["feature"] == chosen.feature == 21


def test_nothing_to_share():
    with pytest.raises(InputError, match="Holder has none of documents, document, picked, feature, step, token"):
        Selection(Holder())


def test_chains_and_texts_go_along_step_by_step():
    long, short = a_timeline(12).explore(), a_timeline(3, beside=False).explore()
    one, other = (token_view(list("abcd"), np.eye(4)[:, :k], range(k)).explore() for k in (1, 2))
    chosen = Selection(long, short, one, other)
    long.step = 2
    assert (short.step, chosen.step) == (2, 2)
    long.step = 7
    assert (short.step, chosen.step) == (2, 7), "a chain without that step stays where it is"
    other.token = 3
    assert (one.token, chosen.token) == (3, 3)
    chosen.feature = 9
    assert (long.feature, short.feature, one.feature) == (9, 9, 0)

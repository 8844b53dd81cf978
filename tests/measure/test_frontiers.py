"""Comparisons agree with single reports and say what is wrong."""

import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.measure import compare, fidelity
from tests import tiny
from tests.measure.test_reports import SITE, TEXTS, make_sae


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


@pytest.fixture(scope="module")
def frontier(m):
    wide = sl.SAE("topk", d_in=32, d_sae=64, k=16, site=SITE)
    return compare(m, {"k4": make_sae(), "k16": wide, "off": (sl.ablate(SITE), "blocks.2.hook_mlp_out")}, TEXTS)


def test_a_comparison_is_its_reports(m, frontier):
    assert frontier["k4"] == fidelity(m, make_sae(), TEXTS, name="k4")
    assert frontier["off"].sites == ("blocks.2.hook_mlp_out",)
    assert frontier["k16"].l0 == 16
    assert len({r.ce_clean for r in frontier.reports}) == 1


def test_table_and_plot(frontier):
    frame = frontier.to_frame()
    assert list(frame.name) == ["k4", "k16", "off"]
    assert frame.l0.isna().tolist() == [False, False, True]
    html = frontier._repr_html_()
    assert "k16" in html
    assert "cross-entropy" in html
    axes = frontier.plot(x="l0", y="ce_recovered_zero")
    assert axes.get_xlabel() == "l0"


def test_unknown_column_and_name(m, frontier):
    with pytest.raises(InputError, match="ce_recovered_zero"):
        frontier.plot(y="ce_recoverd_zero")
    with pytest.raises(InputError, match="l0"):
        compare(m, {"off": sl.ablate(SITE)}, TEXTS).plot(x="l0")
    with pytest.raises(InputError, match="k16"):
        frontier["k61"]


def test_wrong_arguments(m):
    with pytest.raises(InputError, match="nothing to compare"):
        compare(m, {}, TEXTS)
    with pytest.raises(InputError, match="tuple of 3"):
        compare(m, {"a": (sl.ablate(SITE), SITE, 1)}, TEXTS)
    with pytest.raises(InputError, match="cannot attach"):
        compare(m, {"a": 3}, TEXTS)

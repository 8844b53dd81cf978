"""The live widget in JupyterLab from end to end, and what an untrusted notebook keeps of the static form."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sparselens.views import diff_html, report_html, snippets
from tests.browser.lab import write_notebook
from tests.views.sample_views import VIEWS
from tests.views.samples import HOSTILE, diff_examples, diff_frame, hostile_view

SETUP = """
import numpy as np, ipywidgets
from IPython.display import display
from sparselens.views import token_view
tokens = ["<script>window.hacked=1</script>", " cat", " sat", " on", "</script>", " mat", "."]
w = token_view(tokens, np.eye(7)[:, [1, 5]] * 2, [11, 4], {11: "animals"}).explore()
heard = ipywidgets.Label("nothing heard")
w.observe(lambda c: setattr(heard, "value", f"python heard {c['name']} {c['new']}"), ["token", "feature"])
display(w, heard)
"""
FROM_PYTHON = "w.token = 5"

VIEWS_SETUP = """
import ipywidgets
from IPython.display import display
from sparselens.views import Selection
from tests.views.sample_views import a_card, a_diff, a_map, a_network
points, table, pairs, card = a_map().portable(), a_diff().explore(), a_network().explore(), a_card().explore()
chosen = Selection(points, table, pairs, card)
heard = ipywidgets.Label("nothing heard")
chosen.observe(lambda c: setattr(heard, "value", f"python heard {c['name']} {c['new']}"))
display(heard, points, table, pairs, card)
"""
VIEWS_LAST = """chosen.documents = [50, 51]; print("selected", table.selected, points.selected.tolist(), pairs.pair)"""

ALL_SETUP = """
from IPython.display import display
from tests.views.sample_views import VIEWS
from tests.views.samples import hostile_view
views = {name: make() for name, make in VIEWS.items()}
# the map on its own canvas: jupyter-scatter wants WebGL
shown = [view.portable() if name == "map" else view.explore() for name, view in views.items()]
shown.append(hostile_view().explore())
display(*shown)
"""
ALL_LAST = """shown[list(VIEWS).index("panel")].running = True"""

SLOW = 180_000  # milliseconds; a busy machine takes a minute to start what an idle one starts in seconds

RUN_ALL = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await jupyterapp.commands.execute('notebook:run-all-cells');
}"""
ALL_DONE = """() => {
    const panel = jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets.filter(cell => cell.model.type === 'code');
    return cells.every(cell => cell.model.executionCount !== null)
        && panel.sessionContext.session?.kernel?.status === 'idle';
}"""
RUN_FIRST = """async () => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = 0;
    await jupyterapp.commands.execute('notebook:run-cell');
}"""
RUN_LAST = """async () => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = notebook.widgets.length - 1;
    await jupyterapp.commands.execute('notebook:run-cell');
}"""
CELLS = "(n => [n.activeCellIndex, n.widgets.length, n.mode])(jupyterapp.shell.currentWidget.content)"
RESTART = """async () => {
    const { sessionContext } = jupyterapp.shell.currentWidget;
    await sessionContext.restartKernel();
    await sessionContext.ready;
}"""
NOTEBOOK_OPEN = "window.jupyterapp?.shell.currentWidget?.content?.widgets?.length"


@pytest.fixture(scope="module")
def lab(serve):
    """The address of a JupyterLab with live notebooks and an untrusted one."""
    write_notebook(serve.folder / "live.ipynb", [(SETUP, []), ("w", []), (FROM_PYTHON, [])])
    write_notebook(serve.folder / "views.ipynb", [(VIEWS_SETUP, []), (VIEWS_LAST, [])])
    write_notebook(serve.folder / "all.ipynb", [(ALL_SETUP, []), (ALL_LAST, [])])
    shown = [*_fragments(), "<div>a formula: $x^2$</div>"]
    write_notebook(serve.folder / "untrusted.ipynb", [("'before'", [{"text/html": html}]) for html in shown])
    return serve.address


def _fragments() -> list[str]:
    frame = diff_frame()
    rows = [{"tokens": HOSTILE, "values": [(-1.0) ** i for i in range(len(HOSTILE))], "title": HOSTILE[0]}]
    return [
        hostile_view().to_html(),
        diff_html(frame, diff_examples(frame), title="A & B", notes=["note"]),
        snippets(rows),
        report_html("Report", [("l0", 31.9), (HOSTILE[0], HOSTILE[1])]),
        *(make().to_html() for make in VIEWS.values()),
    ]


def _open(open_page, address: str) -> Any:
    watched = open_page(f"{address}?reset")
    watched.page.wait_for_function(NOTEBOOK_OPEN, timeout=SLOW)
    return watched


def test_the_widget_and_python_hear_each_other(lab, open_page):
    watched = _open(open_page, f"{lab}/lab/tree/live.ipynb")
    page = watched.page
    page.evaluate(RUN_ALL)
    page.wait_for_function(ALL_DONE, timeout=SLOW)
    views = page.locator(".sl-strip")
    views.nth(1).wait_for()
    assert views.count() == 2
    chosen = page.locator("[role=option][aria-selected=true]")

    def wait_for(token: int) -> None:
        """Both views of the model show the token, and Python has heard it."""
        page.get_by_text(f"python heard token {token}").wait_for()
        page.wait_for_function(
            """token => {
                const chosen = [...document.querySelectorAll('[role=option][aria-selected=true]')];
                return chosen.length === 2 && chosen.every(span => span.dataset.i === token);
            }""",
            arg=str(token),
        )

    wait_for(5)  # set in Python
    views.first.locator("[data-i='1']").click()
    wait_for(1)
    cells = page.evaluate(CELLS)
    for key in ("b", "ArrowDown", "ArrowUp", "ArrowRight", "Enter"):  # "b" makes a cell in a notebook
        page.keyboard.press(key)
    wait_for(2)
    assert page.evaluate(CELLS) == cells, "the keys were the widget's, not the notebook's"
    page.evaluate(RUN_LAST)
    wait_for(5)
    views.nth(1).locator("[tabindex='0']").press("Escape")
    page.get_by_text("python heard token -1").wait_for()
    chosen.first.wait_for(state="detached")
    page.locator(".sl-view select").nth(1).select_option("4")
    page.get_by_text("python heard feature 4").wait_for()
    page.wait_for_function("document.querySelector('.sl-view select').value === '4'")
    assert views.first.locator("[data-i='0']").inner_text() == "<script>window.hacked=1</script>"
    watched.assert_quiet()


def test_views_python_and_each_other(lab, open_page):
    watched = _open(open_page, f"{lab}/lab/tree/views.ipynb")
    page = watched.page
    page.evaluate(RUN_ALL)
    page.wait_for_function(ALL_DONE, timeout=SLOW)
    views = page.locator(".jp-OutputArea .sl-view")
    views.nth(3).wait_for()
    points, table, pairs, card = (views.nth(i) for i in range(4))
    points.get_by_text("2 texts chosen").wait_for()  # set in Python

    points.get_by_role("button", name="odd (30)").click()
    page.get_by_text("python heard documents (10, 11, 12").wait_for()
    points.get_by_text("7 · <script>window.hacked=1</script>").wait_for()  # what the kernel says of the choice
    points.locator(".sl-item").nth(1).focus()
    cells = page.evaluate(CELLS)
    page.keyboard.press("b")  # makes a cell in a notebook
    page.keyboard.press("Enter")
    page.get_by_text("python heard document 11").wait_for()
    assert page.evaluate(CELLS) == cells, "the keys were the widget's, not the notebook's"

    table.get_by_role("searchbox").fill("$x^2$")
    row = table.locator("tbody tr").first
    feature = row.get_attribute("data-feature")
    row.click()
    card.get_by_text(f"feature {feature}", exact=True).wait_for()  # the card went along
    row.press(" ")
    page.get_by_text(f"python heard picked ({feature},)").wait_for()
    pairs.get_by_role("listbox", name="pairs").locator(".sl-item").last.click()
    pairs.locator(".sl-open .sl-item").first.wait_for()  # the texts of this pair were asked for
    page.evaluate(RUN_LAST)
    page.get_by_text(f"selected ({feature},) [50, 51] (78, 79)").wait_for()
    points.get_by_text("2 texts chosen").wait_for()
    watched.assert_quiet()


def test_all_widgets_in_one_notebook(lab, open_page, picture):
    watched = _open(open_page, f"{lab}/lab/tree/all.ipynb")
    page = watched.page
    page.evaluate(RUN_ALL)
    page.wait_for_function(ALL_DONE, timeout=SLOW)
    views = page.locator(".jp-OutputArea .sl-view")
    views.nth(len(VIEWS)).wait_for()
    assert views.count() == len(VIEWS) + 1
    assert "Error displaying widget" not in page.locator("body").inner_text()
    answered = page.locator(".sl-outcome tr")
    answered.nth(3).wait_for()  # the panel has answered from its thread, and its numbers have come
    for i, name in enumerate([*VIEWS, "tokens"]):
        picture(views.nth(i), f"lab-{name}")
    watched.assert_quiet()

    views.evaluate_all("all => all.forEach(view => { view.dataset.old = '1'; })")
    page.evaluate(RUN_FIRST)  # out of order: the widgets of the earlier run are gone, and as many are there anew
    page.locator("[data-old]").first.wait_for(state="detached")
    page.wait_for_function(ALL_DONE, timeout=SLOW)
    views.nth(len(VIEWS)).wait_for()
    assert views.count() == len(VIEWS) + 1
    assert page.locator(".sl-lost").count() == 0

    page.evaluate(RESTART)
    lost = page.get_by_text("The kernel behind this view is gone.")
    lost.nth(len(VIEWS)).wait_for()
    assert (lost.count(), views.count()) == (len(VIEWS) + 1, len(VIEWS) + 1), "all can still be read, and say so"
    table = page.locator(".sl-view tbody tr")
    table.nth(1).click()
    assert table.nth(1).get_attribute("aria-selected") == "true"
    watched.assert_quiet()


class _Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, object]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept: dict[str, object] = {name: value or "" for name, value in attrs}
        if "style" in kept:
            rules = re.sub(r"\s*([;:,])\s*", r"\1", str(kept["style"])).rstrip(";").split(";")
            kept["style"] = sorted(rules)
        if tag != "tbody":  # a browser adds it
            self.found.append((tag, kept))


def test_an_untrusted_notebook_keeps_the_static_form_whole(lab, open_page):
    watched = _open(open_page, f"{lab}/lab/tree/untrusted.ipynb")
    page = watched.page
    outputs = page.locator(".jp-RenderedHTML")
    fragments = _fragments()
    outputs.nth(len(fragments)).locator("mjx-container").wait_for()  # formulas have been drawn
    assert page.evaluate("jupyterapp.shell.currentWidget.content.model.cells.get(0).trusted") is False
    for i, fragment in enumerate(fragments):
        shown = _Elements(outputs.nth(i).inner_html()).found
        for kept, given in zip(shown, _Elements(fragment).found, strict=True):
            assert kept == given
    watched.assert_quiet()

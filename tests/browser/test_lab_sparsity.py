"""The sparsity dial in JupyterLab from end to end, and the static forms in an untrusted notebook."""

import numpy as np
import pandas as pd
import pytest

from sparselens.views import channel_map, sparsity_dial
from tests.browser.lab import write_notebook
from tests.browser.test_jupyterlab import ALL_DONE, CELLS, RUN_ALL, RUN_LAST, SLOW, _Elements, _open
from tests.views.samples import HOSTILE

SETUP = """
import time
import ipywidgets, pandas as pd
from IPython.display import display
from sparselens.views import sparsity_dial
frame = pd.DataFrame({"method": ["TEAL"] * 3, "sparsity": [0.25, 0.5, 0.8], "kl": [0.1, 0.3, 1.0]})
running = []
def answer(method, sparsity, prompt, say):
    running.append(sparsity)
    try:
        for i in range(3 if not sparsity else 2_000):
            time.sleep(0.01)
            say(f"{prompt}{i} ")
    finally:
        running.pop()
w = sparsity_dial(frame, {"kl": 0.0}, title="a dial").explore(answer=answer)
w.sparsity = 0.5
w.prompt = "<script>window.hacked=1</script>"
heard = ipywidgets.Label("nothing heard")
w.observe(lambda c: setattr(heard, "value", f"python heard {c['name']} {c['new']}"), "sparsity")
display(w, heard)
"""
WHILE_RUNNING = "print('kernel says', len(running), 'run')"
STATUS = ".sl-numbers [role=status]"


def _fragments() -> list[str]:
    frame = pd.DataFrame({"method": [HOSTILE[0], HOSTILE[7]], "sparsity": 0.5, "kl": [0.1, 0.2]})
    dial = sparsity_dial(frame, {"kl": 0.0}, title=HOSTILE[1], note="$x^2$")
    channels = channel_map(np.eye(len(HOSTILE), dtype=bool), HOSTILE, title=HOSTILE[2])
    return [dial.to_html(), channels.to_html()]


@pytest.fixture(scope="module")
def lab(serve):
    """The address of a JupyterLab with a live notebook and an untrusted one."""
    write_notebook(serve.folder / "dial.ipynb", [(SETUP, []), ("w", []), (WHILE_RUNNING, [])])
    write_notebook(serve.folder / "pictures.ipynb", [("'before'", [{"text/html": html}]) for html in _fragments()])
    return serve.address


def test_the_dial_and_python_hear_each_other_while_a_model_answers(lab, open_page):
    watched = _open(open_page, f"{lab}/lab/tree/dial.ipynb")
    page = watched.page
    page.evaluate(RUN_ALL)
    page.wait_for_function(ALL_DONE, timeout=SLOW)
    page.locator(STATUS).nth(1).wait_for()
    assert page.locator(STATUS).all_inner_texts() == ["TEAL at 50%"] * 2, "set in Python"
    cells = page.evaluate(CELLS)
    slider = page.get_by_role("slider", name="sparsity").first
    slider.focus()
    page.keyboard.press("b")  # makes a cell in a notebook
    page.keyboard.press("ArrowRight")
    page.get_by_text("python heard sparsity 0.8").wait_for()
    page.wait_for_function("document.querySelectorAll('.sl-numbers [role=status]')[1].textContent === 'TEAL at 80%'")

    page.get_by_role("button", name="answer at this setting").first.click()
    dense, sparse = (page.get_by_role("group", name=f"{side} answer").nth(1) for side in ("dense", "sparse"))
    longer_than = "n => document.querySelectorAll('[aria-label=\"sparse answer\"]')[1].textContent.length > n"
    page.wait_for_function(longer_than, arg=200)
    assert dense.inner_text().count("window.hacked") == 3
    page.wait_for_function(longer_than, arg=len(sparse.inner_text()))
    page.evaluate(RUN_LAST)
    page.get_by_text("kernel says 1 run").wait_for()
    stop = page.get_by_role("button", name="stop").nth(1)
    stop.click()
    page.locator(".sl-ask [role=status]", has_text="stopped").first.wait_for()
    page.wait_for_function("[...document.querySelectorAll('.sl-ask button')].filter(b => b.disabled).length === 2")
    page.evaluate(RUN_LAST)
    page.get_by_text("kernel says 0 run").wait_for()
    assert page.evaluate(CELLS)[1] == cells[1], "the keys were the widget's, not the notebook's"
    watched.assert_quiet()


def test_an_untrusted_notebook_keeps_pictures_and_tables(lab, open_page):
    watched = _open(open_page, f"{lab}/lab/tree/pictures.ipynb")
    page = watched.page
    outputs = page.locator(".jp-RenderedHTML")
    for i, fragment in enumerate(_fragments()):
        outputs.nth(i).wait_for()
        shown = _Elements(outputs.nth(i).inner_html()).found
        for kept, given in zip(shown, _Elements(fragment).found, strict=True):
            assert kept == given
        picture = outputs.nth(i).locator("img")
        assert picture.evaluate("async image => (await image.decode(), image.naturalWidth)") > 300
    watched.assert_quiet()

"""The saved sparsity dial and the map of kept channels in a real browser, from files, under their strict policy."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from sparselens.views import channel_map, sparsity_dial
from sparselens.views.html import visible
from tests.views.samples import HOSTILE

READY = "html[data-ready='1']"
RING = ".sl-here"


@pytest.fixture
def show(open_page, tmp_path):
    """Save a view, open the file, and return the tab when the view has started."""

    def show_one(view, **options):
        watched = open_page(view.save(tmp_path / "view.html"), **options)
        watched.page.on("console", lambda message: watched.errors.append(message.text))
        watched.page.locator(READY).wait_for(state="attached")
        return watched

    return show_one


def dial(methods=("TEAL", "WINA"), **words):
    frame = pd.DataFrame(
        [{"method": name, "sparsity": s, "achieved": s, "perplexity": 10 * np.exp((6 + i) * s**3), "kl": s**3,
          "weight_bytes": 5e8 - 4e8 * s} for i, name in enumerate(methods) for s in ((0.25, 0.5), (0.5, 0.8))[i % 2]]
    )  # fmt: skip
    return sparsity_dial(frame, {"perplexity": 10.0, "kl": 0.0, "weight_bytes": 5e8}, **words)


def _numbers(page) -> dict[str, list[str]]:
    """The table beside the plot: name -> here, dense."""
    rows = page.locator(".sl-numbers tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def test_the_dial_shows_the_chosen_setting(show):
    watched = show(dial(title="a dial", note="on 1,024 tokens"))
    page = watched.page
    assert page.locator(".sl-title").inner_text() == "a dial"
    assert page.get_by_text("on 1,024 tokens").is_visible()
    assert page.locator(".sl-numbers [role=status]").inner_text() == "TEAL at 25%"
    assert _numbers(page) == {
        "achieved sparsity": ["25%", ""],
        "perplexity": ["11", "10"],
        "KL from the dense model": ["0.0156 nats", "0 nats"],
        "weights read per token": ["400 MB", "500 MB"],
    }
    assert page.locator(".sl-point").count() == 6
    assert page.locator(RING).count() == 1
    assert page.locator(".sl-ask").is_hidden(), "no model is at hand in a file"
    watched.assert_quiet()


def test_keys_alone_turn_the_dial(show):
    watched = show(dial())
    page = watched.page
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.tagName"))
    assert names == ["SELECT", "INPUT", "SELECT", "SELECT"]
    slider = page.get_by_role("slider", name="sparsity")
    slider.focus()
    before = page.locator(RING).get_attribute("cx")
    page.keyboard.press("ArrowRight")
    assert page.locator(".sl-numbers [role=status]").inner_text() == "TEAL at 50%"
    assert slider.get_attribute("aria-valuetext") == "50%"
    assert float(page.locator(RING).get_attribute("cx")) > float(before)
    page.get_by_role("combobox", name="method").select_option("WINA")
    assert page.locator(".sl-numbers [role=status]").inner_text() == "WINA at 50%"
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".sl-numbers [role=status]").inner_text() == "WINA at 80%"
    page.get_by_role("combobox", name="method").select_option("TEAL")
    assert page.locator(".sl-numbers [role=status]").inner_text() == "TEAL at 50%", "the nearest that was measured"
    watched.assert_quiet()


def test_a_point_can_be_clicked_and_the_axes_changed(show):
    watched = show(dial())
    page = watched.page
    point = page.locator(".sl-point", has=page.locator("title", has_text="WINA at 80%"))
    assert point.locator("title").text_content() == "WINA at 80%: 80%, 360"
    point.click()
    assert page.locator(".sl-numbers [role=status]").inner_text() == "WINA at 80%"
    page.get_by_role("combobox", name="up").select_option("kl")
    page.get_by_role("combobox", name="across").select_option("weight_bytes")
    plot = page.locator(".sl-plot > svg")
    assert "KL from the dense model, nats against weights read per token, MB" in plot.get_attribute("aria-label")
    ring = page.locator(RING)
    left = page.locator(".sl-point").evaluate_all(
        "all => Math.min(...all.map(p => Number(p.getAttribute('transform').match(/[\\d.]+/)[0])))"
    )
    assert float(ring.get_attribute("cx")) == pytest.approx(left), "the sparsest reads least"
    watched.assert_quiet()


def test_the_plot_is_true_to_the_numbers(show):
    """Places on the screen are a straight function of the values, or of their logarithm."""
    page = show(dial()).page
    found = page.locator(".sl-point").evaluate_all(
        """all => all.map(p => [p.querySelector('title').textContent,
            ...p.getAttribute('transform').match(/-?[\\d.]+/g).map(Number)])"""
    )
    values = np.array([[float(n) for n in re.findall(r"[\d.]+", said.split(": ")[1])] for said, _, _ in found])
    places = np.array([[x, y] for _, x, y in found])
    for k, (bend, down) in enumerate(((np.asarray, 1), (np.log, -1))):  # perplexities span more than 20 times
        slope, start = np.polyfit(bend(values[:, k]), places[:, k], 1)
        assert slope * down > 0
        np.testing.assert_allclose(places[:, k], slope * bend(values[:, k]) + start, atol=2.5)


def test_the_dense_answer_pane_runs_and_stops(open_page, tmp_path):
    """The module as a notebook uses it: a model in memory that hears what is asked, two views, one closed."""
    view = dial((HOSTILE[0], HOSTILE[7]), title=HOSTILE[1])
    path = view.save(tmp_path / "x.html")
    packed = re.search(r'id="sparselens-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL).group(1)
    data = json.loads(packed)["views"][0]
    watched = open_page("about:blank")
    page = watched.page
    page.evaluate(
        """async ([esm, state, b64]) => {
            state.rows = new DataView(Uint8Array.from(atob(b64), c => c.charCodeAt(0)).buffer);
            state.can_answer = true;
            const on = {};
            const model = {
                get: k => state[k],
                set(k, v) {
                    if (state[k] === v) return;
                    state[k] = v;
                    [...(on['change:' + k] ?? [])].forEach(f => f());
                },
                save_changes() {},
                on(n, f) { (on[n] ??= new Set()).add(f); },
                off(n, f) { on[n]?.delete(f); },
            };
            const url = URL.createObjectURL(new Blob([esm], {type: 'text/javascript'}));
            const { render } = (await import(url)).default;
            const homes = [0, 1].map(() => document.body.appendChild(document.createElement('section')));
            const clean = homes.map(el => render({ model, el }));
            Object.assign(window, { model, clean, heard: () => Object.values(on).reduce((n, s) => n + s.size, 0) });
        }""",
        [data["esm"], data["state"], data["buffers"][0][1]],
    )
    first = page.locator("section").first
    first.get_by_role("textbox", name="prompt").fill(HOSTILE[2])
    assert page.locator("section").nth(1).get_by_role("textbox").input_value() == HOSTILE[2]
    start, stop = (first.get_by_role("button", name=name) for name in ("answer at this setting", "stop"))
    assert (start.is_enabled(), stop.is_enabled()) == (True, False)
    start.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("model.get('running')") is True
    assert page.evaluate("document.activeElement.textContent") == "stop", "a disabled button would lose the focus"
    for text in HOSTILE:
        page.evaluate("text => model.set('sparse_answer', text)", text.encode("utf-8", "replace").decode())
        shown = first.get_by_role("group", name="sparse answer").evaluate("node => node.textContent")
        assert shown == visible(text.encode("utf-8", "replace").decode())
    page.evaluate("status => model.set('status', status)", HOSTILE[0])
    assert first.locator(".sl-ask [role=status]").inner_text() == HOSTILE[0]
    page.keyboard.press("Enter")
    assert page.evaluate("model.get('running')") is False
    assert page.evaluate("document.activeElement.textContent") == "answer at this setting"
    every = page.evaluate("heard()")
    page.evaluate("clean[0]()")
    assert page.evaluate("heard()") == every / 2
    page.evaluate("clean[1]()")
    assert page.evaluate("heard()") == 0
    assert page.locator("section *").count() == 0
    watched.assert_quiet()


def test_hostile_names_are_shown_and_never_run(show):
    names = [name.encode("utf-8", "replace").decode() for name in HOSTILE if name.strip()]
    watched = show(dial(names, title=HOSTILE[0], note=HOSTILE[9]))
    page = watched.page
    keys = page.locator(".sl-keys > span").evaluate_all("all => all.map(node => node.textContent)")
    assert keys[:3] == [visible(name) for name in names[:3]]
    page.get_by_role("combobox", name="method").select_option(names[1])
    assert page.locator(".sl-numbers [role=status]").inner_text().startswith(names[1])
    watched.assert_quiet()


def channels(n_tokens: int = 20, n_channels: int = 300, **options):
    scores = np.random.default_rng(0).random((n_tokens, n_channels)).astype(np.float32)
    tokens = [visible(HOSTILE[i % len(HOSTILE)], 30) for i in range(n_tokens)]
    return channel_map(scores > 0.5, tokens, scores, title=HOSTILE[0], **options)


def _told(page) -> str:
    return page.locator(".sl-cell [role=status]").inner_text()


def test_the_map_tells_what_it_holds(show):
    view = channels()
    watched = show(view)
    page = watched.page
    page.get_by_role("combobox", name="channels").select_option("number")
    canvas = page.locator(".sl-channels canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")  # the first key goes to the first cell
    for key, times in (("ArrowRight", 7), ("ArrowDown", 3), ("ArrowLeft", 1)):
        for _ in range(times):
            page.keyboard.press(key)
    told = _told(page)
    assert f"token 3 “{view.tokens[3]}”" in told
    assert f"channel 6: {'kept' if view.keep[3, 6] else 'left out'}, score {float(view.scores[3, 6]):.2g}"[:24] in told
    assert f"keeps {view.keep[3].sum()} of 300 channels" in told
    assert f"kept for {100 * view.keep[:, 6].mean():.0f}% of the tokens" in told
    page.keyboard.press("End")
    assert "channel 299" in _told(page)
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    assert "token 19" in _told(page)
    page.keyboard.press("Escape")
    assert _told(page) == "no cell is chosen"
    watched.assert_quiet()


def test_most_kept_channels_come_first(show):
    view = channels()
    page = show(view).page
    page.locator(".sl-channels canvas").focus()
    page.keyboard.press("ArrowRight")
    assert f"channel {int(np.argsort(-view.keep.sum(0), kind='stable')[0])}:" in _told(page)


def _pixel(page, token: int, place: float) -> list[int]:
    """The colour in the middle of a cell; `place` is a share of the width."""
    return page.evaluate(
        """([token, rows, share, left]) => {
            const canvas = document.querySelector('.sl-channels canvas');
            const dots = devicePixelRatio, wide = canvas.width / dots;
            const tall = (canvas.height / dots - 50) / rows;
            const [x, y] = [left + share * (wide - left), 50 + (token + 0.5) * tall];
            return [...canvas.getContext('2d').getImageData(Math.floor(x * dots), Math.floor(y * dots), 1, 1).data];
        }""",
        [token, 20, place, 104],
    )


def test_the_map_is_true_to_the_data(show):
    """Every sampled pixel is blue where the channel is kept, and grey where it is not."""
    view = channels(20, 60)
    page = show(view).page
    page.get_by_role("combobox", name="channels").select_option("number")
    for token, channel in np.random.default_rng(1).integers(0, (20, 60), (60, 2)):
        red, green, blue, alpha = _pixel(page, int(token), (channel + 0.5) / 60)
        assert (blue > 150 and red < 20 and alpha == 255) == bool(view.keep[token, channel])


def test_click_zoom_and_pointer(show):
    view = channels(20, 3000)
    watched = show(view)
    page = watched.page
    canvas = page.locator(".sl-channels canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 500, box["y"] + 100)
    assert re.search(r"\d of [34567] channels kept here; zoom in for one", page.locator(".sl-cell").inner_text())
    page.mouse.click(box["x"] + 500, box["y"] + 100)
    chosen = re.search(r"channel (\d+):", _told(page)).group(1)
    for _ in range(4):
        page.get_by_role("button", name="zoom in").click()
    assert f"channel {chosen}:" in _told(page)
    page.mouse.move(box["x"] + 520, box["y"] + 100)
    assert re.search(r"channel \d+: (kept|left out), score", page.locator(".sl-cell > .sl-muted").inner_text())
    page.mouse.move(5, 5)
    assert page.locator(".sl-cell > .sl-muted").inner_text() == ""
    canvas.focus()
    for key in ("-", "-", "+", "Home"):
        page.keyboard.press(key)
    watched.assert_quiet()


def test_a_large_map_draws_in_time(show):
    keep = np.random.default_rng(0).random((270, 14_336)) > 0.5
    watched = show(channel_map(keep))
    page = watched.page
    took = page.evaluate("""() => {
        const select = document.querySelector('select'), began = performance.now();
        for (const order of ['number', 'kept', 'number']) {
            select.value = order;
            select.dispatchEvent(new Event('change'));
        }
        return (performance.now() - began) / 3;
    }""")
    assert took < 1000, f"drawing 4 million cells takes {took:.0f} ms"
    watched.assert_quiet()


@pytest.mark.parametrize("view", [dial, channels], ids=["dial", "channels"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_for_screen_readers_and_both_schemes(show, view, scheme):
    page = show(view(), color_scheme=scheme).page
    nameless = page.locator(":is(select, input, button, textarea, canvas, [role])").evaluate_all(
        """all => all.filter(node => node.checkVisibility() && !node.matches('[role=status]')
            && !node.ariaLabel && !node.labels?.length && !node.textContent).map(node => node.outerHTML)"""
    )
    assert nameless == []
    unmarked = page.locator(".sl-view :is(select, input, button, textarea, [tabindex])").evaluate_all(
        "all => all.filter(node => !node.dataset.lmSuppressShortcuts).length"
    )
    assert unmarked == 0
    ink = page.locator(".sl-view").evaluate("node => getComputedStyle(node).color")
    assert ink == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]


def test_without_scripts_the_static_form_shows(open_page, tmp_path):
    page = open_page(dial(title="a dial").save(tmp_path / "x.html"), java_script_enabled=False).page
    assert page.locator("table").is_visible()
    assert "TEAL" in page.locator("table").inner_text()

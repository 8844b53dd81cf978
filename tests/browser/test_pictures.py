"""The pictures of the documentation, from a real model and real texts: `make pictures`. Skipped otherwise."""

import base64
import io
import os
from pathlib import Path

import pytest

import sparselens as sl
from sparselens.files import write_whole
from sparselens.views import save_html
from tests.browser.test_saved_tokens import READY

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "docs" / "assets"
MOST = 150_000  # bytes of a picture
TEXTS = 120

pytestmark = pytest.mark.skipif(os.environ.get("SPARSELENS_PICTURES") != "1",
                                reason="pictures are made by `make pictures` only")


@pytest.fixture(scope="module")
def made():
    """Model, dictionary, and embedded answers in two voices."""
    m, sae = sl.load_model("smollm2-135m-instruct"), sl.SAE.load("smollm2-135m-instruct")
    sets = [sl.datasets.load_answers(style)["answer"].head(TEXTS).tolist() for style in ("formal", "chatty")]
    return m, sae, *(sl.embed(texts, m, sae, role="assistant", progress=False) for texts in sets), sum(sets, [])


@pytest.fixture
def keep(open_page, tmp_path):
    """Open a view, do something with it, and keep a picture of it as a small PNG."""

    def keep_one(name, view, act=lambda page: None, scheme="light", width=1100):
        watched = open_page(save_html([view], tmp_path / f"{name}.html", title=name), color_scheme=scheme)
        page = watched.page
        page.set_viewport_size({"width": width, "height": 760})
        page.locator(READY).wait_for(state="attached")
        act(page)
        page.mouse.move(0, 0)
        watched.assert_quiet()
        write(name, page.locator("#sparselens-view").screenshot())

    return keep_one


def write(name, png):
    """Put a small form of a picture among those of the documentation."""
    packed = smaller(png)
    assert len(packed) < MOST
    with write_whole(ASSETS / f"{name}.png") as temporary:
        temporary.write_bytes(packed)


def smaller(png: bytes) -> bytes:
    """The picture with as many of at most 256 colours as keep it small."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.height > 720:
        image = image.crop((0, 0, image.width, 720))
    for colours in (256, 128, 64, 32):
        packed = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        if packed.tell() < MOST:
            break
    return packed.getvalue()


def test_tokens(made, keep):
    _, _, formal, chatty, _ = made
    features = [int(f) for f in sl.diff(formal, chatty).frame["feature"].head(12)]
    view = sl.token_view(chatty.tokens(3), chatty.activations(3, features), features, title="Which tokens fire?")
    keep("tokens", view, lambda page: page.locator("[role=option][title]").first.click())


def test_diff(made, keep):
    _, _, formal, chatty, _ = made
    keep("diff-live", sl.diff(formal, chatty, names=("formal", "chatty")).explore(),
         lambda page: page.locator("tbody tr").nth(1).click())


def test_map(made, keep):
    _, _, formal, chatty, texts = made
    m, sae = made[:2]
    both = sl.embed(texts, m, sae, role="assistant", progress=False)
    voices = ["formal"] * len(formal) + ["chatty"] * len(chatty)
    view = sl.concept_map(both, voices, title="Answers in two voices")
    keep("map", view, lambda page: page.get_by_role("button", name="chatty").first.click())


def test_network(made, keep):
    keep("network", sl.correlate(made[3]).explore())


def test_browser(made, keep):
    m, sae, _, chatty, _ = made

    def act(page):
        page.locator(".sl-found .sl-item").nth(2).click()
        page.get_by_role("button", name="pin feature").first.click()
        page.locator(".sl-found .sl-item").nth(5).click()

    keep("browser", sl.feature_browser(chatty, sae, m), act, scheme="dark", width=1300)


def test_panel(made, keep):
    m, sae, formal, chatty, _ = made
    frame = sl.diff(formal, chatty).to_frame()
    rows = frame[frame["difference"] > 0].head(4)
    labels = dict(zip(rows["feature"], rows["description"], strict=True))
    features = [int(f) for f in rows["feature"]]
    panel = sl.intervention_panel(m, sae, features, "How do I boil an egg?", labels=labels, chat=True,
                                  max_new_tokens=60)
    keep("panel", panel.run({features[0]: panel.knobs[0].high}))


def test_dial(made, keep):
    m, _, _, _, texts = made
    swept = sl.sweep(m, {"TEAL": sl.TEAL, "WINA": sl.WINA, "random": sl.RandomChannels}, texts[:6],
                     (0.25, 0.4, 0.5), max_length=96)
    keep("dial", swept.view())


def test_channels(made, keep):
    m, _, _, _, texts = made
    keep("channels", sl.TEAL(0.6).channels(m, texts[0][:240], 5, "gate").explore())


def test_timeline(made, keep):
    m, sae, formal, chatty, _ = made
    traces = sl.planted_chains(90, seed=1)
    probes = sl.probe_steps(traces, sl.step_states(traces, m), task="correct")
    held = next(c for c in map(int, probes.rows.chain[probes.test]) if len(traces[c]) > 5 and traces[c].first_error > 0)
    known = sl.diff(formal, chatty).frame
    words = dict(zip(known["feature"], known["description"], strict=True))
    opened = sl.step_timeline(traces[held], m, sae, descriptions=words)
    view = probes.timeline(held, ["last"], threshold=0.85, features=opened.features, tokens=opened.tokens,
                           title="A planted error, and a probe that doubts another step")
    keep("timeline", view)


def test_masks(made, keep):
    m, *_, texts = made
    text = "\n\n".join(texts[:3])
    one, other = (method.masks(m, text) for method in (sl.TopKOracle(1 / 8), sl.SinkWindow(1 / 8)))
    keep("masks", one.view(other),
         lambda page: page.get_by_role("button", name="head 4").click())


def test_needle(keep):
    m = sl.load_model("smollm2-135m-instruct")
    texts = sl.attention.long_context(m.tokenizer, "niah", tokens=400, n=8)
    text = min(texts, key=lambda t: t.needles[0][0])
    marks = {"number": text.needle_tokens(m.tokenizer)}
    keep("needle", sl.VerticalSlash(1 / 8).masks(m, text.prompt, marks=marks).view().layer(18))


# Figures that a notebook shows, by the cell's first words.
FIGURES = {
    "kinds": ("02_train_an_sae", "ax = plt.subplots"),
    "recovery": ("03_signed_hierarchical_compositional", "figure, axes = plt.subplots(1, 2"),
    "heads": ("09_diffusion_lm", "tiles = pattern_stability"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_notebooks(name):
    import nbformat

    notebook, words = FIGURES[name]
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    shown = [output.data["image/png"] for cell in cells if cell.source.startswith(words)
             for output in cell.outputs if "image/png" in output.get("data", {})]
    write(name, base64.b64decode(shown[0]))

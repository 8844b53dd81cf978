"""Static HTML: hostile texts stay texts, nothing is lost in an untrusted notebook, marks can be read."""

import re

import numpy as np
import pytest
import torch

from sparselens.errors import InputError, NotFiniteError
from sparselens.views.html import (
    BLUE,
    ORANGE,
    VERMILLION,
    Scale,
    as_array,
    document,
    escape,
    mark,
    number,
    page,
    scale_bar,
    snippets,
    strip,
    visible,
    windows,
)
from tests.views.allowed import check
from tests.views.samples import HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_comes_back_as_text(text):
    read = check(f'<span title="{escape(text)}">{escape(text)}</span>')
    assert read.text == visible(text)
    assert read.titles == [visible(text)]


def test_unseen_characters_are_named_and_joined_emoji_kept():
    assert visible("a\u202eb\u200b\x00") == "a⟨U+202E⟩b⟨U+200B⟩⟨U+0000⟩"
    assert visible("👩\u200d🚀 مرحبا\n") == "👩\u200d🚀 مرحبا\n"
    assert visible("x" * 10_000, 80) == "x" * 80 + "… (10,000 characters)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (-2.0, "−2"), (12345.6, "12,346"), (1e12, "1e+12"), (3.14159, "3.14")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_arrays_of_every_kind():
    for values in ([1, 2], np.array([1, 2]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)):
        np.testing.assert_array_equal(as_array(values), np.float32([1, 2]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(bad):
    with pytest.raises(NotFiniteError, match="1 NaN or infinite"):
        as_array([0.0, bad])


@pytest.mark.parametrize("n", [1, 5, 40, 500])
@pytest.mark.parametrize("max_tokens", [1, 7, 60])
def test_windows_hold_the_peak_and_keep_to_their_limit(n, max_tokens):
    values = np.abs(np.random.default_rng(n).normal(size=n)).astype(np.float32)
    spans = windows(values, max_tokens)
    assert sum(stop - start for start, stop in spans) <= max(max_tokens, 1)
    assert any(start <= int(values.argmax()) < stop for start, stop in spans)
    assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_windows_by_hand():
    values = np.zeros(100, dtype=np.float32)
    values[[10, 60]] = 1.0, 2.0
    assert windows(values, 10, context=2) == [(8, 13), (58, 63)]
    assert windows(values, 9, context=2) == [(58, 63)]
    assert windows(np.zeros(100, dtype=np.float32), 9) == [(0, 9)]


def test_only_active_tokens_carry_marks():
    tokens = ["a", " b", " c", "\n", ""]
    values = np.float32([0, 1, 0, 2, 3])
    read = check(strip(tokens, values, scale=Scale.of(values), max_tokens=10))
    assert read.marks == 3
    assert read.titles == ["1: 1", "3: 2", "4: 3"]
    assert read.text == "a b c↵\n∅"


def test_the_sign_is_printed_and_drawn():
    values = np.float32([-2, 1])
    html = strip(["a", "b"], values, scale=Scale.of(values), max_tokens=10)
    assert check(html).titles == ["0: −2", "1: +1"]
    assert "dashed rgba(0,114,178" in html
    assert "solid rgba(213,94,0" in html
    assert check(scale_bar(Scale.of(values))).text == "−2+2"


def test_marks_can_be_read_where_styles_are_taken_away():
    values = np.float32([0, 2, 0, -1, 0])
    html = strip(["a", " b", " c", " d", " e"], values, scale=Scale.of(values), max_tokens=10)
    bare = re.sub(r' (style|title)="[^"]*"', "", html)
    assert "a<b> b</b> c<i> d</i> e" in bare
    assert html.count("font-weight:400") == html.count("font-style:normal") == 1


def test_left_out_tokens_are_counted():
    values = np.zeros(1000, dtype=np.float32)
    values[[0, 500]] = 1.0
    read = check(strip(["t"] * 1000, values, scale=Scale.of(values), max_tokens=40))
    assert read.text.count("…") == 4
    shown = 1000 - sum(int(word) for word in read.text.replace("…", " ").split() if word.isdigit())
    assert shown == 9 + 17


def _luminance(colour: np.ndarray) -> float:
    part = colour / 255
    linear = np.where(part <= 0.03928, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("paper", "ink"), [((255, 255, 255), (0, 0, 0)), ((18, 18, 18), (255, 255, 255))])
@pytest.mark.parametrize("colour", [ORANGE, BLUE, VERMILLION])
def test_marked_text_can_be_read_in_light_and_dark(paper, ink, colour):
    scale = Scale(1.0, signed=colour != ORANGE)
    for value in np.linspace(0.001, 1, 50):
        opacity = scale.opacity(value)
        face = opacity * np.array(colour) + (1 - opacity) * np.array(paper)
        text = np.zeros(3) if ";color:#000" in mark("t", float(value), scale, 0) else np.array(ink)
        light, dark = sorted((_luminance(face), _luminance(text.astype(float))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (value, opacity)


# Machado, Oliveira and Fernandes (2009), full severity, on linear RGB
COLOUR_BLIND = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_signs_differ_for_colour_blind_readers(kind):
    seen = []
    for colour in (BLUE, VERMILLION):
        linear = ((np.array(colour) / 255 + 0.055) / 1.055) ** 2.4
        seen.append(_lab(np.clip(np.array(COLOUR_BLIND[kind]) @ linear, 0, 1)))
    assert np.linalg.norm(seen[0] - seen[1]) > 40


def test_snippets_share_one_scale():
    rows = [
        {"tokens": HOSTILE, "values": np.arange(len(HOSTILE)), "title": HOSTILE[0]},
        {"tokens": ["a\nb", "c"], "values": torch.tensor([1.0, 0.0])},
    ]
    html = snippets(rows)
    assert "hacked" in check(html).text
    assert "a↵b" in check(html).text
    weak = Scale(len(HOSTILE) - 1.0, signed=False).opacity(1.0)
    assert f"rgba(230,159,0,{weak:.2g})" in html
    assert check(snippets([])).text == ""


def test_snippets_of_unequal_length():
    with pytest.raises(InputError, match=r"shape \[1\], but there are 2 tokens"):
        snippets([{"tokens": ["a", "b"], "values": [1.0]}])


def test_a_page_may_fetch_nothing_and_runs_no_script():
    html = page(HOSTILE[1], "<p>body</p>")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html
    assert "script-src" not in html
    assert "<script" not in html
    assert html.startswith("<!doctype html>")


def test_a_script_is_allowed_by_its_hash_alone():
    html = document("t", "body", script="let x = 1")
    policy = html.split('content="', 1)[1].split('"', 1)[0]
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline'" not in policy.split("script-src")[1]

"""Views at the size that they are made for, with ordinary texts."""

import numpy as np
import pandas as pd

from sparselens.errors import InputError
from sparselens.views import (
    Knob,
    browser_view,
    card_view,
    channel_map,
    diff_view,
    map_view,
    mask_view,
    network_view,
    panel_view,
    sparsity_dial,
    timeline_view,
)
from tests.views.samples import diff_frame, long_view

SENTENCE = "the model fires on tokens of sparse features and says what it reads in a text about rain , bread ."
WORDS = SENTENCE.split()


def words(n: int, seed: int = 0) -> list[str]:
    """Tokens with a space before each."""
    return [" " + WORDS[i] for i in np.random.default_rng(seed).integers(0, len(WORDS), n)]


def a_row(document: int, n: int = 60) -> dict:
    """A text in which every eighth token fires."""
    values = np.zeros(n)
    values[document % 8 :: 8] = 1 + np.arange(len(values[document % 8 :: 8])) % 3
    return {"tokens": words(n, document), "values": values, "title": f"text {document}", "document": document}


def diff():
    """500 features, with three texts a side."""
    frame = diff_frame(500)
    frame["description"] = [f"fires on: {WORDS[i % len(WORDS)]!r}" for i in range(500)]
    return diff_view(frame, lambda f: {"a": [a_row(f), a_row(f + 1)], "b": [a_row(f + 2)] * 3}, title="A and B")


def points(n: int = 20_000):
    """Documents in five islands."""
    random = np.random.default_rng(0)
    kind = np.arange(n) % 5
    xy = random.normal(size=(n, 2)) + 6 * np.stack([np.cos(kind * 1.26), np.sin(kind * 1.26)], axis=1)
    return map_view(xy, [f"document {i} about {WORDS[i % len(WORDS)]}" for i in range(n)], kind, name="kind",
                    title="A map")


def network(nodes: int = 300, edges: int = 2000):
    """Pairs of features at random, each once."""
    codes = np.random.default_rng(0).permutation(nodes * nodes)
    pairs = [(int(c // nodes), int(c % nodes)) for c in codes if c // nodes < c % nodes][:edges]
    frame = pd.DataFrame(pairs, columns=["feature_a", "feature_b"])
    frame["npmi"], frame["support"] = np.linspace(0.9, 0.3, len(frame)), 9
    return network_view(frame, lambda a, b: {"a": [a_row(a)], "b": [a_row(b)]}, title="A network")


def card(feature: int = 7):
    """Ten texts of 60 tokens."""
    return card_view(feature, [a_row(i) for i in range(10)], np.random.default_rng(0).gamma(2, 2, 5000),
                     n_documents=2000, n_firing=311, description="fires on: 'rain', 'bread'", method="top tokens",
                     neighbours=[(i, f"feature {i}", 0.5 - i / 50) for i in range(8)], promotes=[" rain", " snow"])


def browser(n: int = 65_536):
    """A large dictionary."""
    density = np.random.default_rng(0).beta(0.3, 20, n)
    descriptions = [f"fires on: {WORDS[i % len(WORDS)]!r}" for i in range(n)]
    frame = pd.DataFrame({"feature": np.arange(n), "description": descriptions, "density": density,
                          "peak": 10 * density})

    def load(feature):
        if not 0 <= feature < n:
            raise InputError(f"there is no feature {feature}")
        return card(feature)

    return browser_view(frame, load, title="Features")


def panel():
    """Eight features, two answers of 200 words."""
    knobs = [Knob(i, f"about {WORDS[i]}", 0.0, 50.0, 20.0 if i == 2 else None) for i in range(8)]

    def answer(values, prompt, say):
        for word in words(200, len(values)):
            say(word)

    def code(values, prompt):
        return f"with m.attach(sl.steer(sae, {list(values)}, {list(values.values())})): ..."

    return panel_view(knobs, "Tell me about rain.", answer=answer, title="Features set by hand", code=code).run()


def timeline(n: int = 300, probes: int = 16):
    """Many steps, many probes."""
    random = np.random.default_rng(0)
    scores = {f"probe {i}": random.random(n) for i in range(probes)}
    return timeline_view(["".join(words(20, i)) for i in range(n)], scores, verdict=True, title="A chain of thought",
                         features=[[(i, f"feature {i}", 1.0)] for i in range(n)],
                         tokens=[(words(20, i), random.random(20)) for i in range(n)])


def dial():
    """Six methods at twelve sparsities."""
    rows = [{"method": f"method {i}", "sparsity": s, "achieved": s, "perplexity": 10 + (i + 1) * s**2, "kl": s**3,
             "top1": 1 - s / 4, "weight_bytes": 5e8 - 4e8 * s} for i in range(6) for s in np.arange(1, 13) / 14]
    dense = {"perplexity": 10.0, "kl": 0.0, "weight_bytes": 5e8}
    return sparsity_dial(pd.DataFrame(rows), dense, title="What sparsity costs")


def channels():
    """270 tokens of 14,336 channels."""
    keep = np.random.default_rng(0).random((270, 14_336)) < 0.5
    return channel_map(keep, words(270), title="Kept channels")


def masks(tokens: int = 4096, tile: int = 64, layers: int = 30, heads: int = 9):
    """Every head of a small model, with a local band and some columns."""
    n = tokens // tile
    near = np.abs(np.arange(n)[:, None] - np.arange(n)) < 4
    random = np.random.default_rng(0)
    kept = np.stack([[near | (random.random(n) < 0.1) for _ in range(heads)] for _ in range(layers)]) * np.tri(n)
    lost = random.random((layers, heads, n)) / 10
    return mask_view(kept, words(tokens), tile, possible=np.tri(n) > 0, lost=lost, title="Kept blocks of keys")


def tokens():
    """2,000 tokens and 16 features."""
    return long_view()


# Every widget has its place here: the browser tests go through them.
_ALL = (
    tokens,
    diff,
    points,
    network,
    card,
    browser,
    panel,
    timeline,
    dial,
    channels,
    masks,
)
AT_SCALE = {make.__name__: make for make in _ALL}

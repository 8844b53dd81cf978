"""Views with hostile texts in every place, shared by the tests of the views and of the browser."""

import time

import numpy as np
import pandas as pd

from sparselens.errors import InputError
from sparselens.views import (
    ConceptMap,
    CorrelationNetwork,
    DiffView,
    FeatureBrowser,
    FeatureCard,
    InterventionPanel,
    Knob,
    MaskView,
    ReasoningTimeline,
    browser_view,
    card_view,
    diff_view,
    map_view,
    mask_view,
    network_view,
    panel_view,
    timeline_view,
)
from sparselens.views.html import visible
from tests.views.samples import HOSTILE, diff_examples, diff_frame


def hostile_row(document: int = 0) -> dict:
    """A text of hostile tokens, of which two in three fire."""
    values = [float(i % 3) for i in range(len(HOSTILE))]
    return {"tokens": HOSTILE, "values": values, "title": HOSTILE[0], "document": document}


def a_diff(n: int = 40) -> DiffView:
    """A difference whose features are 0, 7, 14, ...; text k of a side has the number 10 k."""
    frame = diff_frame(n)
    examples = diff_examples(frame)
    for sides in examples.values():
        for name, rows in sides.items():
            sides[name] = [row | {"document": 10 * k} for k, row in enumerate(rows)]
    names = ("left", "<b>right")
    return diff_view(frame, examples.__getitem__, title=HOSTILE[0], notes=[HOSTILE[1]], names=names)


def a_map(n: int = 60) -> ConceptMap:
    """Documents on a grid of ten columns in classes "<b>even" and "odd" by their row; document 5 has no place."""
    xy = np.array([[i % 10, i // 10] for i in range(n)], dtype=float)
    xy[5] = np.nan
    texts = [f"{HOSTILE[i % len(HOSTILE)]} text number {i}" for i in range(n)]
    kinds = ["odd" if (i // 10) % 2 else "<b>even" for i in range(n)]

    def about(documents):
        return [(7, HOSTILE[0], len(documents) / n, 0.25), (9, "nine", 0.5, 0.125)]

    return map_view(xy, texts, kinds, name="row", title=HOSTILE[0], notes=[HOSTILE[2]], about=about,
                    find=lambda feature: range(0, n, feature))


def a_network(names: tuple[str, str] | None = None) -> CorrelationNetwork:
    """Pairs (0, 1), (0, 2), ... (0, 5), (10, 11), (12, 13), ... with NPMI from 0.9 down; forty pairs."""
    pairs = [(0, i) for i in range(1, 6)] + [(10 + 2 * i, 11 + 2 * i) for i in range(35)]
    frame = pd.DataFrame(pairs, columns=["feature_a", "feature_b"])
    frame["npmi"], frame["support"] = np.linspace(0.9, 0.3, len(frame)), np.arange(len(frame), 0, -1)
    labels = {i: HOSTILE[i % len(HOSTILE)] for i in range(80)}
    return network_view(frame, lambda a, b: {"a": [hostile_row(a)], "b": [hostile_row(a), hostile_row(b)]},
                        labels=labels, names=names, title=HOSTILE[0], notes=[HOSTILE[1]])


def a_card(feature: int = 41, loads: bool = True) -> FeatureCard:
    """A card with three texts, numbered 0, 10 and 20."""
    return card_view(
        feature, [hostile_row(0), hostile_row(10), hostile_row(20)], np.arange(1, 101) / 10, n_documents=200,
        n_firing=50, description=f"feature {feature} {HOSTILE[1]}", method="test", neighbours=[(3, HOSTILE[0], 0.75)],
        promotes=[" sir", HOSTILE[0]], load=a_card if loads else None,
    )


def a_panel(words: int = 3, pause: float = 0.0, watch: list[int] | None = None) -> InterventionPanel:
    """Features 41 (set to 8) and 7. The answer is "one two three", with the second word saying what is set."""
    busy: list[int] = []

    def answer(values, prompt, say):
        busy.append(1)
        if watch is not None:
            watch.append(len(busy))
        try:
            said = ", ".join(f"{feature}={value:g}" for feature, value in values.items())
            for word in ["one", f" {said}" if said else " two", " three", *[" more"] * (words - 3)]:
                time.sleep(pause)
                say(word)
        finally:
            busy.pop()

    def measure(values, prompt, untouched, steered):
        sides = {"untouched": untouched.split(), "steered": steered.split()}
        rows = [{"side": side, "position": i, "token": token, "logprob": -0.5,
                 "kl": 0.25 if side == "untouched" else np.nan}
                for side, tokens in sides.items() for i, token in enumerate(tokens)]
        return pd.DataFrame(rows)

    def find(feature):
        if feature >= 1000:
            raise InputError(f"there is no feature {feature}")
        return Knob(feature, "found", 0.0, 4.0)

    knobs = [Knob(41, HOSTILE[1], -10.0, 10.0, 8.0), Knob(7, HOSTILE[9])]
    return panel_view(knobs, HOSTILE[0], answer=answer, measure=measure, find=find, title=HOSTILE[0],
                      code=lambda values, prompt: f"values={dict(values)} prompt={prompt!r}")


def an_answered_panel() -> InterventionPanel:
    """The panel after a run of many words."""
    return a_panel(words=300).run()


def a_timeline(n: int = 12, beside: bool = True) -> ReasoningTimeline:
    """Steps whose first score falls from 1 to 0 and whose second rises; beside them a chain of four steps."""
    steps = [f"{HOSTILE[i % len(HOSTILE)]} step {i}" for i in range(n)]
    falling = np.linspace(1, 0, n)
    rising = 1 - falling
    row = (HOSTILE, [float(i % 3) for i in range(len(HOSTILE))])
    return timeline_view(
        steps, {HOSTILE[0]: falling, "rising": rising}, ranges={"rising": (0.9 * rising, 1 - 0.9 * falling)},
        labels=[1.0, 0.0, *[None] * n][:n], verdict=False, features=[[(7, HOSTILE[1], 2.0), (9, "nine", 1.0)]] * n,
        tokens=[row] * n, question=HOSTILE[2], title=HOSTILE[0],
        other=timeline_view(HOSTILE[:4], {"a": [0.1, 0.2, 0.3, 0.4]}) if beside else None)


def a_browser(n: int = 60) -> FeatureBrowser:
    """Features 0, 3, 6, ... with hostile descriptions; 3 and 6 have no numbers. Only multiples of 3 have a card."""

    def load(feature):
        if feature % 3:
            raise InputError(f"there is no feature {feature}")
        return a_card(feature)

    frame = pd.DataFrame({
        "feature": 3 * np.arange(n),
        "description": [f"{visible(HOSTILE[i % len(HOSTILE)])} number {i}" for i in range(n)],
        "density": np.linspace(1, 0, n),
        "peak": np.arange(n, dtype=float) % 7,
    })
    frame.loc[1:2, ["density", "peak"]] = np.nan
    return browser_view(frame, load, title=HOSTILE[0], notes=[HOSTILE[1]])


def a_mask(tile: int = 4) -> MaskView:
    """Two layers of two heads over hostile tokens, the second of which keeps all."""
    n = -(-len(HOSTILE) // tile)
    kept = np.stack([[np.eye(n), np.tri(n)]] * 2)
    return mask_view(kept, HOSTILE, tile, possible=np.tri(n) > 0, lost=np.full((2, 2, n), 0.125), title=HOSTILE[0])


VIEWS = {
    "diff": a_diff,
    "map": a_map,
    "network": a_network,
    "card": a_card,
    "panel": an_answered_panel,
    "browser": a_browser,
    "timeline": a_timeline,
    "mask": a_mask,
}

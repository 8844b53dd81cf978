"""Hostile texts and plain data that the tests of the views share."""

import numpy as np
import pandas as pd

from sparselens.views import TokenView, token_view
from sparselens.views.html import visible

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "</noscript><img src=x onerror=window.hacked=1>",
    "<!--",
    "-->",
    "]]>",
    "&amp;&lt;",
    '" onmouseover="window.hacked=1',
    "' style='position:fixed",
    "<b>bold</b>",
    "<style>*{display:none}</style>",
    "\u200b",
    "\u202egnp.exe",
    "\x00\x07\x1b[31m",
    "\ud800",
    "👩\u200d🚀",
    " مرحبا",
    " 東京",
    "$x^2$",
    "\\u003cscript>",
    "${window.hacked=1}",
    "\n",
    "",
    "x" * 10_000,
]


def hostile_view(k: int = 2) -> TokenView:
    """Hostile tokens, labels and title; every token fires in the first column."""
    values = np.zeros((len(HOSTILE), k))
    values[:, 0] = np.arange(1, len(HOSTILE) + 1)
    values[::3, -1] = 2.0
    return token_view(HOSTILE, values, labels={0: HOSTILE[1], 1: HOSTILE[7]}, title=HOSTILE[0])


def long_view(n: int = 2000, k: int = 16, share: float = 0.08) -> TokenView:
    """A text of `n` ordinary tokens and `k` features, each firing on a share of them."""
    random = np.random.default_rng(0)
    words = [" the", " model", " fires", ",", " on", " tokens", ".", " sparse", " features", "\n"]
    tokens = [words[i] for i in random.integers(0, len(words), n)]
    values = np.where(random.random((n, k)) < share, random.gamma(2.0, 1.5, (n, k)), 0.0)
    features = [10 * i for i in range(k)]
    return token_view(tokens, values, features, {feature: f"label {feature}" for feature in features})


def diff_frame(n: int = 40) -> pd.DataFrame:
    """A dataset difference with hostile descriptions, largest effect first."""
    random = np.random.default_rng(1)
    a, b = random.random(n), random.random(n)
    frame = pd.DataFrame(
        {
            "feature": np.arange(n) * 7,
            "description": [visible(HOSTILE[i % len(HOSTILE)]) for i in range(n)],
            "freq_a": a,
            "freq_b": b,
            "difference": b - a,
            "ci_low": b - a - 0.05,
            "ci_high": b - a + 0.05,
            "p_value": 10.0 ** (-40 * np.abs(b - a)),
            "q_value": 10.0 ** (-35 * np.abs(b - a)),
        }
    )
    return frame.reindex(frame["difference"].abs().sort_values(ascending=False).index)


def diff_examples(frame: pd.DataFrame) -> dict[int, dict[str, list[dict]]]:
    """Hostile example texts for every feature; every third has none in A."""
    row = {"tokens": HOSTILE, "values": [float(i % 3) for i in range(len(HOSTILE))], "title": HOSTILE[0]}
    return {
        int(feature): {"a": [] if i % 3 == 0 else [row], "b": [row, row]} for i, feature in enumerate(frame["feature"])
    }

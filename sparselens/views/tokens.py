"""`TokenView`: which tokens of a text fire, for a handful of features."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsInt

import numpy as np

from sparselens.errors import InputError
from sparselens.views.base import STATIC_BYTES, View, clean
from sparselens.views.html import TOKEN_CHARS, Scale, as_array, escape, fragment, scale_bar, strip

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    import sparselens.views.widgets

_STATIC_FEATURES = 20


def token_view(
    tokens: Sequence[str],
    values: Any,
    features: Iterable[SupportsInt] | None = None,
    labels: Mapping[SupportsInt, str] | None = None,
    title: str | None = None,
) -> "TokenView":
    """Show which tokens fire.

    Args:
        tokens: the text, token by token.
        values: numbers [T] or [T, k], array or tensor, one column a feature. Active means not 0.
        features: the k feature ids, by default 0 to k-1.
        labels: what a feature is about, by feature id.
        title: a heading.

    Raises:
        InputError: lengths do not fit, a feature id comes twice, or there are no tokens.
        NotFiniteError: a value is NaN or infinite.
    """
    tokens = [clean(token) for token in tokens]
    array = as_array(values)
    if array.ndim == 1:
        array = array[:, None]
    ids = list(range(array.shape[-1])) if features is None else [int(feature) for feature in features]
    if not tokens or not ids:
        raise InputError(f"nothing to show: {len(tokens)} tokens and {len(ids)} features. Give at least one of each.")
    if array.shape != (len(tokens), len(ids)):
        raise InputError(
            f"values has shape {list(array.shape)}, but {len(tokens)} tokens and {len(ids)} features need "
            f"[{len(tokens)}, {len(ids)}]: one row a token, one column a feature."
        )
    if len(set(ids)) < len(ids):
        twice = next(feature for feature in ids if ids.count(feature) > 1)
        raise InputError(f"feature {twice} is listed more than once; list each feature once.")
    names = {int(feature): str(label) for feature, label in (labels or {}).items()}
    return TokenView(tokens, array, ids, names, title)


@dataclass(frozen=True, eq=False, repr=False)
class TokenView(View):
    """Tokens with the values of a few features; made by `token_view`.

    Attributes:
        tokens: the text, token by token (T of them).
        values: float32 [T, k], 0 = not active.
        features: the k feature ids.
        labels: feature id -> what it is about; may lack some.
        title: a heading, or None.
    """

    tokens: list[str]
    values: np.ndarray
    features: list[int]
    labels: dict[int, str] = field(default_factory=dict)
    title: str | None = None

    def __repr__(self) -> str:
        active = float((self.values != 0).mean())
        return f"TokenView({len(self.tokens):,} tokens, {len(self.features)} features, {active:.1%} active)"

    def column(self, feature: int) -> np.ndarray:
        """Return the values [T] of one feature.

        Raises:
            InputError: the feature is not in this view.
        """
        if feature not in self.features:
            raise InputError(f"feature {feature} is not in this view. It holds {_some(self.features)}.")
        return self.values[:, self.features.index(feature)]

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the static form: the first feature's text in full, the others folded to their peaks.

        Args:
            max_bytes: shown text shrinks around the peaks until the result is no larger.
        """
        for first, other in ((500, 60), (200, 30), (60, 12), (30, 0), (8, 0)):
            html = self._html(first, other)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _html(self, first: int, other: int) -> str:
        shown = self.features[: _STATIC_FEATURES if other else 1]
        parts = [self._feature_html(shown[0], first, opened=True)]
        parts += [self._feature_html(feature, other, opened=False) for feature in shown[1:]]
        if left := len(self.features) - len(shown):
            parts.append(f'<div style="font-size:12px;opacity:.7">… and {left} more: call .explore()</div>')
        if self.title:
            parts.insert(0, f'<div style="font-weight:600;margin-bottom:4px">{escape(self.title, 200)}</div>')
        return fragment("".join(parts))

    def _feature_html(self, feature: int, max_tokens: int, opened: bool) -> str:
        column = self.column(feature)
        scale, active = Scale.of(column), int((column != 0).sum())
        label = f" · {escape(self.labels[feature], TOKEN_CHARS)}" if feature in self.labels else ""
        head = (
            f"<b>feature {feature}</b>{label} "
            f'<span style="font-size:12px;opacity:.7">· {active:,} of {len(self.tokens):,} tokens</span> '
            f"{scale_bar(scale) if active else ''}"
        )
        body = strip(self.tokens, column, scale=scale, max_tokens=max_tokens)
        style = "margin:4px 0"
        return f'<details style="{style}"{" open" if opened else ""}><summary>{head}</summary>{body}</details>'

    def _widget(self) -> "sparselens.views.widgets.TokenWidget":
        from sparselens.views.widgets import TokenWidget

        return TokenWidget(self)

    def figure(self, feature: int | None = None) -> "matplotlib.figure.Figure":
        """Return the marked text of one feature, by default the first, as a matplotlib figure."""
        from sparselens.views.strip_figure import strip_figure

        feature = self.features[0] if feature is None else feature
        label = self.labels.get(feature, "")
        head = " · ".join(part for part in (self.title, f"feature {feature}", label) if part)
        return strip_figure(self.tokens, self.column(feature), head)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a frame with a row a token: `token`, then one column a feature, named by its id."""
        import pandas as pd

        frame = pd.DataFrame(self.values, columns=self.features)
        frame.insert(0, "token", self.tokens)
        return frame


def _some(features: list[int]) -> str:
    more = f" and {len(features) - 12} more" if len(features) > 12 else ""
    return ", ".join(str(feature) for feature in features[:12]) + more

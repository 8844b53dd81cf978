"""`CorrelationNetwork`: which features come together, as nodes and lines, down to the texts in which both fire."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.errors import InputError, NotFiniteError
from sparselens.views import svg
from sparselens.views.base import STATIC_BYTES, View, figure_of, pack_texts
from sparselens.views.classes import Classes, numbered
from sparselens.views.curves import plain
from sparselens.views.diff import Sides, examples_html
from sparselens.views.html import LINE, TABLE, TABLE_ROW, escape, fragment, heading, number, visible

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    import sparselens.views.network_widget

PAIR = ("feature_a", "feature_b", "npmi", "support")
DRAWN = 250  # pairs in the picture and in the live view
ROWS = 30  # pairs in the static table
_ROUNDS = 150
_APART, _WIDE = 1.8, 1.25  # room between parts of the network, in steps between nodes; how wide the rows are
_NAMED, _CAPTION = 24, 28
_PAD, _LETTER = 40, 6  # pixels around the picture, and of a letter's width in it
_CELL = f"padding:5px 10px;text-align:left;vertical-align:top;border-top:1px solid {LINE}"


def network_view(
    pairs: "pandas.DataFrame",
    examples: Callable[[int, int], Sides] | None = None,
    *,
    labels: Mapping[int, str] | None = None,
    names: tuple[str, str] | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> "CorrelationNetwork":
    """Show which features come together.

    Args:
        pairs: a row a pair, strongest first, with `feature_a`, `feature_b`, `npmi` (normalised pointwise mutual
            information, -1 to 1) and `support` (documents in which both fire). Other columns are kept for `to_frame`.
        examples: gives for a pair the documents in which both fire as `{"a": rows, "b": rows}`, marked for the one
            feature and for the other; rows as for `snippets`.
        labels: what a feature is about, by feature.
        names: what the two columns stand for, such as prompts and answers; None when both are of the same texts.
        title: a heading.
        notes: sentences shown above.

    Raises:
        InputError: a column is missing, or a feature is paired with itself in the same texts.
        NotFiniteError: an npmi is NaN or infinite.
    """
    missing = [column for column in PAIR if column not in pairs.columns]
    if missing:
        raise InputError(f"the frame lacks {', '.join(missing)}. A network needs the columns {', '.join(PAIR)}.")
    if names is None and (pairs["feature_a"] == pairs["feature_b"]).any():
        twice = pairs["feature_a"][pairs["feature_a"] == pairs["feature_b"]].iloc[0]
        raise InputError(f"feature {twice} is paired with itself. Give names if the columns are of different texts.")
    unknown = pairs[~np.isfinite(pairs["npmi"].to_numpy(dtype=float))]
    if len(unknown):
        first = unknown.iloc[0]
        raise NotFiniteError(f"npmi of {len(unknown)} pairs is NaN or infinite, the first of features "
                             f"{int(first['feature_a'])} and {int(first['feature_b'])}. Leave such pairs out.")
    said = {int(feature): str(label) for feature, label in (labels or {}).items()}
    return CorrelationNetwork(pairs, examples, said, names, title, tuple(notes))


class Graph(NamedTuple):
    """What is drawn of the pairs.

    Attributes:
        nodes: `(side, feature)` of each node; side 0 or 1, always 0 when both columns are of the same texts.
        edges: int `[m, 2]` places in `nodes`.
        xy: float32 `[n, 2]`.
        classes: the colours of the nodes: their side, else the part of the network they belong to.
    """

    nodes: list[tuple[int, int]]
    edges: np.ndarray
    xy: np.ndarray
    classes: Classes


@dataclass(frozen=True, eq=False, repr=False)
class CorrelationNetwork(View):
    """Pairs of features to look at; made by `network_view`. The attributes are its arguments."""

    pairs: "pandas.DataFrame"
    examples: Callable[[int, int], Sides] | None = None
    labels: dict[int, str] = field(default_factory=dict)
    names: tuple[str, str] | None = None
    title: str | None = None
    notes: tuple[str, ...] = ()
    _kept: dict[tuple[int, int], Sides] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        between = f" between {self.names[0]} and {self.names[1]}" if self.names else ""
        return f"CorrelationNetwork({len(self):,} pairs of features{between})"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a copy of the pairs."""
        return self.pairs.copy()

    @property
    def drawn(self) -> "pandas.DataFrame":
        """The pairs that are drawn: the first 250."""
        return self.pairs.head(DRAWN)

    @property
    def ends(self) -> tuple[str, str]:
        """What the two columns are called."""
        return self.names or ("the one feature", "the other feature")

    def label(self, feature: int) -> str:
        """The description of a feature, or an empty string."""
        return self.labels.get(feature, "")

    def sides(self, a: int, b: int) -> Sides:
        """The texts of a pair; asked for once."""
        if (a, b) not in self._kept:
            self._kept[a, b] = {} if self.examples is None else self.examples(a, b)
        return self._kept[a, b]

    def texts(self, a: int, b: int) -> dict[str, Any]:
        """The texts of a pair as a browser gets them, `sides` of them each, on one scale."""
        sides = self.sides(a, b)
        rows = [list(sides.get(side, [])) for side in "ab"]
        return {"pair": [a, b], "sides": [len(part) for part in rows], **pack_texts(rows[0] + rows[1])}

    @cached_property
    def graph(self) -> Graph:
        """The nodes, lines and places of what is drawn; the same every time."""
        second = 1 if self.names else 0
        ends = [((0, int(a)), (second, int(b)))
                for a, b in zip(self.drawn["feature_a"], self.drawn["feature_b"], strict=True)]
        nodes = list(dict.fromkeys(node for pair in ends for node in pair))
        index = {node: i for i, node in enumerate(nodes)}
        edges = np.array([[index[a], index[b]] for a, b in ends], dtype=np.int64).reshape(-1, 2)
        parts = np.array([side for side, _ in nodes]) if self.names else _parts(len(nodes), edges)
        names = list(self.names) if self.names else [f"part {i}" for i in range(parts.max(initial=-1) + 1)]
        return Graph(nodes, edges, places(len(nodes), edges), numbered(parts, names))

    def to_html(self, max_bytes: int = STATIC_BYTES) -> str:
        """Return the picture, with a table of the first 30 pairs and texts to unfold."""
        head = heading(self.title, self.notes)
        if not len(self):
            return fragment(f"{head}<div>No pair of features passes.</div>")
        for n_texts, max_tokens in ((4, 60), (2, 40), (1, 24), (0, 0)):
            html = fragment(head + self._picture() + self._table(n_texts, max_tokens), width=1180)
            if len(html.encode()) <= max_bytes:
                break
        return html

    def _picture(self) -> str:
        _, edges, xy, classes = self.graph
        points = svg.fit(xy, pad=_PAD)
        parts = [svg.line(points[i], points[j], "#888", 0.6 + 2.4 * max(float(npmi), 0))
                 for (i, j), npmi in zip(edges, self.drawn["npmi"], strict=True)]
        parts += [svg.dots(points[classes.codes == i], colour, 11.0) for i, colour in enumerate(classes.colours)]
        parts += [svg.label(points[i] - [0, 9], self.caption(i), 10) for i in self.named]
        return svg.image(parts, alt=repr(self))

    def caption(self, node: int) -> str:
        """A node's feature with its description, in up to 28 characters."""
        feature = self.graph.nodes[node][1]
        text = f"{feature} {self.label(feature).removeprefix('fires on: ')}".strip()  # what all of them begin with
        return text if len(text) <= _CAPTION else text[: _CAPTION - 1] + "…"

    @cached_property
    def named(self) -> list[int]:
        """The nodes whose captions are shown: those with most lines first, as far as captions do not overlap."""
        nodes, edges, xy, _ = self.graph
        points = svg.fit(xy, pad=_PAD) if len(nodes) else xy
        chosen: list[int] = []
        for i in np.argsort(-np.bincount(edges.ravel(), minlength=len(nodes)), kind="stable").tolist():
            room = [_LETTER * (len(self.caption(i)) + len(self.caption(k))) / 2 for k in chosen]
            apart = [np.abs(points[i] - points[k]) for k in chosen]
            clear = all(x > wide or y > 2 * _LETTER for (x, y), wide in zip(apart, room, strict=True))
            if clear and len(chosen) < _NAMED:
                chosen.append(i)
        return chosen

    def _table(self, n_texts: int, max_tokens: int) -> str:
        titles = (*self.ends, "NPMI", "documents with both")
        head = "".join(f'<th style="{_CELL}">{escape(text, 40)}</th>' for text in titles)
        rows = []
        for row in self.pairs.head(ROWS).itertuples():
            a, b = int(row.feature_a), int(row.feature_b)
            cells = [f"<b>{feature}</b> {escape(self.label(feature), 80)}" for feature in (a, b)]
            cells += [number(float(row.npmi)), f"{int(row.support):,}"]
            html = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
            texts = examples_html(self.sides(a, b), self.ends, n_texts, max_tokens) if n_texts else ""
            if texts:
                style = "padding:0 10px 8px;text-align:left"
                html += f'</tr><tr style="{TABLE_ROW}"><td colspan="4" style="{style}">{texts}</td>'
            rows.append(f'<tr style="{TABLE_ROW}">{html}</tr>')
        if len(self) > ROWS:
            rows.append(f'<tr style="{TABLE_ROW}"><td colspan="4" style="{_CELL}">… and {len(self) - ROWS:,} more '
                        "pairs: see .to_frame()</td></tr>")
        return f'<table style="{TABLE};width:100%"><tr style="{TABLE_ROW}">{head}</tr>{"".join(rows)}</table>'

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the network, with captions of the features that have most lines. Returns the axes."""
        import matplotlib.pyplot as plt
        from matplotlib.collections import LineCollection

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 5), layout="constrained")
        ax.axis("off")
        if self.title:
            ax.set_title(plain(self.title), fontsize=10, loc="left")
        if not len(self):
            return ax
        _, edges, xy, classes = self.graph
        widths = 0.6 + 2.4 * self.drawn["npmi"].clip(lower=0)
        ax.add_collection(LineCollection(list(xy[edges]), linewidths=widths.tolist(), colors="0.6", zorder=1))
        for i, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
            x, y = xy[classes.codes == i].T
            ax.scatter(x, y, s=30, color=colour, marker="os"[i] if self.names else "o", zorder=2, label=plain(name))
        for i in self.named:
            ax.annotate(visible(self.caption(i)), xy[i], (0, 6), textcoords="offset points", fontsize=7, ha="center",
                        parse_math=False)
        if self.names:
            ax.legend(frameon=False, fontsize=8)
        return ax

    def figure(self) -> "matplotlib.figure.Figure":
        """Return the network as a matplotlib figure."""
        return figure_of(self.plot())

    def _widget(self) -> "sparselens.views.network_widget.NetworkWidget":
        from sparselens.views.network_widget import NetworkWidget

        return NetworkWidget(self)


def _parts(n: int, edges: np.ndarray) -> np.ndarray:
    """The connected part that each node belongs to, numbered from the largest."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, parts = connected_components(links, directed=False)
    order = np.argsort(-np.bincount(parts), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[parts]


def places(n: int, edges: np.ndarray) -> np.ndarray:
    """Places for n nodes: each connected part laid out by `spring`, the parts side by side in rows, largest first.

    Args:
        n: number of nodes.
        edges: int `[m, 2]`.

    Returns:
        float32 `[n, 2]`.
    """
    xy = np.zeros((n, 2), dtype=np.float32)
    parts = _parts(n, edges)
    sides = np.bincount(parts) ** 0.65 + _APART  # large parts need more than their share: they are mostly long
    width = max(_WIDE * float(np.sqrt((sides**2).sum())), float(sides.max(initial=0)))
    left = top = height = 0.0
    for part, side in enumerate(sides.tolist()):
        if left + side > width:
            left, top, height = 0.0, top + height, 0.0
        inside = np.flatnonzero(parts == part)
        own = np.isin(edges[:, 0], inside)
        local = spring(len(inside), np.searchsorted(inside, edges[own]))
        low, span = local.min(axis=0), np.ptp(local, axis=0).max() or 1.0
        xy[inside] = [left, -top - side] + (local - low) / span * (side - _APART)
        left, height = left + side, max(height, side)
    return xy


def spring(n: int, edges: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places for connected nodes: lines pull, nodes push each other off (Fruchterman and Reingold, 1991).

    Args:
        n: number of nodes.
        edges: int `[m, 2]`.
        seed: of the places to start from.

    Returns:
        float32 `[n, 2]`.
    """
    xy = np.random.default_rng(seed).uniform(-1, 1, (n, 2))
    ideal = 2 / np.sqrt(max(n, 1))
    for reach in np.linspace(0.2, 0.002, _ROUNDS):
        apart = xy[:, None] - xy[None]
        distance = np.sqrt((apart**2).sum(-1)) + 1e-9
        force = (apart * (ideal**2 / distance**2)[..., None]).sum(1)
        pulled = xy[edges[:, 1]] - xy[edges[:, 0]]
        pulled *= (np.sqrt((pulled**2).sum(-1)) / ideal)[:, None]
        np.add.at(force, edges[:, 0], pulled)
        np.add.at(force, edges[:, 1], -pulled)
        length = np.sqrt((force**2).sum(-1))[:, None] + 1e-9
        xy = xy + force / length * np.minimum(length, reach)
    return xy.astype(np.float32)

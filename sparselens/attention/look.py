"""Looking at sparse attention: which keys each head keeps for a text, and how much of its attention that leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparselens.attention.applied import Segment
from sparselens.attention.method import Layer, SparseAttention
from sparselens.attention.pattern import Allowed
from sparselens.errors import InputError
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import pandas

    from sparselens.views.masks import Mark, MaskView

TILES = 48  # along each side: 30 layers of 9 heads are then 600 kB


@dataclass(frozen=True, eq=False)
class Masks:
    """What a method keeps of the attention of every head on one text. Made by `SparseAttention.masks`.

    Numbers stand for tiles of tokens, so that they stay small whatever the length of the text.

    Attributes:
        name: what was attached.
        tokens: the text's tokens.
        tile: tokens along the side of a tile.
        layers: index of each layer.
        kept: `[layers, heads, nq, nk]` share of the allowed pairs that is kept, 0 to 1.
        possible: `[nq, nk]` whether anything in a tile is allowed.
        lost: `[layers, heads, nq]` mean attention of the queries of a tile that falls on keys left out, in the model as
            it runs with the method; None where it was not asked for.
        density: `[layers, heads]` share of the allowed pairs that is kept.
        marks: name -> tokens that were asked about, what each head keeps of them, and what it loses there.
    """

    name: str
    tokens: list[str]
    tile: int
    layers: list[int]
    kept: np.ndarray
    possible: np.ndarray
    lost: np.ndarray | None
    density: np.ndarray
    marks: "dict[str, Mark]" = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Masks({self.name}, {len(self.tokens):,} tokens, {self.density.mean():.1%} of the pairs kept)"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a head: layer, head, density, and lost, the mean attention on keys left out; and for each mark what the
        last queries keep of it, and the attention they lose there.
        """
        import pandas as pd

        n_layers, n_heads = self.density.shape
        frame = pd.DataFrame({
            "layer": np.repeat(self.layers, n_heads), "head": np.tile(np.arange(n_heads), n_layers),
            "density": self.density.ravel(),
        })
        if self.lost is not None:
            frame["lost"] = self.lost.mean(-1).ravel()
        for name, mark in self.marks.items():
            frame[f"{name} kept"] = mark.kept[..., -1].ravel()
            if mark.lost is not None:
                frame[f"{name} lost"] = mark.lost[..., -1].ravel()
        return frame

    def view(self, other: "Masks | None" = None) -> "MaskView":
        """The picture: heads of a layer, one mask, lost attention; with another method's, where they differ.

        Raises:
            InputError: the other is of another text or of other layers.
        """
        from sparselens.views import mask_view

        if other is not None and (other.tokens != self.tokens or other.kept.shape != self.kept.shape
                                  or other.layers != self.layers):
            raise InputError("the two are not of the same text, layers and tiles: make both with the same arguments.")
        return mask_view(
            self.kept, self.tokens, self.tile, possible=self.possible, layers=self.layers, lost=self.lost,
            other=None if other is None else other.kept, marks=self.marks,
            title=self.name if other is None else f"{self.name} against {other.name}",
        )

    def explore(self, other: "Masks | None" = None) -> Any:
        """The live view. See `view`."""
        return self.view(other).explore()

    def _repr_html_(self) -> str:
        return self.view().to_html()

    def kept_of(self, start: int, stop: int, query: int = -1) -> np.ndarray:
        """How much of some keys a query's tile keeps, `[layers, heads]`: whether a needle can still be seen.

        Args:
            start, stop: the keys, as positions of tokens.
            query: position of the query; the last token by default. Tiles are coarse: take `tile=1` to be exact.

        Raises:
            InputError: positions outside the text, or keys after the query.
        """
        n = len(self.tokens)
        query = query % n
        if not 0 <= start < stop <= query + 1:
            raise InputError(f"keys {start} to {stop} are not all at or before query {query} of {n} tokens.")
        first, last = start // self.tile, (stop - 1) // self.tile
        return self.kept[:, :, query // self.tile, first : last + 1].mean(-1)


@torch.no_grad()
def masks(
    method: SparseAttention,
    m: LiveModel,
    text: Any,
    *,
    tile: int | None = None,
    lost: bool = True,
    marks: Mapping[str, Any] | None = None,
) -> Masks:
    """Run one text under a method and keep what it chose. See `Masks`.

    Args:
        method: what chooses.
        m: a live model.
        text: one text, chat or row of token ids.
        tile: tokens along the side of a tile; by default so many that 48 tiles hold the text.
        lost: compute the attention on keys left out too, which costs as much as dense attention.
        marks: name -> tokens to follow, as `(start, stop)` positions or a list of such: what each head keeps of them,
            and what attention it loses there. `LongText.needle_tokens` gives those of a needle.

    Raises:
        InputError: several texts, a method that stayed dense throughout, or marks outside the text.
    """
    from sparselens.views.masks import Mark, spans_of

    recorder = method.recorded()
    with m.attach(recorder):
        out = m.run(text)
    if out.tokens.shape[0] != 1:
        raise InputError(f"masks are of one text; got {out.tokens.shape[0]}.")
    if not recorder.segments:
        raise InputError(f"{method} left this text dense: there is nothing to see.")
    ids = out.tokens[0].tolist()
    tile = max(1, -(-len(ids) // TILES)) if tile is None else tile
    tokens = [str(i) for i in ids] if m.tokenizer is None else [m.tokenizer.decode([i]) for i in ids]
    layers = sorted(recorder.segments)
    spans = {name: spans_of(name, value, len(ids)) for name, value in (marks or {}).items()}
    marked = torch.zeros(len(spans), len(ids), device=recorder.layers[layers[0]].query.device)
    for row, pairs in zip(marked, spans.values(), strict=True):
        for start, stop in pairs:
            row[start:stop] = 1
    seen = [_tiles(recorder.layers[i], recorder.segments[i], tile, lost, marked) for i in layers]
    possible = (recorder.layers[layers[0]].allowed.tiles((tile, tile))[0, 0] > 0).cpu().numpy()
    kept, missing, density, kept_marks, lost_marks = (np.stack(numbers) for numbers in zip(*seen, strict=True))
    followed = {
        name: Mark(pairs, kept_marks[..., i], lost_marks[..., i] if lost else None)
        for i, (name, pairs) in enumerate(spans.items())
    }
    return Masks(str(method), tokens, tile, layers, kept, possible, missing if lost else None, density, followed)


class _Seen(NamedTuple):
    """One layer: kept share of each tile `[heads, nq, nk]`, lost attention `[heads, nq]`, density `[heads]`; of each
    mark the share that is kept, and the attention that is lost there, `[heads, nq, marks]`.
    """

    kept: np.ndarray
    lost: np.ndarray
    density: np.ndarray
    kept_marks: np.ndarray
    lost_marks: np.ndarray


def _tiles(layer: Layer, segments: list[Segment], tile: int, lost: bool, marked: Tensor) -> _Seen:
    """What a layer keeps, and loses if that is asked for. `marked`: 1 for the keys of each mark, `[marks, k]`."""
    allowed, n_tiles, heads = layer.allowed, -(-layer.allowed.n_k // tile), layer.query.shape[1]
    counts = allowed.tiles((tile, tile))[0, 0].clamp(min=1).float()
    keys = layer.keys().float().transpose(2, 3) if lost else None
    shares, missing, kept_pairs = [], [], torch.zeros(heads, device=marked.device)
    kept_marks, lost_marks = [], []
    for i, start in enumerate(range(0, allowed.n_q, tile)):
        stop = min(start + tile, allowed.n_q)
        keep = torch.cat([_rows(allowed, s, start, stop).expand(1, heads, -1, -1) for s in segments], 2)[0]
        sums = keep.sum(1, dtype=torch.float32)
        kept_pairs += sums.sum(-1)
        there = allowed.rows(start, stop)[0].sum(1, dtype=torch.float32) @ marked.T
        kept_marks.append(sums @ marked.T / there.clamp(min=1))
        sums = torch.nn.functional.pad(sums, (0, n_tiles * tile - allowed.n_k)).unflatten(-1, (n_tiles, tile)).sum(-1)
        shares.append(sums / counts[i])
        gone = torch.zeros(heads, allowed.n_k, device=marked.device)
        if keys is not None:
            scores = (layer.query[:, :, start:stop].float() @ keys)[0] * layer.scale
            weights = torch.softmax(scores.masked_fill(~allowed.rows(start, stop)[0], -torch.inf), -1).nan_to_num(0.0)
            gone = (weights * ~keep).mean(1)
        missing.append(gone.sum(-1))
        lost_marks.append(gone @ marked.T)
    density = kept_pairs / float(allowed.tiles((tile, tile))[0, 0].sum())
    parts = (torch.stack(shares, 1), torch.stack(missing, 1), density, torch.stack(kept_marks, 1),
             torch.stack(lost_marks, 1))
    return _Seen(*(part.cpu().numpy() for part in parts))


def _rows(allowed: Allowed, segment: Segment, start: int, stop: int) -> Tensor:
    """The mask of those queries from `start` to `stop` that a segment holds."""
    start, stop = max(start, segment.start), min(stop, segment.stop)
    if start >= stop:
        return torch.zeros(1, 1, 0, allowed.n_k, dtype=torch.bool, device=allowed.device)
    if segment.pattern is None:
        return allowed.rows(start, stop)
    part = allowed.part(segment.start, segment.stop)
    mask = segment.pattern.rows(part, start - segment.start, stop - segment.start)
    return torch.nn.functional.pad(mask, (0, allowed.n_k - part.n_k))

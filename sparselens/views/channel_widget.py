"""The live map of kept channels."""

from typing import Any

import numpy as np
import traitlets

from sparselens.views.base import pack_columns
from sparselens.views.channels import ChannelMap
from sparselens.views.widgets import ViewWidget, checks, read_static

ORDERS = ("kept", "number")
_CELLS = 4_000_000  # of a bit each: half a megabyte
_SCORED = 400_000  # of two more bytes


class ChannelWidget(ViewWidget):
    """A map of kept channels to point at, zoom and walk through; made by `ChannelMap.explore()`.

    It holds the first tokens, as many as fit into about a megabyte; take a slice of the view to see later ones.

    Traits to read, set and observe:
        token, channel: the chosen cell, -1 for none.
        order: how channels are laid out, "kept" (for most tokens first) or by "number".
    """

    _esm = read_static("shared.js", "channels.js")
    _css = read_static("shared.css", "channels.css")

    title = traitlets.Unicode(read_only=True).tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    total = traitlets.Int(read_only=True).tag(sync=True)
    n_channels = traitlets.Int(read_only=True).tag(sync=True)
    kept = traitlets.Bytes(read_only=True).tag(sync=True)
    scores = traitlets.Bytes(read_only=True).tag(sync=True)
    peak = traitlets.Float(read_only=True).tag(sync=True)
    token = traitlets.Int(-1).tag(sync=True)
    channel = traitlets.Int(-1).tag(sync=True)
    order = traitlets.Enum(ORDERS, "kept").tag(sync=True)

    def __init__(self, view: ChannelMap) -> None:
        n_channels = view.keep.shape[1]
        n = max(1, (_CELLS if view.scores is None else _SCORED) // n_channels)
        fixed: dict[str, Any] = {
            "title": view.title or "",
            "tokens": view.tokens[:n],
            "total": len(view.tokens),
            "n_channels": n_channels,
            "kept": np.packbits(view.keep[:n], axis=1, bitorder="little").tobytes(),
        }
        if view.scores is not None:
            packed, peaks = pack_columns(view.scores[:n].reshape(-1, 1))
            fixed |= {"scores": packed, "peak": peaks[0]}
        super().__init__(view, fixed)

    @property
    def selected(self) -> tuple[int, int]:
        """The chosen token and channel, -1 for none."""
        return self.token, self.channel

    @checks("token")
    def _check_token(self, proposal: Any) -> int:
        return self._between(proposal["value"], -1, len(self.tokens) - 1, "token")

    @checks("channel")
    def _check_channel(self, proposal: Any) -> int:
        return self._between(proposal["value"], -1, self.n_channels - 1, "channel")

    def __repr__(self) -> str:
        return repr(self.view).replace("ChannelMap(", "ChannelWidget(", 1)

"""Which channels of a layer survive, token by token: numbers to look at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.activation.linears import PROJECTIONS, column_norms
from sparselens.activation.sparse_linear import Seen, SparseLinear
from sparselens.errors import InputError, closest
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.activation.sparsifier import Sparsifier
    from sparselens.views.channel_widget import ChannelWidget
    from sparselens.views.channels import ChannelMap


@dataclass(frozen=True)
class Channels:
    """What one layer read and what of it was kept, for the tokens of some texts.

    The scores are `|x| * scale`; a channel is kept where its score is not below `cut`. Tokens of the dense prefix
    keep all.

    Attributes:
        name: the sparsifier.
        site, layer, proj: the linear layer.
        text: the tokens as strings.
        doc, position: `[tokens]` which text, and which place in it.
        x: `[tokens, d_in]` what the layer read.
        scale: `[d_in]` norms of the weight columns, or ones.
        norms: `[d_in]` norms of the weight columns, whether the score uses them or not.
        cut: `[tokens]` the lowest score that the gate keeps.
        keep: `[tokens, d_in]` what was kept.
        sparse: `[tokens]` False in the dense prefix.
    """

    name: str
    site: str
    layer: int
    proj: str
    text: tuple[str, ...]
    doc: Int[Tensor, "tokens"]
    position: Int[Tensor, "tokens"]
    x: Float[Tensor, "tokens d_in"]
    scale: Float[Tensor, "d_in"]
    norms: Float[Tensor, "d_in"]
    cut: Float[Tensor, "tokens"]
    keep: Bool[Tensor, "tokens d_in"]
    sparse: Bool[Tensor, "tokens"]

    def __repr__(self) -> str:
        return f"Channels({self.name} at {self.site}: {len(self.text):,} tokens, {self.keep.shape[1]:,} channels)"

    @property
    def scores(self) -> Float[Tensor, "tokens d_in"]:
        return self.x.abs() * self.scale

    def to_frame(self) -> "pandas.DataFrame":
        """A row a token: text, position, token, sparse, kept (channels), sparsity (share left out)."""
        import pandas as pd

        kept = self.keep.sum(-1)
        return pd.DataFrame({
            "doc": self.doc.numpy(),
            "position": self.position.numpy(),
            "token": self.text,
            "sparse": self.sparse.numpy(),
            "kept": kept.numpy(),
            "sparsity": (1 - kept / self.keep.shape[1]).numpy(),
        })

    def view(self) -> "ChannelMap":
        """The map of tokens and channels, to show, save and explore."""
        from sparselens.views import channel_map

        title = f"{self.name}: channels of block {self.layer}, {self.proj}, that are read"
        return channel_map(self.keep, self.text, self.scores, title)

    def plot(self, token: int = -1, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the channels of one token by `|x|` and weight norm, with the lines on which TEAL and WINA decide when
        each keeps as many channels as this sparsifier did. Returns the axes.

        Args:
            token: its place among `text`; negative ones count from the end.
            ax: axes to draw into.
        """
        from sparselens.views import score_scatter

        kept = int(self.keep[token].sum())
        size = self.x[token].abs()
        least = torch.finfo(torch.float32).tiny  # a logarithmic axis has no 0
        cuts = [max(float(score.topk(max(kept, 1)).values[-1]), least) for score in (size, size * self.norms)]
        title = f"block {self.layer}, {self.proj}, token {self.text[token]!r}: {kept:,} channels kept"
        return score_scatter(size, self.norms, *cuts, ax=ax, title=title)

    def explore(self) -> "ChannelWidget":
        """Return the live map: point at a cell, or walk with the keys, and read `.token` and `.channel`."""
        return self.view().explore()

    def _repr_html_(self) -> str:
        return self.view().to_html()


class _Record:
    """Keeps what one layer did with the real tokens."""

    def __init__(self, site: str):
        self.site = site
        self.found: list[tuple[Tensor, ...]] = []
        self.scale: Tensor | None = None
        self.norms = torch.zeros(0)

    def see(self, layer: SparseLinear, seen: Seen) -> None:
        if layer.linear.site == self.site:
            self.scale, self.norms = layer.scale, column_norms(layer.linear.weight).cpu()
            cut = layer.gate.cut(layer.scores(seen.x, seen.at))
            values = (layer.signal(seen.x), cut, seen.keep, seen.at[..., None])
            self.found.append(tuple(v.detach().flatten(0, -2)[seen.real].cpu() for v in values))


def channels(
    sparsifier: "Sparsifier", model: LiveModel, texts: Any, layer: int, proj: str, max_tokens: int = 256
) -> Channels:
    """Which channels of one layer survive, with the sparsifier on the model.

    Args:
        sparsifier: TEAL, WINA or another.
        model: a live model.
        texts: what `model.batches` takes; each is cut at `max_tokens`.
        layer, proj: the linear layer, as 12 and "gate".
        max_tokens: longest text.

    Raises:
        InputError: no such layer, or one that the sparsifier leaves dense.
    """
    record = _Record(site_of(sparsifier, model, layer, proj))
    ids, docs, places = [], [], []
    with model.untouched(), model.attach(sparsifier.watched(record)):
        for batch in model.batches(texts, max_length=max_tokens, long="cut", empty="skip", sort=False):
            model.logits(batch)
            ids.append(batch.ids[batch.mask])
            docs.append(batch.doc[:, None].expand_as(batch.mask)[batch.mask])
            places.append(batch.positions[batch.mask])
    x, cut, keep, _ = (torch.cat(parts) for parts in zip(*record.found, strict=True))
    sparse = ~keep.all(-1)
    scale = torch.ones(x.shape[1]) if record.scale is None else record.scale.cpu()
    token_ids = torch.cat(ids).tolist()
    text = tuple(model.tokenizer.decode([i]) for i in token_ids) if model.tokenizer else tuple(map(str, token_ids))
    return Channels(type(sparsifier).__name__, record.site, layer, proj, text, torch.cat(docs), torch.cat(places),
                    x.float(), scale, record.norms, cut[:, 0], keep, sparse)


def site_of(sparsifier: "Sparsifier", model: LiveModel, layer: int, proj: str) -> str:
    """The site of a layer that a sparsifier acts on. Raises `InputError` if it is unknown or left dense."""
    if proj not in PROJECTIONS:
        raise InputError(f"proj={proj!r} is unknown; valid are {', '.join(PROJECTIONS)}.{closest(proj, PROJECTIONS)}")
    site = PROJECTIONS[proj].replace("{i}", str(layer))
    sparse = [one.linear.site for one in sparsifier.layers(model)]
    if site not in sparse:
        raise InputError(f"{sparsifier!r} leaves {site} dense. It acts on {', '.join(sparse[:8]) or 'nothing'}"
                         f"{' and more' if len(sparse) > 8 else ''}.")
    return site

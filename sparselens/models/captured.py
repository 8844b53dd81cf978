"""What comes out of a live model: captured activations, flat token streams, outputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.errors import SiteError, closest
from sparselens.models.batches import Batch
from sparselens.models.sites import BY_NAME, split


class _BySite:
    """Access by site name, with the nearest names in the error."""

    sites: dict[str, Tensor]

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.sites:
            raise SiteError(
                f"{site!r} was not captured; captured are {', '.join(self.sites)}.{closest(site, self.sites)}"
            )
        return self.sites[site]


@dataclass(frozen=True)
class Captured(_BySite):
    """Activations of some texts, a row a text (or a chunk of one).

    Attributes:
        tokens: `[batch, pos]` token ids.
        mask: `[batch, pos]` real tokens.
        content: `[batch, pos]` real tokens that are neither special nor template.
        first: `[batch, pos]` the first real token of each row.
        doc: `[batch]` which text a row came from.
        sites: site name -> tensor, shaped as the site table says; zeros at padding.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    content: Bool[Tensor, "batch pos"]
    first: Bool[Tensor, "batch pos"]
    doc: Int[Tensor, "batch"]
    sites: dict[str, Tensor]


@dataclass(frozen=True)
class FlatBatch(_BySite):
    """Real tokens only, row after row, in order within a row.

    Attributes:
        sites: site name -> `[tokens, d]`.
        doc: `[tokens]` index of the text.
        position: `[tokens]` index of the token within its text, template tokens counted.
        token: `[tokens]` token ids.
        content: `[tokens]` neither special nor template.
        first: `[tokens]` first token of its row, an attention sink.
    """

    sites: dict[str, Tensor]
    doc: Int[Tensor, "tokens"]
    position: Int[Tensor, "tokens"]
    token: Int[Tensor, "tokens"]
    content: Bool[Tensor, "tokens"]
    first: Bool[Tensor, "tokens"]

    @property
    def values(self) -> Float[Tensor, "tokens d"]:
        """The only site's activations, or the first site's."""
        return next(iter(self.sites.values()))

    def __len__(self) -> int:
        return len(self.doc)


@dataclass(frozen=True)
class Output:
    """Logits of some texts, in the order given.

    Attributes:
        logits: `[batch, pos, d_vocab]`; zeros at padding.
        tokens, mask: `[batch, pos]`.
        doc: `[batch]` which text a row came from.
    """

    logits: Float[Tensor, "batch pos d_vocab"]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    doc: Int[Tensor, "batch"]


def flatten(batch: Batch, sites: dict[str, Tensor]) -> FlatBatch:
    """Drop the padding of a captured batch."""
    m = batch.mask
    doc = batch.doc[:, None].expand_as(m)[m]
    position = (batch.positions + batch.start[:, None])[m]
    flat = {s: v[m.to(v.device)] for s, v in sites.items()}
    return FlatBatch(flat, doc, position, batch.ids[m], batch.content[m], batch.first[m])


def assemble(batches: list[Batch], values: list[dict[str, Tensor]], side: str) -> Captured:
    """Put captured batches together in the order of the texts, padded to one width."""
    width = max(b.ids.shape[1] for b in batches)
    doc = torch.cat([b.doc for b in batches])
    rank = torch.argsort(doc * (1 << 32) + torch.cat([b.start for b in batches]))

    def stack(parts: list[Tensor], axes: tuple[int, ...]) -> Tensor:
        return torch.cat([_widen(p, axes, width, side) for p in parts])[rank.to(parts[0].device)]

    masks = {f: stack([getattr(b, f) for b in batches], (1,)) for f in ("ids", "mask", "content", "first")}
    sites = {}
    for site in values[0]:
        shape = BY_NAME[split(site)[0]].shape.split()
        axes = tuple(i for i, name in enumerate(shape) if name in ("pos", "q", "k"))
        value = stack([v[site] for v in values], axes)
        real = masks["mask"].to(value.device)
        shown = real.view(real.shape[0], *(real.shape[1] if i == axes[0] else 1 for i in range(1, value.dim())))
        sites[site] = value.masked_fill(~shown, 0)
    return Captured(masks["ids"], masks["mask"], masks["content"], masks["first"], doc[rank], sites)


def _widen(part: Tensor, axes: tuple[int, ...], width: int, side: str) -> Tensor:
    for axis in axes:
        missing = width - part.shape[axis]
        if missing:
            shape = list(part.shape)
            shape[axis] = missing
            blank = part.new_zeros(shape)
            part = torch.cat([blank, part] if side == "left" else [part, blank], dim=axis)
    return part

"""Counting what a sparsifier does: channels kept, weights read, errors made, layer by layer."""

from typing import Any

from sparselens.activation.linears import linears
from sparselens.activation.sparse_linear import Seen, SparseLinear
from sparselens.activation.sparsifier import Watched
from sparselens.models.live import LiveModel


class Counted(Watched):
    """A sparsifier together with the tally of what it did. Made by `Sparsifier.counted`."""

    watcher: "Tally"

    def numbers(self) -> dict[str, float]:
        """Sparsity and cost over all tokens so far, by the names that `measure.Report` has for them."""
        return self.watcher.numbers()

    def parts(self) -> list[dict[str, Any]]:
        """The same for each layer."""
        return self.watcher.parts()


class Tally:
    """Running sums over the real tokens of all passes.

    Args:
        model: whose linear layers are the whole of which the sparsity is a share.
        added: weights that the attachment reads for each token besides those of the layers.
    """

    def __init__(self, model: LiveModel, added: int = 0):
        self.model, self.added = model, added
        self._sums: dict[str, dict[str, float]] = {}

    def see(self, layer: SparseLinear, seen: Seen) -> None:
        """Count one layer in one pass."""
        real = seen.real
        kept = float(seen.keep.flatten(0, -2)[real].double().mean(-1).sum())
        dense = seen.original(seen.x)
        error, size = (v.detach().flatten(0, -2)[real].double().square().sum() for v in (seen.y - dense, dense))
        for linear in layer.skips:
            found = self._sums.setdefault(linear.site, dict.fromkeys(("tokens", "kept", "extra", "error", "size"), 0.0))
            own = linear is layer.linear
            for name, value in (("tokens", int(real.sum())), ("kept", kept),
                                ("error", own * float(error)), ("size", own * float(size))):
                found[name] += value
            found["extra"] = own * layer.extra

    def parts(self) -> list[dict[str, Any]]:
        """A row per linear layer of the model; layers that were not computed sparsely have sparsity 0.

        Keys: site, layer, proj, sparsity (share of the input channels left out), weights, read (weights read per
        token), error (relative: `||y - y_dense|| / ||y_dense||` over all tokens, on the inputs that the layer got).
        """
        rows = []
        for linear in linears(self.model):
            found = self._sums.get(linear.site)
            row: dict[str, Any] = {"site": linear.site, "layer": linear.layer, "proj": linear.proj}
            row |= {"sparsity": 0.0, "weights": linear.numel, "read": float(linear.numel), "error": 0.0}
            if found and found["tokens"]:
                row["sparsity"] = 1 - found["kept"] / found["tokens"]
                row["read"] = (1 - row["sparsity"]) * linear.numel + found["extra"]
                row["error"] = (found["error"] / found["size"]) ** 0.5 if found["size"] else 0.0
            rows.append(row)
        return rows

    def numbers(self) -> dict[str, float]:
        """`sparsity` is a share of the weights of the blocks' linear layers. Bytes and FLOPs (two a weight) are of
        these layers, of what the attachment adds, and of the unembedding: what one token reads when decoding.
        """
        rows = self.parts()
        weights, read = (sum(row[key] for row in rows) for key in ("weights", "read"))
        head = self.model.module.get_output_embeddings()
        head = getattr(head, "original_component", head)
        other = head.weight.numel()
        size = self.model.dtype.itemsize
        dense, sparse = weights + other, read + self.added + other
        return {
            "sparsity": 1 - read / weights,
            "weight_bytes": sparse * size,
            "weight_bytes_dense": float(dense * size),
            "flops": 2 * sparse,
            "flops_dense": 2.0 * dense,
        }

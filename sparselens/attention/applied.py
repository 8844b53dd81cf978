"""A sparse attention while it is on a model: the two ways to put it there, its phases, and a tally."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparselens.attention.executors import execute
from sparselens.attention.method import Layer, SparseAttention
from sparselens.attention.pattern import Allowed, Pattern, full
from sparselens.errors import FitError, InputError
from sparselens.models.attention_function import Heads
from sparselens.models.engine import Attend, Change, Context, Edit
from sparselens.models.live import LiveModel
from sparselens.models.sites import split

MASKS = "blocks.*.attn.hook_mask"


@dataclass(frozen=True)
class Segment:
    """Some queries of a pass, in order, and the pattern for them; None where they stay dense.

    `phase` is "prefill" or "decode", and `seconds` what choosing the pattern took.
    """

    start: int
    stop: int
    pattern: Pattern | None
    phase: str
    seconds: float = 0.0


@runtime_checkable
class Watcher(Protocol):
    """Somebody who is shown every segment of every layer."""

    def see(self, layer: Layer, segment: Segment, executor: str) -> None: ...


class Applied:
    """A method on a model. Transformers and nnsight get another attention function, a bridge an edit of its mask.

    Args:
        method: what chooses patterns.
        model: the model.
        at: masks of the layers to make sparse; all by default.
        watcher: who is shown what happens.

    Raises:
        SiteError: the masks of this model cannot be reached, or `at` names something else.
        FitError: an executor that this model cannot take.
    """

    def __init__(self, method: SparseAttention, model: LiveModel, at: Any = None, watcher: Watcher | None = None):
        self.method, self.model, self.watcher = method, model, watcher
        self.sites = model.resolve_all(MASKS if at is None else at)
        wrong = next((s for s in self.sites if not s.endswith("attn.hook_mask")), None)
        if wrong is not None:
            raise FitError(f"sparse attention sits at masks, such as blocks.0.attn.hook_mask, not at {wrong}.")
        self.bridged = model.backend == "transformer_lens"
        if self.bridged and method.executor in ("gather", "flex"):
            raise FitError(f"executor={method.executor!r} cannot run on a TransformerLens bridge, which computes its "
                           'own attention: only masks can be put there. Use executor="auto", or the torch backend.')
        self.states: dict[int, dict[str, Any]] = {}
        self.seen: dict[int, dict[str, Tensor]] = {}

    def changes(self) -> list[Change]:
        """What to install."""
        if not self.bridged:
            return [Attend(site, self.attend) for site in self.sites]
        served = set(self.model.sites())
        changes: list[Change] = []
        for site in self.sites:
            layer = split(site)[1]
            for name in ("q", "k"):  # models without rotation show queries and keys only as they leave their projection
                rotated, plain = (f"blocks.{layer}.attn.hook_{kind}{name}" for kind in ("rot_", ""))
                changes.append(Edit(rotated if rotated in served else plain, self.look))
            changes.append(Edit(site, self.mask, attends=True))
        return changes

    def attend(self, heads: Heads, context: Context) -> Tensor | None:
        """The output of one layer; a mask where its scores are looked at; None where all of it stays dense."""
        allowed = allowed_of(heads.query, heads.key, heads.mask, heads.causal, context.mask)
        turned = Turned.of(allowed)
        if turned is not None:
            query, key, value = turned.queries(heads.query), turned.keys(heads.key), turned.keys(heads.value)
            heads, allowed = replace(heads, query=query, key=key, value=value), turned.allowed(allowed)
        layer = self.layer(heads.query, heads.key, allowed, heads.scale, context)
        segments = self.segments(layer, context)
        if all(segment.pattern is None for segment in segments):
            return None
        if not heads.plain:
            if self.method.executor in ("gather", "flex"):
                raise InputError(f"executor={self.method.executor!r} has no scores and patterns to look at; use "
                                 'executor="auto" or "masked" while attentions are asked for.')
            mask = self.expanded(layer, segments)
            return mask if turned is None else turned.back(mask)
        out = torch.cat([self.run(heads, layer, segment) for segment in segments], 2)
        return out if turned is None else turned.queries(out, back=True)

    def run(self, heads: Heads, layer: Layer, segment: Segment) -> Tensor:
        """The output of some queries."""
        allowed = layer.allowed.part(segment.start, segment.stop)
        query = heads.query[:, :, segment.start : segment.stop]
        key, value = (x[:, :, : allowed.n_k] for x in (heads.key, heads.value))
        part = Heads(query, key, value, allowed.mask, heads.causal, heads.scale)
        pattern = segment.pattern or full(allowed, query.shape[0], query.shape[1])
        out, executor = execute(part, pattern, allowed, self.method.executor if segment.pattern else "masked")
        if self.watcher is not None:
            self.watcher.see(layer, segment, executor)
        return out

    def expanded(self, layer: Layer, segments: list[Segment]) -> Tensor:
        """The keep mask `[b, heads, q, k]` of all queries."""
        allowed, shape = layer.allowed, (*layer.query.shape[:2], -1, layer.allowed.n_k)
        rows = []
        for segment in segments:
            if self.watcher is not None:
                self.watcher.see(layer, segment, "masked")
            if segment.pattern is None:
                rows.append(allowed.rows(segment.start, segment.stop).expand(shape))
            else:
                part = allowed.part(segment.start, segment.stop)
                mask = segment.pattern.rows(part)
                rows.append(torch.nn.functional.pad(mask, (0, allowed.n_k - part.n_k)))
        return torch.cat(rows, 2)

    def look(self, value: Tensor, context: Context) -> None:
        """Note the queries or keys of a layer of a bridge; keys of earlier passes are kept, since it shows new ones."""
        kind, index = split(context.site)
        name = kind[-1]
        if not kind.rsplit("hook_", 1)[1].startswith("rot"):
            heads = self.model.n_heads if name == "q" else self.model.n_kv_heads
            value = value.unflatten(-1, (heads, -1)).transpose(1, 2)
        seen = self.seen.setdefault(index or 0, {})
        value = value.detach()
        if name == "k" and context.past and "k" in seen and value.shape[2] <= context.past:
            value = torch.cat([seen["k"][:, :, : context.past], value], 2)
        seen[name] = value

    def mask(self, keep: Tensor, context: Context) -> Tensor | None:
        """The mask of one layer of a bridge."""
        seen = self.seen[split(context.site)[1] or 0]
        query, key = seen["q"], seen["k"][:, :, -keep.shape[-1] :]
        causal = self.model.causal
        allowed = allowed_of(query, key, simplest(keep, causal), causal, context.mask)
        config: Any = self.model.module.config
        scale = getattr(config, "query_pre_attn_scalar", None) or query.shape[-1]
        turned = Turned.of(allowed)
        if turned is not None:
            query, key, allowed = turned.queries(query), turned.keys(key), turned.allowed(allowed)
        layer = self.layer(query, key, allowed, float(scale) ** -0.5, context)
        segments = self.segments(layer, context)
        if all(segment.pattern is None for segment in segments):
            return None
        mask = self.expanded(layer, segments)
        return mask if turned is None else turned.back(mask)

    def layer(self, query: Tensor, key: Tensor, allowed: Allowed, scale: float, context: Context) -> Layer:
        """What the method is asked, with what it remembers of this layer."""
        index = split(context.site)[1] or 0
        state = self.states.setdefault(index, {})
        denoising = context.run.denoising
        if not context.past and (denoising is None or denoising.step == 0):
            state.clear()
        return Layer(query.detach(), key.detach(), allowed, index, scale, state, denoising)

    @torch.no_grad()
    def segments(self, layer: Layer, context: Context) -> list[Segment]:
        """Who acts on which queries of this pass.

        Raises:
            InputError: the method acts while decoding only, and this pass has no cache to decode from, or no token
                after the prompt.
        """
        n, prompt = layer.allowed.n_q, self.method.prompt
        prefills, decodes = self.method.prefills, self.method.decodes
        if context.past:
            decoding = n == 1 or prefills is None
            return [self.chosen(decodes if decoding else prefills, layer, "decode" if decoding else "prefill", 0, n)]
        if context.run.cached:
            prompt = n
        elif prompt is None:
            if prefills is None:
                raise InputError(
                    f"{self.method} acts while decoding, and this pass has no cache to decode from: it would change "
                    "nothing. Generate (m.generate, or use_cache=True in a call of the model itself), or pass prompt=n "
                    "to compute all tokens after the first n as if they had been decoded."
                )
            prompt = n
        elif prefills is None and prompt >= n:
            raise InputError(f"{self.method} acts after the first prompt={prompt} tokens, and this text has {n}: it "
                             "would change nothing. Give longer texts, or a smaller prompt.")
        prompt = min(prompt, n)
        found = [self.chosen(prefills, layer.part(0, prompt), "prefill", 0, prompt)]
        if decodes is not None:
            start = time.perf_counter()
            decodes.observe(layer.part(0, prompt))
            found[0] = Segment(0, prompt, found[0].pattern, "prefill", found[0].seconds + time.perf_counter() - start)
        if prompt < n:
            found.append(self.chosen(decodes, layer.part(prompt, n), "decode", prompt, n))
        return found

    def chosen(self, method: SparseAttention | None, layer: Layer, phase: str, start: int, stop: int) -> Segment:
        """The segment of a method's pattern; dense where there is no method."""
        if method is None:
            return Segment(start, stop, None, phase)
        began = time.perf_counter()
        pattern = method.prefill(layer) if phase == "prefill" else method.decode(layer)
        if pattern is not None:
            pattern = pattern.repaired_for(layer.allowed)
        return Segment(start, stop, pattern, phase, time.perf_counter() - began)


def allowed_of(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, real: Tensor | None) -> Allowed:
    """What the queries of a layer may look at; those of padding at nothing."""
    n_q, n_k = query.shape[2], key.shape[2]
    if real is not None and not bool(real.all()):
        rows = real.to(query.device)[:, None, :, None]
        mask = Allowed(n_q, n_k, causal, mask, query.device).rows() & rows
    return Allowed(n_q, n_k, causal, mask, query.device)


def simplest(keep: Tensor, causal: bool) -> Tensor | None:
    """None for a mask that causality alone explains."""
    plain = Allowed(keep.shape[2], keep.shape[3], causal, None, keep.device)
    return None if bool((keep == plain.rows()).all()) else keep


@dataclass(frozen=True)
class Turned:
    """Rows whose padding on the left is moved to the right, so that blocks begin with the first real token.

    Attributes:
        pads: tokens of padding before each row, `[b]`.
        n_q, n_k: numbers of queries and keys; queries are moved too where they are all there are.
    """

    pads: Tensor
    n_q: int
    n_k: int

    @classmethod
    def of(cls, allowed: Allowed) -> "Turned | None":
        """What is to be moved; None without padding on the left."""
        if allowed.mask is None:
            return None
        real = allowed.mask.any(1).any(-2)
        pads = real.int().argmax(-1)
        return cls(pads, allowed.n_q, allowed.n_k) if bool(pads.any()) else None

    def _index(self, n: int, back: bool = False) -> Tensor:
        at = torch.arange(n, device=self.pads.device)
        return (at + (-self.pads if back else self.pads)[:, None]) % n

    def keys(self, x: Tensor, back: bool = False) -> Tensor:
        """`[b, heads, k, d]` with keys moved."""
        return x.gather(2, self._index(self.n_k, back)[:, None, :, None].expand(x.shape))

    def queries(self, x: Tensor, back: bool = False) -> Tensor:
        """`[b, heads, q, d]` with queries moved."""
        return self.keys(x, back) if self.n_q == self.n_k else x

    def back(self, mask: Tensor) -> Tensor:
        """A mask of moved rows for the rows as they are."""
        return self.keys(self.queries(mask, back=True).transpose(2, 3), back=True).transpose(2, 3)

    def allowed(self, allowed: Allowed) -> Allowed:
        """What moved rows may look at."""
        assert allowed.mask is not None
        mask = allowed.mask.expand(len(self.pads), -1, -1, -1)
        mask = self.queries(self.keys(mask.transpose(2, 3)).transpose(2, 3))
        places = None if self.n_q == self.n_k else allowed.own - self.pads[:, None]
        return Allowed(self.n_q, self.n_k, allowed.causal, mask, allowed.device, places)


class Watched:
    """A method together with somebody who is shown what it does, as an attachment."""

    def __init__(self, method: SparseAttention):
        self.method = method

    def edits(self, model: LiveModel, at: Any = None) -> Sequence[Change]:
        return Applied(self.method, model, at, self).changes()

    def see(self, layer: Layer, segment: Segment, executor: str) -> None:
        raise NotImplementedError


class Counted(Watched):
    """A method that counts what it does. Made by `SparseAttention.counted`."""

    def __init__(self, method: SparseAttention, model: LiveModel):
        super().__init__(method)
        self.sums: dict[tuple[int, str], dict[str, Any]] = {}

    def see(self, layer: Layer, segment: Segment, executor: str) -> None:
        """Add a segment; dense ones are left out, since the method does not act there."""
        if segment.pattern is None:
            return
        new = dict.fromkeys(("kept", "pairs", "blocks", "possible", "repaired", "plan_ms"), 0.0)
        found = self.sums.setdefault((layer.index, segment.phase), new | {"executors": {}})
        allowed = layer.allowed.part(segment.start, segment.stop)
        kept, pairs = segment.pattern.pairs(allowed)
        blocks, possible = kept, pairs
        if segment.pattern.block != (1, 1):
            there = (allowed.tiles(segment.pattern.block) > 0).expand_as(segment.pattern.keep)
            blocks, possible = (segment.pattern.keep & there).sum(), there.sum()
        found["kept"] += float(kept.sum())
        found["pairs"] += float(pairs.sum())
        found["blocks"] += float(blocks.sum())
        found["possible"] += float(possible.sum())
        found["repaired"] += segment.pattern.repaired
        found["plan_ms"] += 1000 * segment.seconds
        found["executors"][executor] = found["executors"].get(executor, 0) + 1

    def numbers(self) -> dict[str, float]:
        """`sparsity`: share of the allowed pairs of tokens left out, where the method acts. Nothing if it never did."""
        pairs = sum(found["pairs"] for found in self.sums.values())
        kept = sum(found["kept"] for found in self.sums.values())
        return {"sparsity": 1 - kept / pairs} if pairs else {}

    def parts(self) -> list[dict[str, Any]]:
        """A row for each layer and phase: layer, phase, density (share of allowed pairs kept), block_density, repaired
        (queries that were left with nothing), plan_ms (time to choose patterns), executor (which ran).
        """
        rows = []
        for (layer, phase), found in sorted(self.sums.items()):
            rows.append({
                "layer": layer,
                "phase": phase,
                "density": found["kept"] / max(found["pairs"], 1),
                "block_density": found["blocks"] / max(found["possible"], 1),
                "repaired": int(found["repaired"]),
                "plan_ms": found["plan_ms"],
                "executor": ", ".join(found["executors"]),
            })
        return rows


class Recorder(Watched):
    """A method that keeps the patterns of its last pass over several tokens.

    Attributes:
        layers: layer -> what it was asked, without its state.
        segments: layer -> segments.
    """

    def __init__(self, method: SparseAttention):
        super().__init__(method)
        self.layers: dict[int, Layer] = {}
        self.segments: dict[int, list[Segment]] = {}

    def see(self, layer: Layer, segment: Segment, executor: str) -> None:
        if layer.allowed.n_q == 1 and layer.allowed.n_k > 1:
            return
        if segment.start == 0:
            self.layers[layer.index] = Layer(layer.query, layer.key, layer.allowed, layer.index, layer.scale)
            self.segments[layer.index] = []
        self.segments[layer.index].append(segment)

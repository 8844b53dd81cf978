"""Combiner: sparse attention in which no key is dropped (arXiv 2107.05768).

A query sees some keys directly and all others through summaries of regions. The weights of a row are a distribution
over all allowed keys, at the cost of a sparse attention.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.attention.regions import Division, Group, divide, without_summaries
from sparselens.attention.rotary import rotate
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

POOLS = ("max", "mean")
SUMMARIES = ("proj", "wsum", "none")


class Weights(NamedTuple):
    """Where the attention of each query goes.

    Attributes:
        direct: `[b, h, n, width]` weights of the keys seen directly.
        regions: of each group, `[b, h, n, seen]` weights of the regions seen.
        inside: of each group, `[b, h, regions, width]` weights of the members inside each region.
    """

    direct: Float[Tensor, "b h n w"]
    regions: list[Tensor]
    inside: list[Tensor]


def combine(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h n d"],
    value: Float[Tensor, "b h n e"],
    division: Division,
    *,
    pool: str = "max",
    log_size_bias: bool = False,
    rotary: bool = False,
    summary: Float[Tensor, "b h speakers d"] | None = None,
) -> tuple[Float[Tensor, "b h n e"], Weights]:
    """Attend by a division (equations 4 to 8).

    `out_i = sum over direct j of p_ij v_j + sum over regions r of p_ir V_r`, with one softmax over the scores
    `q_i k_j / sqrt(d)` and `q_i K_r / sqrt(d)`, and `V_r = sum over j in r of softmax_j(Q_r k_j / sqrt(d)) v_j`.

    Args:
        query, key, value: of all tokens.
        division: from `divide`.
        pool: how queries and keys of a region become `Q_r` and `K_r`: "max" (the paper) or "mean".
        log_size_bias: add the logarithm of a region's size to its score, as fits the sum of its exponentials.
        rotary: turn queries and keys by their positions, after pooling; a region has its centre's position.
        summary: keys of the tokens that speak for regions of theirs, one for each; their own keys by default.

    Returns:
        The output, and where it comes from.
    """
    _checked("pool", pool, POOLS)
    division = division.to(query.device)
    at = torch.arange(query.shape[2], device=query.device)
    turn = rotate if rotary else (lambda x, _at: x)
    scale = query.shape[-1] ** -0.5
    asks, answers = turn(query, at) * scale, turn(key, at)
    direct = (asks[:, :, :, None] * _take(answers, division.direct)).sum(-1)
    scores, inside, means = [direct.masked_fill(division.direct < 0, -torch.inf)], [], []
    for group in division.groups:
        region_query, region_key, centre = _summaries(query, key, summary, group, pool)
        weights, mean = _expectation(turn(region_query, centre) * scale, answers, value, group)
        score = (asks[:, :, :, None] * _take(turn(region_key, centre), group.slots)).sum(-1)
        if log_size_bias:
            sizes = (group.members >= 0).sum(1).clamp(min=1).to(score.dtype).log()
            score = score + sizes[group.slots.clamp(min=0)]
        scores.append(score.masked_fill(group.slots < 0, -torch.inf))
        inside.append(weights)
        means.append(mean)
    parts = torch.cat(scores, -1).softmax(-1).split([s.shape[-1] for s in scores], -1)
    out = (parts[0][..., None] * _take(value, division.direct)).sum(-2)
    for group, weight, mean in zip(division.groups, parts[1:], means, strict=True):
        out = out + (weight[..., None] * _take(mean, group.slots)).sum(-2)
    return out, Weights(parts[0], list(parts[1:]), inside)


def _checked(name: str, given: str, valid: tuple[str, ...]) -> str:
    if given not in valid:
        raise InputError(f"{name}={given!r} is unknown; valid are {', '.join(valid)}.{closest(given, valid)}")
    return given


def _take(x: Tensor, index: Int[Tensor, "n w"]) -> Tensor:
    """Rows of `[b, h, n, d]` at `[n, w]` indices: `[b, h, n, w, d]`. Missing ones (-1) give row 0, to be masked."""
    return x[:, :, index.clamp(min=0)]


def _summaries(
    query: Tensor, key: Tensor, summary: Tensor | None, group: Group, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and position of each region."""
    if group.own is not None:
        return query[:, :, group.own], key[:, :, group.own] if summary is None else summary, group.own
    here = group.members >= 0
    size = here.sum(1).clamp(min=1)
    centre = (group.members.clamp(min=0) * here).sum(1).double() / size
    pooled = []
    for x in (query, key):
        taken = _take(x, group.members)
        if pool == "max":
            taken = taken.masked_fill(~here[..., None], -torch.inf).amax(-2)
            pooled.append(taken.masked_fill(~here.any(1)[:, None], 0.0))  # a region that nobody sees
        else:
            pooled.append(taken.masked_fill(~here[..., None], 0.0).sum(-2) / size[:, None])
    return pooled[0], pooled[1], centre


def _expectation(region_query: Tensor, key: Tensor, value: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Weights of the members inside each region, and the mean value under them."""
    here = group.members >= 0
    score = (region_query[:, :, :, None] * _take(key, group.members)).sum(-1)
    score = score.masked_fill(~here, -torch.inf).masked_fill(~here.any(1, keepdim=True), 0.0)
    weights = score.softmax(-1)
    return weights, (weights[..., None] * _take(value, group.members)).sum(-2)


def effective(weights: Weights, division: Division) -> Float[Tensor, "b h n n"]:
    """The attention over single keys that a division implies; its rows sum to 1."""
    b, h, n, _ = weights.direct.shape
    division = division.to(weights.direct.device)
    out = weights.direct.new_zeros(b, h, n, n + 1)  # the last column takes what is not there
    out.scatter_add_(3, division.direct.masked_fill(division.direct < 0, n).expand(b, h, -1, -1), weights.direct)
    for group, weight, inside in zip(division.groups, weights.regions, weights.inside, strict=True):
        members = group.members.masked_fill(group.members < 0, n)
        for slot in range(group.slots.shape[1]):
            region = group.slots[:, slot].clamp(min=0)
            share = weight[..., slot, None] * inside[:, :, region]
            out.scatter_add_(3, members[region].expand(b, h, -1, -1), share)
    return out[..., :n]


@dataclass(frozen=True)
class Decomposition:
    """Where the attention of one query goes, for one head. Made by `Combiner.decompose`.

    Attributes:
        query: position of the query.
        rows: (kind, first token, last token, weight); kind is "direct" or "region".
    """

    query: int
    rows: tuple[tuple[str, int, int, float], ...]

    @property
    def direct(self) -> float:
        """Weight of all keys seen directly."""
        return sum(weight for kind, _, _, weight in self.rows if kind == "direct")

    def to_frame(self) -> "pandas.DataFrame":
        """A row a key or region: kind, first, last, weight."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["kind", "first", "last", "weight"])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the weights over the tokens they stand for. Returns the axes."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
        for kind, colour in (("region", "#E69F00"), ("direct", "#0072B2")):
            rows = [row for row in self.rows if row[0] == kind]
            ax.bar([row[1] for row in rows], [row[3] for row in rows], align="edge", color=colour, label=kind,
                   width=[row[2] - row[1] + 1 for row in rows], edgecolor="white", linewidth=0.3)
        ax.set(xlabel="token", ylabel="weight", title=f"query {self.query}: {self.direct:.0%} direct")
        ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4f}".format)


class Combiner(nn.Module):
    """An attention layer by a plan of Combiner, to be trained from scratch.

    Args:
        d_model: width of the input.
        n_heads: heads.
        plan: "fixed", "logsparse", "axial_rowmajor", "axial_vertical", "axial_horizontal", or "mixture": the last two
            in one softmax, as in the official code, or with `average=True` the paper's average of two softmaxes.
        span: tokens of a span, or of a row of the axial plans; about the square root of the length is cheapest.
        causal: whether a token sees only itself and those before it; always for "logsparse".
        pool: "max" or "mean" over the queries and keys of a region.
        summary: what stands for a token's row in "axial_rowmajor": "proj" (a projection of the row's attention at that
            token), "wsum" (the keys weighted by it) or "none" (the token's own key).
        log_size_bias: add the logarithm of a region's size to its score; the paper does not.
        average: for "mixture": two attentions, each with its own softmax, averaged.
        regions: False leaves the summaries out: the sparse attention that the plan improves on.
    """

    def __init__(
        self, d_model: int, n_heads: int, plan: str = "fixed", span: int = 16, *, causal: bool = True,
        pool: str = "max", summary: str = "proj", log_size_bias: bool = False, average: bool = False,
        regions: bool = True,
    ):
        super().__init__()
        if d_model % (2 * n_heads):
            raise InputError(f"d_model={d_model} must be n_heads={n_heads} times an even number.")
        if average and plan != "mixture":
            raise InputError(f"average=True is for plan='mixture', not {plan!r}.")
        divide(plan, 1, span, causal)
        self.n_heads, self.plan, self.span, self.causal, self.average = n_heads, plan, span, causal, average
        self.pool, self.summary = _checked("pool", pool, POOLS), _checked("summary", summary, SUMMARIES)
        self.log_size_bias, self.regions = log_size_bias, regions
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        if plan == "axial_rowmajor" and summary == "proj" and regions:
            self.row_mix, self.row_norm = nn.Linear(d_model, d_model), nn.LayerNorm(d_model)
            self.row_key = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[Tensor, "b pos d"]) -> Float[Tensor, "b pos d"]:
        """Attend, all positions at once; any length."""
        outs = [out for out, _, _ in self._attend(x)]
        out = torch.stack(outs).mean(0)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def cache(self, length: int) -> "CombinerCache":
        """An empty cache to decode with.

        Args:
            length: most tokens that it will hold. Planning looks at all pairs of them, once.

        Raises:
            InputError: the layer is not causal: earlier tokens would have seen the new ones.
        """
        if not self.causal:
            raise InputError("an attention that sees both sides cannot go on from a cache; run all tokens at once.")
        divisions = [divide(plan, length, self.span, True) for plan in self._plans]
        return CombinerCache(length, divisions if self.regions else [without_summaries(d) for d in divisions])

    @torch.no_grad()
    def extend(self, x: Float[Tensor, "b pos d"], cache: "CombinerCache") -> Float[Tensor, "b pos d"]:
        """Attend for new tokens that follow those of the cache, which grows by them: the output that all tokens at once
        would have there. A token costs as much as it sees keys and regions; a region is summed up once.

        Raises:
            InputError: more tokens than the cache has room for.
        """
        parts = (x, *(self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj)))
        outs = [self._attend_one(i, cache) for i in cache.grow(parts)]
        return self.o_proj(torch.cat(outs, 2).transpose(1, 2).flatten(2))

    def _attend_one(self, i: int, cache: "CombinerCache") -> Tensor:
        """Output `[b, h, 1, d_head]` of one token of the cache."""
        x, query, key, value, turned = cache.parts
        at, outs = torch.tensor([i], device=x.device), []
        ask = rotate(query[:, :, i : i + 1], at) * query.shape[-1] ** -0.5
        for division, kept in zip(cache.divisions, cache.regions, strict=True):
            direct = _there(division.direct[i]).to(x.device)
            scores, values = [ask @ turned[:, :, direct].transpose(2, 3)], [value[:, :, direct]]
            for group, known in zip(division.groups, kept, strict=True):
                seen = _there(group.slots[i])
                new = torch.tensor([r for r in seen.tolist() if r not in known], dtype=torch.long)
                if len(new):
                    own = None if group.own is None else group.own[new].to(x.device)
                    part = Group(group.members[new].to(x.device), group.slots, own)
                    speaks = self._row_summary(x, query, key, value, (part,))
                    asks, answers, centre = _summaries(query, key, speaks, part, self.pool)
                    mean = _expectation(rotate(asks, centre) * query.shape[-1] ** -0.5, turned, value, part)[1]
                    sizes = (part.members >= 0).sum(1).to(x.dtype).log()
                    rows = zip(rotate(answers, centre).unbind(2), mean.unbind(2), sizes, strict=True)
                    known.update(zip(new.tolist(), rows, strict=True))
                for region in seen.tolist():
                    answer, mean, size = known[region]
                    score = (ask * answer[:, :, None]).sum(-1, keepdim=True)
                    scores.append(score + size if self.log_size_bias else score)
                    values.append(mean[:, :, None])
            outs.append(torch.cat(scores, -1).softmax(-1) @ torch.cat(values, 2))
        return torch.stack(outs).mean(0)

    @torch.no_grad()
    def effective_attention(self, x: Float[Tensor, "b pos d"]) -> Float[Tensor, "b h pos pos"]:
        """The attention over single keys that the layer implies; every row sums to 1."""
        return torch.stack([effective(weights, division) for _, weights, division in self._attend(x)]).mean(0)

    @torch.no_grad()
    def decompose(self, x: Float[Tensor, "b pos d"], query: int, *, row: int = 0, head: int = 0) -> Decomposition:
        """Where one query's attention goes: keys seen directly, and regions.

        Raises:
            InputError: no such position, row or head.
        """
        for name, given, size in (("query", query, x.shape[1]), ("row", row, len(x)), ("head", head, self.n_heads)):
            if not 0 <= given < size:
                raise InputError(f"{name}={given}: there are 0 to {size - 1}.")
        rows: list[tuple[str, int, int, float]] = []
        parts = self._attend(x)
        for _, weights, division in parts:
            for key, weight in zip(division.direct[query].tolist(), weights.direct[row, head, query], strict=True):
                rows += [("direct", key, key, float(weight) / len(parts))] if key >= 0 else []
            for group, shares in zip(division.groups, weights.regions, strict=True):
                for region, weight in zip(group.slots[query].tolist(), shares[row, head, query], strict=True):
                    inside = group.members[region][group.members[region] >= 0].tolist()
                    found = ("region", min(inside), max(inside), float(weight) / len(parts)) if region >= 0 else None
                    rows += [found] if found else []
        return Decomposition(query, tuple(rows))

    def _attend(self, x: Tensor) -> list[tuple[Tensor, Weights, Division]]:
        """Output `[b, h, pos, d_head]`, weights and division; two of each for an average."""
        query, key, value = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        found = []
        for plan in self._plans:
            division = divide(plan, x.shape[1], self.span, self.causal)
            if not self.regions:
                division = without_summaries(division)
            speaks = self._row_summary(x, query, key, value, division.groups)
            out, weights = combine(
                query, key, value, division, pool=self.pool, log_size_bias=self.log_size_bias, rotary=True,
                summary=speaks,
            )
            found.append((out, weights, division))
        return found

    def _row_summary(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, groups: tuple[Group, ...]
    ) -> Tensor | None:
        """What stands for the whole row of each token that speaks for one, as a key: `[b, h, speakers, d_head]`."""
        if self.plan != "axial_rowmajor" or self.summary == "none" or not groups:
            return None
        (group,), at = groups, torch.arange(key.shape[2], device=key.device)
        assert group.own is not None
        own = group.own.to(x.device)
        group = Group(group.members.to(x.device), group.slots, own)
        turned = rotate(query[:, :, own], own) * query.shape[-1] ** -0.5
        if self.summary == "wsum":
            return _expectation(turned, rotate(key, at), key, group)[1]
        row = _expectation(turned, rotate(key, at), value, group)[1].transpose(1, 2).flatten(2)
        return self._split(self.row_key(self.row_norm(x[:, own] + self.row_mix(row))))

    @property
    def _plans(self) -> tuple[str, ...]:
        return ("axial_vertical", "axial_horizontal") if self.average else (self.plan,)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class CombinerCache:
    """What a `Combiner` keeps of the tokens so far: their queries, keys and values, and each region once it was seen.

    Made by `Combiner.cache`, for rows that all begin at their first token.

    Attributes:
        length: most tokens.
        divisions: what each of `length` tokens sees.
        regions: for each division and group, region -> its key, its mean value and the logarithm of its size.
        parts: inputs, queries, keys, values, and keys turned by their positions, of the tokens so far.
    """

    def __init__(self, length: int, divisions: list[Division]):
        self.length, self.divisions = length, divisions
        self.regions: list[list[dict[int, tuple[Tensor, Tensor, Tensor]]]] = [
            [{} for _ in division.groups] for division in divisions
        ]
        self.parts: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.parts[0].shape[1] if self.parts else 0

    def grow(self, parts: tuple[Tensor, ...]) -> range:
        """Take in new tokens; returns their positions."""
        past, new = len(self), parts[0].shape[1]
        if past + new > self.length:
            raise InputError(f"{past} tokens and {new} new ones: this cache has room for {self.length}.")
        at = torch.arange(past, past + new, device=parts[0].device)
        parts = (*parts, rotate(parts[2], at))
        axes = (1, 2, 2, 2, 2)
        self.parts = tuple(
            torch.cat([old, part], axis) if past else part
            for old, part, axis in zip(self.parts or parts, parts, axes, strict=True)
        )
        return range(past, past + new)


def _there(index: Tensor) -> Tensor:
    """A row of indices without what fills it up."""
    return index[index >= 0]

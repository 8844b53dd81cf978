"""What an attachment costs: loss, KL and agreement against the untouched model, and a dictionary's own numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparselens.attach import changes_of, edit, replace
from sparselens.errors import InputError, NotFiniteError
from sparselens.measure.metrics import (
    ActiveSum,
    FvuSum,
    ce_per_token,
    ce_recovered,
    dense_share,
    kl_per_token,
    top1_per_token,
)
from sparselens.models.batches import Batch, as_texts
from sparselens.models.engine import Context, Weight
from sparselens.models.sites import split

if TYPE_CHECKING:
    import pandas

    from sparselens.models.live import LiveModel

MASK = "blocks.{i}.attn.hook_mask"
BATCH_TOKENS = 1024  # two sets of logits are held at once: 400 MB for a vocabulary of 50,000


@runtime_checkable
class Counted(Protocol):
    """An attachment that counts what it does while it is on."""

    def numbers(self) -> dict[str, float]:
        """What it did so far, by the names of `Report`: `sparsity`, and what it knows of the four costs."""
        ...

    def parts(self) -> list[dict[str, Any]]:
        """A row for each part of the model that it acts on: the rows of `Report.layers`."""
        ...


@runtime_checkable
class Counting(Protocol):
    """An attachment with numbers of its own for the report."""

    def counted(self, model: "LiveModel") -> Counted:
        """The same attachment, counting from nothing."""
        ...


@dataclass(frozen=True)
class Report:
    """Measured numbers about one attachment on some texts. Losses and KL in nats per token.

    The dictionary's numbers are None for an attachment that is no dictionary, and costs for one that does not count
    them.

    Attributes:
        name: what it is called.
        model: name of the model.
        sites: where it sits.
        tokens: real tokens read.
        ce_clean, ce: cross-entropy of the untouched model, and with the attachment.
        kl: mean `KL(p_clean || p_edited)`.
        top1: share of tokens after which both find the same next token likeliest.
        l0: active latents per token. This and the next three over content tokens that are not the first of their
            row and on which the dictionary acts.
        fvu: fraction of variance unexplained.
        dead_share: share of latents that never fired on these texts.
        dense_share: share of latents that fired on more than a tenth of the tokens.
        ce_zero, ce_mean: cross-entropy when the tokens on which the dictionary acts, without the first of a row, are
            set to zero, or to their mean.
        sparsity: share of what the attachment acts on that it leaves out: of the weights of the blocks' linear
            layers for a sparsifier, of the latents for a dictionary, of the pairs of tokens for edits of masks.
        weight_bytes, weight_bytes_dense: bytes of weights that one decoded token needs, and would without the
            attachment; of the linear layers and the unembedding.
        flops, flops_dense: their floating point operations.
        layers: numbers for each layer, of attachments that have such.
    """

    name: str
    model: str
    sites: tuple[str, ...]
    tokens: int
    ce_clean: float
    ce: float
    kl: float
    top1: float
    l0: float | None = None
    fvu: float | None = None
    dead_share: float | None = None
    dense_share: float | None = None
    ce_zero: float | None = None
    ce_mean: float | None = None
    sparsity: float | None = None
    weight_bytes: float | None = None
    weight_bytes_dense: float | None = None
    flops: float | None = None
    flops_dense: float | None = None
    layers: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def perplexity(self) -> float:
        """`exp(ce)`."""
        return exp(min(self.ce, 700.0))

    @property
    def ce_increase(self) -> float:
        """Cross-entropy that the attachment adds, in nats per token."""
        return self.ce - self.ce_clean

    @property
    def explained_variance(self) -> float | None:
        """`1 - fvu`."""
        return None if self.fvu is None else 1.0 - self.fvu

    @property
    def ce_recovered_zero(self) -> float | None:
        """Share of the loss of zero ablation that the dictionary avoids."""
        return None if self.ce_zero is None else ce_recovered(self.ce_clean, self.ce, self.ce_zero)

    @property
    def ce_recovered_mean(self) -> float | None:
        """Share of the loss of mean ablation that the dictionary avoids."""
        return None if self.ce_mean is None else ce_recovered(self.ce_clean, self.ce, self.ce_mean)

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, the derived ones included."""
        derived = ("perplexity", "ce_increase", "explained_variance", "ce_recovered_zero", "ce_recovered_mean")
        numbers = asdict(self) | {"sites": ", ".join(self.sites)} | {name: getattr(self, name) for name in derived}
        del numbers["layers"]
        return numbers

    def to_frame(self) -> "pandas.DataFrame":
        """One row with a column a number."""
        import pandas as pd

        return pd.DataFrame([self.to_dict()])

    def layer_frame(self) -> "pandas.DataFrame":
        """A row a layer, for attachments that have numbers by layer; else empty."""
        import pandas as pd

        return pd.DataFrame(list(self.layers))

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        shown = {k: v for k, v in self.to_dict().items() if v is not None and k != "name"}
        return report_html(f"Report: {self.name}", list(shown.items()))


def fidelity(
    m: "LiveModel",
    thing: Any,
    texts: Any,
    at: Any = None,
    *,
    role: str | None = None,
    max_length: int | None = 256,
    long: str = "cut",
    batch_tokens: int = BATCH_TOKENS,
    name: str | None = None,
) -> Report:
    """Measure an attachment on texts, against the model with nothing attached.

    What is attached at the moment is taken off while measuring, and is back afterwards. A dictionary costs four
    passes over the texts (clean, spliced, zero ablation, mean ablation), anything else two. Logits of one batch are
    held at a time, and sums are kept in float64.

    Args:
        m: a live model.
        thing: what `m.attach` takes.
        texts: what `m.batches` takes; empty texts are passed over.
        at: sites, as for `m.attach`.
        role, max_length, long, batch_tokens: as for `m.batches`.
        name: what to call it in the report; by default its type.

    Raises:
        InputError: no text has two tokens, or the thing cannot be attached.
        FitError: the thing does not fit the model.
        NotFiniteError: a dictionary meets NaN or infinite activations.
    """
    name = type(thing).__name__ if name is None else name
    reading = {"role": role, "max_length": max_length, "long": long, "batch_tokens": batch_tokens}
    return measure_all(m, {name: (thing, at)}, texts, reading)[0]


def measure_all(
    m: "LiveModel", things: Mapping[str, tuple[Any, Any]], texts: Any, reading: dict[str, Any]
) -> list[Report]:
    """Reports of several attachments `name -> (thing, at)` against one clean pass over the texts."""
    texts = list(as_texts(texts))
    cases = [_Case(m, name, thing, at) for name, (thing, at) in things.items()]
    dictionaries = [case for case in cases if case.dictionary is not None]
    tokens, ce_clean = 0, _Mean()
    with m.untouched():
        for batch in m.batches(texts, empty="skip", **reading):
            with m.attach([edit(case.sites[0], case.look(batch)) for case in dictionaries]):
                clean = m.logits(batch)
            tokens += int(batch.mask.sum())
            ce_clean.add(ce_per_token(clean, batch.ids, batch.mask))
            for case in cases:
                case.add(batch, clean)
            del clean
        if not ce_clean.count:
            raise InputError("no text has two tokens or more, so there is no loss to measure.")
        if dictionaries:  # the mean to ablate with is known only after the first round
            for batch in m.batches(texts, empty="skip", **reading):
                for case in dictionaries:
                    case.add_mean_ablation(batch)
    return [case.report(tokens, ce_clean.value) for case in cases]


class _Mean:
    """A running mean in float64."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.count


class _Pairs:
    """Pairs of tokens that edits of attention masks leave, of those that causality and padding do."""

    def __init__(self) -> None:
        self.kept, self.all = 0, 0

    def before(self, keep: Tensor, _context: Context) -> None:
        self.base = keep

    def after(self, keep: Tensor, context: Context) -> None:
        base = self.base
        if context.mask is not None:  # padding looks at nothing that counts
            base = base & context.mask.to(base.device)[:, None, :, None]
        self.all += int(base.sum())
        self.kept += int((keep & base).sum())


class _Case:
    """The running sums of one attachment."""

    def __init__(self, m: "LiveModel", name: str, thing: Any, at: Any):
        self.m, self.name, self.at = m, name, at
        parts = thing if isinstance(thing, list | tuple) else [thing]
        # of several that count no sum is made: they count different things
        self.counted = [one.counted(m) for one in parts if isinstance(one, Counting)]
        counted = iter(self.counted)
        self.thing: Any = [next(counted) if isinstance(one, Counting) else one for one in parts]
        self.sites = tuple(dict.fromkeys(e.site for e in changes_of(thing, m, at) if not isinstance(e, Weight)))
        # one site only: over several there is no one l0 or mean
        self.dictionary: Any = _dictionary(thing) if len(self.sites) == 1 else None
        masks = self.sites and all(split(site)[0] == MASK for site in self.sites)
        self.pairs = _Pairs() if masks and not self.counted else None
        if self.pairs is not None:
            sites = list(self.sites)
            self.thing = [edit(sites, self.pairs.before), *self.thing, edit(sites, self.pairs.after)]
        self.ce, self.kl, self.top1, self.ce_zero, self.ce_mean = (_Mean() for _ in range(5))
        if self.dictionary is not None:
            self.fvu, self.active = FvuSum(), ActiveSum(self.dictionary.d_sae)
            self._sum, self._rows = torch.zeros(self.dictionary.d_in, dtype=torch.float64), 0

    def look(self, batch: Batch) -> Any:
        """An edit that changes nothing and measures the dictionary on what it sees."""

        def see(x: Tensor) -> None:
            if not bool(torch.isfinite(x[batch.mask.to(x.device)]).all()):
                raise NotFiniteError(f"NaN or infinite activations at {self.sites[0]}: nothing can be measured there.")
            sae, acts = self.dictionary, self._acts(x, batch)
            kept = x[acts & batch.content.to(x.device)].float()
            z = sae.encode(kept)
            self.active.add(z)
            self.fvu.add(kept, sae.decode(z, sae.measure(kept)))
            self._sum += x[acts].double().sum(0).cpu()
            self._rows += int(acts.sum())

        return see

    def add(self, batch: Batch, clean: Tensor) -> None:
        """Run the batch under the attachment, and under zero ablation for a dictionary."""
        with self.m.attach(self.thing, self.at):
            edited = self.m.logits(batch)
        self.ce.add(ce_per_token(edited, batch.ids, batch.mask))
        self.kl.add(kl_per_token(clean, edited, batch.mask))
        self.top1.add(top1_per_token(clean, edited, batch.mask))
        del edited
        if self.dictionary is not None:
            self._ablate(batch, torch.zeros_like(self._sum), self.ce_zero)

    def add_mean_ablation(self, batch: Batch) -> None:
        self._ablate(batch, self._sum / max(self._rows, 1), self.ce_mean)

    def _ablate(self, batch: Batch, value: Tensor, ce: _Mean) -> None:
        def put(x: Tensor) -> Tensor:
            return torch.where(self._acts(x, batch)[..., None], value.to(x), x)

        with self.m.attach(edit(self.sites[0], put)):
            ce.add(ce_per_token(self.m.logits(batch), batch.ids, batch.mask))

    def _acts(self, x: Tensor, batch: Batch) -> Tensor:
        """Tokens on which the dictionary acts, without the first of a row: an attention sink, whose removal would
        break the model and flatter the dictionary."""
        return (batch.mask & ~batch.first).to(x.device) & self.dictionary.applies(x)

    def report(self, tokens: int, ce_clean: float) -> Report:
        numbers = {"ce": self.ce.value, "kl": self.kl.value, "top1": self.top1.value}
        if self.dictionary is not None:
            numbers |= {"l0": self.active.l0, "fvu": self.fvu.value, "dead_share": self.active.dead_share}
            numbers |= {"dense_share": dense_share(self.active)}
            numbers |= {"ce_zero": self.ce_zero.value, "ce_mean": self.ce_mean.value}
            numbers |= {"sparsity": 1 - self.active.l0 / self.dictionary.d_sae}
        if self.pairs is not None:
            numbers |= {"sparsity": 1 - self.pairs.kept / self.pairs.all}
        layers: tuple[dict[str, Any], ...] = ()
        if len(self.counted) == 1:
            numbers |= self.counted[0].numbers()
            layers = tuple(self.counted[0].parts())
        return Report(self.name, self.m.name, self.sites, tokens, ce_clean, **numbers, layers=layers)


def _dictionary(thing: Any) -> Any:
    """The dictionary whose reconstruction the attachment puts in place, if it is such a one."""
    sae = thing.sae if isinstance(thing, replace) else thing
    return sae if all(hasattr(sae, name) for name in ("encode", "decode", "applies", "d_sae")) else None

"""How large the inputs of a model's linear layers are: measured once on texts, saved, and used for thresholds."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.activation.allocation import Allocation
from sparselens.activation.cats import PRE, activation_function
from sparselens.activation.linears import PROJECTIONS, Linear, column_norms, linears, projection
from sparselens.activation.sketches import Sketch
from sparselens.errors import FileFormatError, FitError, InputError
from sparselens.files import read_json, write_whole
from sparselens.models.engine import Context, Edit, Stop
from sparselens.models.live import LiveModel
from sparselens.models.sites import split

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.activation.sparsifier import Sparsifier

FORMAT = "sparselens calibration 1"
FACTS, TENSORS = "calibration.json", "calibration.safetensors"
_SAME = 0.01  # mean relative difference of weight norms below which two models are the same: float16 moves them 1e-4
_QUANTILES = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Calibration:
    """Sketches of what each linear layer reads, in one model. Made by `sl.calibrate`.

    Attributes:
        model: name of the model.
        tokens: how many tokens went in.
        magnitudes: site -> sketch of `|x_j|`; at `mlp.hook_pre` of the gate `|act(.)|`, for CATS.
        weighted: site -> sketch of `|x_j| * ||W_:,j||`.
        norms: site -> `[d_in]` norms of the weight columns: they tell whether a model is the one calibrated on.
        allocations: method -> how greedy search shared the sparsity out within each block.
    """

    model: str
    tokens: int
    magnitudes: dict[str, Sketch] = field(repr=False)
    weighted: dict[str, Sketch] = field(repr=False)
    norms: dict[str, Tensor] = field(repr=False)
    allocations: dict[str, Allocation] = field(default_factory=dict)

    def threshold(self, site: str, sparsity: float, weighted: bool = False) -> float:
        """The score that a share `sparsity` of the channels did not exceed, over all tokens.

        Raises:
            FitError: nothing was calibrated at that site.
        """
        sketches = self.weighted if weighted else self.magnitudes
        if site not in sketches:
            raise FitError(f"the calibration on {self.model!r} has nothing for {site}. {_AGAIN}")
        return sketches[site].quantile(sparsity) if sparsity < 1 else torch.inf

    def check(self, model: LiveModel, found: list[Linear], weight_of: Callable[[Linear], Tensor] | None = None) -> None:
        """See whether this was made on that model, by the norms of the weights.

        Args:
            model: the model.
            found: its layers that are to be computed sparsely.
            weight_of: gives the weight `[out, in]` that a layer is about to have; that which it has by default.

        Raises:
            FitError: it was made on another model, or on other weights.
        """
        missing = next((linear.site for linear in found if linear.site not in self.norms), None)
        if missing:
            raise FitError(f"the calibration on {self.model!r} has nothing for {missing} of {model.name!r}. {_AGAIN}")
        for linear in {id(one): one for one in (*found[:7], *found[-7:])}.values():
            weight = linear.weight if weight_of is None else weight_of(linear)
            then, now = self.norms[linear.site], column_norms(weight).cpu()
            if then.shape != now.shape or float((then - now).abs().mean()) > _SAME * float(then.mean()):
                raise FitError(f"this calibration was made on {self.model!r} with other weights than {model.name!r} "
                               f"has now (they differ at {linear.site}). {_AGAIN}")

    def shares(self, sparsifier: "Sparsifier", model: LiveModel, found: list[Linear]) -> dict[str, float]:
        """The sparsity of each of some layers as greedy search shared it out, by site.

        Raises:
            InputError: no search was made for that method, or none so far.
        """
        if sparsifier.key not in self.allocations:
            there = f" There are searches for {', '.join(self.allocations)}." if self.allocations else ""
            raise InputError(f"allocation='greedy': the calibration has no search for {sparsifier.key}. Make it with "
                             f"sl.activation.allocate(model, sparsifier, texts).{there}")
        return self.allocations[sparsifier.key].shares(sparsifier.sparsity, found)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a layer: site, layer, proj, and quantiles of `|x_j|`."""
        import pandas as pd

        rows = []
        for site in self.norms:
            row: dict[str, Any] = {"site": site, "layer": split(site)[1], "proj": projection(site)}
            rows.append(row | {f"q{q:g}": self.magnitudes[site].quantile(q) for q in _QUANTILES})
        return pd.DataFrame(rows)

    def plot(self, sparsity: float = 0.5, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the threshold on `|x_j|` against the layer, a line a projection. Returns the axes."""
        import matplotlib.pyplot as plt

        from sparselens.views import curve_figure

        ax = ax or plt.subplots(figsize=(6, 3.5))[1]
        lines = {proj: [(row.layer, self.threshold(row.site, sparsity)) for row in part.itertuples()]
                 for proj, part in self.to_frame().groupby("proj", sort=False)}
        curve_figure(lines, ax, x="layer", y=f"threshold for sparsity {sparsity:g}")
        return ax

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        frame = self.to_frame().groupby("proj", sort=False).median(numeric_only=True).drop(columns="layer")
        rows: list[list[Any]] = [["median over layers", *frame.columns]]
        rows += [[proj, *values] for proj, *values in frame.itertuples()]
        return report_html(f"Calibration on {self.model}, {self.tokens:,} tokens: |x| in quantiles", rows)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a folder: `calibration.json`, `calibration.safetensors`. An existing one is replaced."""
        import json

        from safetensors.torch import save_file

        tensors, lows, names = {f"norms/{site}": norm for site, norm in self.norms.items()}, {}, {}
        owner: dict[int, str] = {}  # q, k and v read the same, and have one sketch
        for kind in ("magnitudes", "weighted"):
            for site, sketch in getattr(self, kind).items():
                name = owner.setdefault(id(sketch), f"{kind}/{site}")
                names[f"{kind}/{site}"] = name
                lows[name], tensors[name] = sketch.trimmed()
        facts = {"format": FORMAT, "model": self.model, "tokens": self.tokens, "sketches": names, "lows": lows,
                 "allocations": {key: one.to_dict() for key, one in self.allocations.items()}}
        with write_whole(path, folder=True) as folder:
            save_file(tensors, folder / TENSORS)
            (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such folder. FileFormatError: it is damaged or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(path).expanduser()
        if not (folder / FACTS).is_file():
            raise InputError(f"{folder} holds no calibration ({FACTS} is not there).")
        facts = read_json(folder / FACTS)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise FileFormatError(f"{folder / FACTS} is not a calibration that can be read ({FORMAT!r}).")
        try:
            tensors = load_file(folder / TENSORS)
            sketches = {name: Sketch.of_trimmed(low, tensors[name]) for name, low in facts["lows"].items()}
            kinds: dict[str, dict[str, Sketch]] = {"magnitudes": {}, "weighted": {}}
            for place, name in facts["sketches"].items():
                kind, _, site = place.partition("/")
                kinds[kind][site] = sketches[name]
            norms = {name.removeprefix("norms/"): value for name, value in tensors.items() if name.startswith("norms/")}
            allocations = {key: Allocation.of_dict(one) for key, one in facts["allocations"].items()}
            return cls(facts["model"], facts["tokens"], kinds["magnitudes"], kinds["weighted"], norms, allocations)
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, InputError) as error:
            raise FileFormatError(f"the calibration in {folder} is damaged ({error!r:.200}). Make it anew.") from error


_AGAIN = "Make a calibration on this model as it is now: cal = sl.calibrate(model, texts)."


def calibrate(
    m: LiveModel,
    texts: Any,
    max_tokens: int = 20_000,
    *,
    role: str | None = None,
    max_length: int = 2048,
    first: bool = False,
    progress: bool = True,
) -> Calibration:
    """Measure on texts how large the inputs of a model's linear layers are, channel by channel.

    One pass over the texts, under whatever is attached; it stops at the last linear layer.

    Args:
        m: a live model.
        texts: what `m.batches` takes; longer ones are read in chunks, empty ones passed over.
        max_tokens: stop after so many tokens.
        role, max_length: as for `m.batches`.
        first: count the first token of each row too. In many models it is an attention sink, with values a hundred
            times those of others.
        progress: show a bar.

    Raises:
        FitError: the model has no linear layers that can be sparsified.
        InputError: no tokens. NotFiniteError: NaN or infinite activations.
    """
    from tqdm.auto import tqdm

    collector = _Collector(m, first)
    tokens = 0
    with tqdm(total=max_tokens, unit="tok", desc="calibrate", leave=False, disable=not progress) as bar:
        for batch in m.batches(texts, role=role, max_length=max_length, long="chunk", empty="skip", sort=False):
            with m.attach(collector), torch.no_grad(), suppress(Stop):
                m.forward(batch)
            new = int(batch.mask.sum()) - (0 if first else batch.ids.shape[0])
            tokens += new
            bar.update(min(new, max_tokens - bar.n))
            if tokens >= max_tokens:
                break
    if not tokens:
        raise InputError("the texts have no tokens to calibrate on, besides the first of each, which is left out.")
    return Calibration(m.name, tokens, collector.magnitudes, collector.weighted, collector.norms)


class _Collector:
    """Edits that change nothing and count what the layers read. The last of them ends the pass."""

    def __init__(self, m: LiveModel, first: bool):
        self.first = first
        found = linears(m)
        self.norms = {linear.site: column_norms(linear.weight).cpu() for linear in found}
        self.magnitudes: dict[str, Sketch] = {}
        self.weighted = {linear.site: Sketch() for linear in found}
        self.last = found[-1].site
        self._before: tuple[Tensor, str] | None = None
        gated = PROJECTIONS["gate"] in m.table.available
        self.act = activation_function(m) if gated else None
        self.pres = [PRE.replace("{i}", str(i)) for i in range(m.n_layers)] if gated else []

    def edits(self, model: LiveModel, at: Any = None) -> list[Edit]:
        return [*(Edit(site, self._pre) for site in self.pres), *(Edit(site, self._input) for site in self.norms)]

    def _rows(self, x: Tensor, context: Context) -> Tensor:
        mask = context.mask
        assert mask is not None  # the pass is ours, and has ids
        if not self.first:
            mask = mask & (mask.cumsum(-1) > 1)
        return x.flatten(0, -2)[mask.to(x.device).reshape(-1)]

    def _pre(self, x: Tensor, context: Context) -> None:
        assert self.act is not None
        self.magnitudes.setdefault(context.site, Sketch()).add(self._rows(self.act(x), context))

    def _input(self, x: Tensor, context: Context) -> None:
        rows, site = self._rows(x, context), context.site
        if self._before is not None and _same(x, self._before[0]):  # q, k and v read one tensor
            self.magnitudes[site] = self.magnitudes[self._before[1]]
        else:
            self.magnitudes.setdefault(site, Sketch()).add(rows)
        self._before = (x, site)
        self.weighted[site].add(rows.float() * self.norms[site].to(x.device))
        if site == self.last:
            self._before = None
            raise Stop


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that are both alive are the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()

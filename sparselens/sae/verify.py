"""Does an SAE do on this model what its file says? Measured l0 and fvu against the recorded ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import FitError, InputError
from sparselens.models.engine import Context, Edit, Weight
from sparselens.models.sites import order
from sparselens.sae.latents import Latents
from sparselens.sae.sae import SAE
from sparselens.sae.stats import ActiveSum, FvuSum

if TYPE_CHECKING:
    import pandas

# How far the texts at hand may differ from the training texts: a wrong layer or model misses these by far.
_L0_SLACK = 0.3
_FVU_SLACK = (1.5, 0.05)
# In a splice, which meets whatever text there is: how many tokens to judge by, and what no text explains away. (The
# shipped dictionary: fvu 0.14 on its own kind of text, 0.2 on other prose, up to 0.7 on code; at another site above 3.)
WATCHED = 128
_FAR_L0 = 4.0
_FAR_FVU = (4.0, 0.4)


@dataclass(frozen=True)
class Verification:
    """What `sae.verify` measured.

    Attributes:
        site: where (what a transcoder writes).
        tokens: number of tokens measured (content tokens, not the first of a row, within `max_norm`).
        l0, fvu: measured mean active latents per token, and fraction of variance unexplained.
        recorded_l0, recorded_fvu: from the file; None where it says nothing.
    """

    site: str
    tokens: int
    l0: float
    fvu: float
    recorded_l0: float | None
    recorded_fvu: float | None

    @property
    def ok(self) -> bool:
        """Whether it holds: fvu below 1, at most 1.5 times the recorded one plus 0.05, and l0 within 30 %."""
        factor, extra = _FVU_SLACK
        fvu_limit = 1.0 if self.recorded_fvu is None else factor * self.recorded_fvu + extra
        l0_fits = self.recorded_l0 is None or abs(self.l0 - self.recorded_l0) <= _L0_SLACK * self.recorded_l0
        return self.fvu < min(fvu_limit, 1.0) and l0_fits

    def to_frame(self) -> "pandas.DataFrame":
        """One row a metric: measured, recorded."""
        import pandas as pd

        return pd.DataFrame(
            {"measured": [self.l0, self.fvu], "recorded": [self.recorded_l0, self.recorded_fvu]},
            index=pd.Index(["l0", "fvu"], name="metric"),
        ).astype(float)

    def _repr_html_(self) -> str:
        verdict = "as recorded" if self.ok else "NOT as recorded"
        return f"<p>{self.site}, {self.tokens} tokens: <b>{verdict}</b></p>{self.to_frame().to_html()}"


@torch.no_grad()
def verify(sae: SAE, m: Any, texts: Any, **stream: Any) -> Verification:
    """Measure `sae` at its own sites of the live model `m` on `texts`.

    Only content tokens count, without the first of a row and without rows beyond `sae.max_norm`: an attention
    sink holds nearly all of the squared norm and would drown every other token.

    Args:
        sae: the dictionary; what it reads and writes must be sites of `m`.
        m: a live model.
        texts: what `m.stream` takes.
        stream: passed on to `m.stream` (`role`, `max_length`, `long`, `batch_tokens`).

    Raises:
        FitError: the SAE names no site, or reads another width than that site has.
        InputError: the texts leave no token to measure.
    """
    if not sae.reads:
        raise FitError("this SAE does not name its site; set sae.metadata['hook_name'] to verify it.")
    reads, writes = ([m.resolve(site) for site in sites] for sites in (sae.reads, sae.writes))
    for verb, sites, width in (("reads", reads, sae.d_in), ("writes", writes, sae.d_out)):
        found = sum(m.width(site) for site in sites)
        if found != width:
            name = "d_in" if verb == "reads" else "d_out"
            raise FitError(f"{', '.join(sites)} has width {found}, this SAE {verb} width {name}={width}.")
    fvu, active = FvuSum(), ActiveSum(sae.d_sae)
    for batch in m.stream(texts, list(dict.fromkeys([*reads, *writes])), **stream):
        kept = batch.content & ~batch.first
        x, y = (torch.cat([batch[site][kept].float() for site in sites], dim=1) for sites in (reads, writes))
        inside = sae.applies(x)
        x, y = x[inside], y[inside]
        z = sae.encode(x)
        active.add(z)
        fvu.add(y, sae.decode(z, sae.measure(x)))
    if not fvu.rows:
        raise InputError("the texts leave no token to measure: every one is special, first, or beyond max_norm.")
    recorded = [sae.metadata.get(key) for key in ("l0", "fvu")]
    return Verification(", ".join(writes), fvu.rows, active.l0, fvu.value, recorded[0], recorded[1])


class Watch:
    """Judges a dictionary on the first tokens that a splice feeds it; they are encoded anyway.

    Nothing is judged where something else is on the model before it, which may change what it reads.

    Args:
        sae: the dictionary. l0: recorded number of active latents, or None. fvu: recorded one, or None.
        model: the live model it is spliced into.
    """

    def __init__(self, sae: SAE, l0: float | None, fvu: float | None, model: Any) -> None:
        self.sae, self.l0, self.fvu, self.model = sae, l0, fvu, model
        self.seen, self.active = FvuSum(), ActiveSum(sae.d_sae)
        self.done = False
        self.mine: list[Edit] = []

    def on(
        self, x: Float[Tensor, "*batch d_in"], target: Float[Tensor, "*batch d"], context: Context
    ) -> Callable[[Any, Tensor], Tensor]:
        """What takes the codes of `x` and the reconstruction of `target`, and gives the latter back."""

        def judge(z: Any, reconstruction: Tensor) -> Tensor:
            fits = x.dim() == 3 and reconstruction.shape == target.shape
            if not self.done and fits and self._clean():
                real = torch.ones_like(x[..., 0], dtype=torch.bool) if context.mask is None else context.mask
                first = real & (real.cumsum(1) == 1) if not context.past else torch.zeros_like(real)
                kept = (real & ~first).to(x.device) & self.sae.applies(x)
                self._see(z, reconstruction, target, kept, context.site)
            return reconstruction

        return judge

    def _clean(self) -> bool:
        """Whether only this splice changes what it reads."""
        last = max(order(edit.site) for edit in self.mine)
        others = [c for level in self.model._engine._stack for c in level if c not in self.mine]
        return not any(isinstance(c, Weight) or order(c.site) <= last for c in others)

    @torch.no_grad()
    def _see(self, z: Any, x_hat: Tensor, x: Tensor, kept: Tensor, site: str) -> None:
        """Add the tokens that count; judge once there are enough.

        Raises:
            FitError: it does something else here than its file says.
        """
        where = kept.nonzero(as_tuple=True)
        self.seen.add(x[where], x_hat[where])
        part = z._replace(values=z.values[where], indices=z.indices[where]) if isinstance(z, Latents) else z[where]
        self.active.add(part)
        if self.seen.rows < WATCHED:
            return
        self.done = True
        reasons = self._reasons()
        if reasons:
            raise FitError(
                f"on {self.model.name!r} at {site} this SAE does not do what its file says: {' and '.join(reasons)}, "
                f"over {self.seen.rows} tokens. It is probably of another model, layer or weight processing; see "
                "sae.verify(m, texts). To use it all the same, attach sl.replace(sae, force=True)."
            )

    def _reasons(self) -> list[str]:
        """What is far from the record."""
        found, fixed = [], self.sae.activation.sparse
        factor, extra = _FAR_FVU
        limit = 1.0 if self.fvu is None else min(1.0, factor * self.fvu + extra)
        # with another k than it was trained with it has another fit
        same = not fixed or self.l0 is None or abs(self.active.l0 - self.l0) <= _L0_SLACK * self.l0
        if same and self.seen.value > limit:
            found.append(f"fvu {self.seen.value:.2f}" + ("" if self.fvu is None else f", recorded {self.fvu:.2f}"))
        if not fixed and self.l0 and not 1 / _FAR_L0 <= self.active.l0 / self.l0 <= _FAR_L0:
            found.append(f"l0 {self.active.l0:.1f}, recorded {self.l0:.1f}")
        return found


def watch(sae: SAE, model: Any) -> Watch | None:
    """What judges `sae` in a splice into `model`; None if its file records neither l0 nor fvu."""
    l0, fvu = (sae.metadata.get(key) for key in ("l0", "fvu"))
    return None if l0 is None and fvu is None else Watch(sae, l0, fvu, model)

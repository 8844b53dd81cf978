"""Does an SAE do on this model what its file says? Measured l0 and fvu against the recorded ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparselens.errors import FitError, InputError
from sparselens.sae.sae import SAE
from sparselens.sae.stats import ActiveSum, FvuSum

if TYPE_CHECKING:
    import pandas

# How far the texts at hand may differ from the training texts: a wrong layer or model misses these by far.
_L0_SLACK = 0.3
_FVU_SLACK = (1.5, 0.05)


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

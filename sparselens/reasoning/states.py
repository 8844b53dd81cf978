"""What a live model makes of each step, from one forward pass a chain: dense states and pooled codes of a dictionary.

These are the baselines that a step-level dictionary has to be held against.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.attach import fitting_sites
from sparselens.errors import InputError, NotFiniteError, closest
from sparselens.reasoning.step_latents import StepLatents
from sparselens.reasoning.steps import StepTokens
from sparselens.reasoning.traces import Trace, Traces, as_traces
from sparselens.sae.latents import to_csr

if TYPE_CHECKING:
    from sparselens.models.captured import FlatBatch
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

POOLINGS = ("max", "mean")


@dataclass(frozen=True, eq=False)
class StepStates(Mapping[str, Any]):
    """One row a step, in the order of the traces, for each way to read it; made by `step_states`.

    - "last": the state at the step's last token (float32 `[n_steps, d]`);
    - "mean": the mean over its tokens;
    - "context": the state at the token before it, which has not seen the step; zeros where nothing stands before;
    - "sae": codes of a dictionary, pooled over its tokens (CSR `[n_steps, d_sae]`).

    Attributes:
        traces: the chains.
        matrices: name -> rows.
        tokens: token ids of each step.
        site, model: where the states were read.
    """

    traces: Traces
    matrices: dict[str, Any]
    tokens: list[np.ndarray]
    site: str
    model: str

    def __getitem__(self, name: str) -> Any:
        if name not in self.matrices:
            raise InputError(f"no states are called {name!r}; there are {', '.join(self.matrices)}."
                             f"{closest(name, self.matrices)}")
        return self.matrices[name]

    def __contains__(self, name: object) -> bool:
        return name in self.matrices

    def __iter__(self) -> Iterator[str]:
        return iter(self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        said = ", ".join(f"{name} [{rows.shape[1]}]" for name, rows in self.matrices.items())
        return f"StepStates({len(self.tokens):,} steps at {self.site}: {said})"

    def plus(self, **rows: Any) -> "StepStates":
        """These and other rows of the same steps, `[n_steps, d]` each, such as codes of a step-level dictionary.

        Raises:
            InputError: another number of rows.
        """
        return replace(self, matrices={**self.matrices, **as_rows(rows, len(self.tokens))})

    @property
    def n_tokens(self) -> np.ndarray:
        """Tokens of each step, int64 `[n_steps]`."""
        return np.array([len(ids) for ids in self.tokens], dtype=np.int64)


def as_rows(given: Mapping[str, Any], n_steps: int) -> dict[str, Any]:
    """Rows of steps by name: arrays, tensors and CSR as they are, codes of a `StepSAE` as CSR.

    Raises:
        InputError: another number of rows.
    """
    out = {}
    for name, x in given.items():
        rows = x.matrix if isinstance(x, StepLatents) else x.detach().cpu().numpy() if hasattr(x, "detach") else x
        if rows.shape[0] != n_steps:
            raise InputError(f"{name!r} has {rows.shape[0]} rows, and there are {n_steps} steps.")
        out[name] = rows
    return out


@torch.no_grad()
def step_states(
    traces: Any,
    m: "LiveModel",
    sae: "SAE | None" = None,
    *,
    site: str | None = None,
    pooling: str = "max",
    batch_tokens: int = 2048,
) -> StepStates:
    """Read every step of every chain with a live model, in one forward pass a chain that stops at the site.

    The model reads the question, an end of line, and the chain.

    Args:
        traces: what `read_traces` reads.
        m: the live model.
        sae: a dictionary whose codes are pooled as "sae".
        site: where states are read; the dictionary's site, else the residual stream behind the middle layer.
        pooling: how codes of a step's tokens are pooled, "max" or "mean". Tokens beyond the dictionary's domain (the
            attention sink) are left out.
        batch_tokens: most tokens in a forward pass, padding included.

    Raises:
        InputError: a chain without steps or longer than the model reads, or a step without tokens of its own.
        FitError: a dictionary made for another model or site. NotFiniteError: broken activations.
    """
    traces = as_traces(traces)
    if pooling not in POOLINGS:
        raise InputError(f"pooling={pooling!r} is unknown; valid are {', '.join(POOLINGS)}."
                         f"{closest(pooling, POOLINGS)}")
    if sae is not None:
        site = fitting_sites(sae, m, site)[0]
    site = m.resolve(site or m.sites("blocks.*.hook_resid_post")[m.n_layers // 2])
    coded = coded_chains(traces, m)
    first = np.cumsum([0, *(len(trace) for trace in traces)])
    reader = _Rows(int(first[-1]), m.width(site), sae, pooling)
    for batch in m.stream([tokens.ids for tokens in coded], site, batch_tokens=batch_tokens):
        x = batch[site].float()
        if not bool(torch.isfinite(x).all()):
            raise NotFiniteError(f"the model gives NaN or infinite activations at {site}. Is it damaged, or loaded in "
                                 "float16? Try dtype=torch.float32.")
        places = zip(batch.doc.tolist(), batch.position.tolist(), strict=True)
        step = torch.tensor([coded[doc].step[position] for doc, position in places])
        row = torch.where(step >= 0, torch.as_tensor(first)[batch.doc] + step, -1)
        reader.take(x, row, batch)
    ids = [np.asarray(c.ids)[c.step == s] for c, trace in zip(coded, traces, strict=True) for s in range(len(trace))]
    return StepStates(traces, reader.matrices(), ids, site, m.name)


def coded_chains(traces: Traces, m: "LiveModel") -> list[StepTokens]:
    """The tokens of question and chain of each trace.

    Raises:
        InputError: a chain without steps or longer than the model reads, or a step without tokens of its own.
    """
    return [_coded(trace, number, m) for number, trace in enumerate(traces)]


def _coded(trace: Trace, number: int, m: "LiveModel") -> StepTokens:
    """The tokens of question and chain, checked."""
    name = f"chain {number} (problem {trace.problem[:40]!r})"
    if not len(trace):
        raise InputError(f"{name} has no steps: leave it out, as traces.where(len).")
    coded = trace.steps.align(m.tokenizer, trace.prompt)
    if len(coded.ids) > m.max_length:
        raise InputError(f"{name} has {len(coded.ids):,} tokens with its question, and the model reads "
                         f"{m.max_length:,}. Shorten it or leave it out.")
    missing = set(range(len(trace))) - set(coded.step.tolist())
    if missing:
        raise InputError(f"{name}: step {min(missing)} has no token of its own, since a token spans several steps. "
                         "Cut the chain into larger steps.")
    return coded


class _Rows:
    """Collects the rows of steps batch by batch; a chain lies in one batch.

    Args:
        n_steps, d: rows and width of the dense states.
        sae, pooling: the dictionary, if any, and how its codes are pooled.
    """

    def __init__(self, n_steps: int, d: int, sae: "SAE | None", pooling: str):
        self.dense = {name: np.zeros((n_steps, d), dtype=np.float32) for name in ("last", "mean", "context")}
        self.sae, self.pooling, self.n_steps = sae, pooling, n_steps
        self.codes: list[Any] = []  # (rows of steps, features, values)

    def take(self, x: torch.Tensor, row: torch.Tensor, batch: "FlatBatch") -> None:
        """Add a batch: states `[tokens, d]`, and the row of each token's step, -1 for none."""
        own = (row >= 0).nonzero()[:, 0]
        steps, where, counts = torch.unique(row[own], return_inverse=True, return_counts=True)
        at = steps.numpy()
        held, inside = x.cpu(), x[own.to(x.device)]
        sums = torch.zeros(len(steps), x.shape[1]).index_add_(0, where, inside.cpu())
        self.dense["mean"][at] = (sums / counts[:, None]).numpy()
        bounds = torch.stack([torch.full((len(steps),), len(row)), torch.zeros(len(steps), dtype=torch.long)])
        bounds[0].scatter_reduce_(0, where, own, "amin")
        bounds[1].scatter_reduce_(0, where, own, "amax")
        self.dense["last"][at] = held[bounds[1]].numpy()
        before = bounds[0] - 1
        seen = (before >= 0) & (batch.doc[before.clamp(min=0)] == batch.doc[bounds[0]])
        self.dense["context"][at[seen.numpy()]] = held[before[seen]].numpy()
        if self.sae is not None:
            self._encode(inside, row[own].numpy(), counts[where].numpy())

    def _encode(self, x: torch.Tensor, row: np.ndarray, count: np.ndarray) -> None:
        sae = self.sae
        assert sae is not None
        x = x.to(sae.W_dec.device)
        applies = sae.applies(x)
        kept = applies.cpu().numpy()
        codes = to_csr(sae.encode(x[applies])).tocoo()
        token = np.flatnonzero(kept)[codes.row]
        share = codes.data / count[token] if self.pooling == "mean" else codes.data
        self.codes.append((row[token], codes.col, share))

    def matrices(self) -> dict[str, Any]:
        """What was collected."""
        if self.sae is None:
            return dict(self.dense)
        row, column, value = (np.concatenate(parts) for parts in zip(*self.codes, strict=True))
        return {**self.dense, "sae": pooled(row, column, value, (self.n_steps, self.sae.d_sae), self.pooling)}


def pooled(row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int], pooling: str) -> Any:
    """Entries of tokens pooled to one CSR row a step: the sum, or the value of largest magnitude with its sign."""
    from scipy.sparse import csr_matrix

    if pooling == "max":  # the largest comes last of those with the same place
        order = np.lexsort((np.abs(value), column, row))
        row, column, value = row[order], column[order], value[order]
        last = np.append((row[1:] != row[:-1]) | (column[1:] != column[:-1]), True)[: len(row)]
        row, column, value = row[last], column[last], value[last]
    return csr_matrix((value.astype(np.float32), (row, column)), shape=shape)

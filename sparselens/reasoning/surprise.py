"""How surprised a live model is by each step: the plainest thing it can say about a chain, and a strong baseline."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.reasoning.states import coded_chains
from sparselens.reasoning.traces import as_traces

if TYPE_CHECKING:
    from sparselens.models.live import LiveModel

COLUMNS = ("mean", "max", "sum", "mean_gap", "max_gap", "first", "step_0", "step_1")


@torch.no_grad()
def step_surprise(traces: Any, m: "LiveModel", batch_tokens: int = 2048) -> np.ndarray:
    """Figures of -log p of each step's tokens given all before them, float32 `[n_steps, 8]`, in nats.

    The columns, as `COLUMNS` names them: mean, largest and sum; mean and largest distance to the likeliest token; that
    of the step's first token; and whether it is the first or the second step, where a model is always more surprised.
    One whole forward pass a chain, which costs two to three times that of `step_states`.

    Args:
        traces: what `read_traces` reads.
        m: the live model.
        batch_tokens: most tokens in a forward pass, padding included.

    Raises:
        InputError: as `step_states`.
    """
    traces = as_traces(traces)
    coded = coded_chains(traces, m)
    first = np.cumsum([0, *(len(trace) for trace in traces)])
    out = np.zeros((int(first[-1]), len(COLUMNS)), dtype=np.float32)
    for batch in m.batches([tokens.ids for tokens in coded], batch_tokens=batch_tokens):
        log_p = m.logits(batch)[:, :-1].float().log_softmax(-1)
        said = -log_p.gather(-1, batch.ids[:, 1:, None].to(log_p.device))[..., 0]
        surprise, gap = said.cpu().numpy(), (said + log_p.max(-1).values).cpu().numpy()
        for row, doc in enumerate(batch.doc.tolist()):
            for step in range(len(traces[doc])):
                own = np.flatnonzero(coded[doc].step == step)
                own = own[own > 0] - 1  # the first token of all is not predicted
                if len(own):
                    s, g = surprise[row, own], gap[row, own]
                    figures = (s.mean(), s.max(), s.sum(), g.mean(), g.max(), s[0], step == 0, step == 1)
                    out[first[doc] + step] = figures
    return out

"""Labels of steps from a step-level SAE's own words."""

from typing import Any

import numpy as np

from sparselens.reasoning.arithmetic import final_number
from sparselens.reasoning.traces import as_traces


def reconstruction_labels(traces: Any, ssae: Any, max_new_tokens: int = 64) -> np.ndarray:
    """Whether the last number of each step comes back when a `StepSAE` writes the step again from its code.

    This is how Yang et al. (2026) label GSM8K steps as correct. **It is circular**: a probe of the same codes is then
    asked what the codes keep, not whether the step is right. Give it to `probe_steps(y=...)` to replicate, never as a
    verdict.

    Args:
        traces: what `read_traces` reads.
        ssae: the `StepSAE`.
        max_new_tokens: most tokens of a step that is written again.

    Returns:
        float64 `[n_steps]`: 1 or 0, NaN for steps without a number.
    """
    traces = as_traces(traces)
    given = [final_number(text) for trace in traces for text in trace.steps.texts]
    said = ssae.reconstruct(traces, max_new_tokens=max_new_tokens)
    return np.array([np.nan if number is None else float(final_number(text) == number)
                     for number, text in zip(given, said, strict=True)])

"""The timeline of one chain of thought: read by a live model, scored by probes, opened to tokens and features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.errors import InputError
from sparselens.reasoning.probing import StepProbes
from sparselens.reasoning.states import StepStates, step_states
from sparselens.reasoning.steps import StepTokens
from sparselens.reasoning.traces import Trace, Traces, as_traces
from sparselens.sae.latents import to_csr

if TYPE_CHECKING:
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE
    from sparselens.views.reasoning import ReasoningTimeline


def step_timeline(
    trace: Any,
    m: "LiveModel",
    sae: "SAE | None" = None,
    probes: Any = None,
    *,
    feature: int | None = None,
    descriptions: Mapping[int, str] | None = None,
    top: int = 8,
    **options: Any,
) -> "ReasoningTimeline":
    """Show one chain step by step, with what fires in it and what probes say.

    Args:
        trace: a `Trace`, or what `read_traces` reads as one chain.
        m: the live model.
        sae: a dictionary: the features of a step are those of its tokens, by their largest value.
        probes: a table from `probe_steps`, or name -> fitted `StepProbe`. Used are those whose rows can be read here:
            "last", "mean", "context" and "sae". The chain should be of a problem that they were not fitted on.
        feature: whose values mark the tokens; each step's strongest if None.
        descriptions: what features are about.
        top: features of a step.
        **options: as for `views.timeline_view`, such as `other=`, another timeline to lay beside this one.

    Raises:
        InputError: several chains, or no probe that can be read here. Others as `step_states`.
    """
    from sparselens.views.reasoning import timeline_view

    traces = Traces([trace]) if isinstance(trace, Trace) else as_traces(trace)
    if len(traces) != 1:
        raise InputError(f"there are {len(traces)} chains; a timeline shows one, as traces[0].")
    one = traces[0]
    states = step_states(traces, m, sae)
    scores, ranges = _scores(states, probes)
    features, tokens = ([], None) if sae is None else _opened(one, m, sae, states, feature, descriptions or {}, top)
    title = " on ".join(filter(None, (one.model, one.problem)))[:100]
    return timeline_view(
        one.steps.texts, scores, **{"ranges": ranges, "labels": one.labels, "verdict": one.verdict, "tokens": tokens,
                                    "features": features or None, "question": one.question, "title": title, **options})


def _scores(states: StepStates, probes: Any) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    if probes is None:
        return {}, {}
    given = dict(probes.probes if isinstance(probes, StepProbes) else probes)
    chosen = {name: probe for name, probe in given.items() if name in states}
    if not chosen:
        raise InputError(f"of the probes {', '.join(given) or '(none)'} none reads what is read here: "
                         f"{', '.join(states)}. Give scores to views.timeline_view yourself.")
    scores = {name: probe.predict_proba(states[name])[:, 1] for name, probe in chosen.items()}
    ranges = {name: p.predict_range(states[name]) for name, p in chosen.items() if p.kind == "linear"}
    return scores, ranges


@torch.no_grad()
def _opened(
    trace: Trace, m: "LiveModel", sae: "SAE", states: StepStates, feature: int | None,
    descriptions: Mapping[int, str], top: int,
) -> tuple[list, list]:
    """For each step its strongest features, and its tokens with the value of one of them."""
    text = trace.prompt + trace.text
    coded: StepTokens = trace.steps.align(m.tokenizer, trace.prompt)
    ends = [end for _, end in coded.offsets]
    x = next(iter(m.stream([coded.ids], states.site))).values.float()
    codes = np.zeros((len(coded.ids), sae.d_sae), dtype=np.float32)
    applies = sae.applies(x)
    codes[applies.cpu().numpy()] = to_csr(sae.encode(x[applies])).toarray()
    features, tokens = [], []
    for step in range(len(trace)):
        row = states["sae"][step].toarray()[0]
        best = [int(f) for f in np.argsort(-np.abs(row), kind="stable")[:top] if row[f]]
        features.append([(f, descriptions.get(f, ""), float(row[f])) for f in best])
        own = np.flatnonzero(coded.step == step)
        shown = feature if feature is not None else best[0] if best else 0
        # a token's text reaches from the end of the one before it, so that spaces are kept
        pieces = [text[ends[i - 1] if i else 0 : ends[i]] for i in own]
        tokens.append((pieces, codes[own, shown]))
    return features, tokens

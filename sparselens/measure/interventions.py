"""Steering by hand: set features, and hold the model's answer against that of the untouched model."""

from collections.abc import Callable, Mapping, Sequence
from math import floor, log10
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.attach import fitting_places, steer
from sparselens.errors import InputError
from sparselens.measure.metrics import kl_per_token
from sparselens.sae.latents import Latents

if TYPE_CHECKING:
    import pandas

    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE
    from sparselens.views.panel import InterventionPanel, Knob

Values = Mapping[int, float | int]
_TIMES = 4  # the end of a slider, in medians of what fires on the prompt


def intervention_panel(
    m: "LiveModel",
    sae: "SAE",
    features: Sequence[int],
    prompt: str = "Yesterday I went to the",
    *,
    labels: Mapping[int, str] | None = None,
    values: Values | None = None,
    most: float | int | None = None,
    chat: bool = False,
    max_new_tokens: int = 40,
) -> "InterventionPanel":
    """Set features of a dictionary by hand and read the answer beside the untouched model's.

    The model answers greedily, so that all of the difference is the features' doing.

    Args:
        m: a live model.
        sae: a dictionary for it.
        features: which features get a slider.
        prompt: what the model is asked.
        labels: what features are about, by number.
        values: what they are set to at first, by number; others are left to the model.
        most: the end of the sliders; by default four times the median value that fires on the prompt, rounded.
        chat: ask as a user in a chat, instead of letting the model write on.
        max_new_tokens: most tokens of an answer.

    Returns:
        A panel: `.run({feature: value})` answers at once, `.explore()` is live, `.to_frame()` has the numbers a token.

    Raises:
        InputError: no such feature. FitError: the dictionary does not fit the model.

    Example:
        >>> sl.intervention_panel(m, sae, [41], "My favourite food is").run({41: 60.0})
    """
    from sparselens.views import panel_view

    reads, _ = fitting_places(sae, m, None)
    names = dict(labels or {})
    start = dict(values or {})

    def asked(text: str) -> Any:
        return [{"role": "user", "content": text}] if chat else text

    end, signed = _range(m, sae, reads, asked(prompt))
    end = end if most is None else float(most)

    def find(feature: int) -> "Knob":
        return _knob(sae, feature, names, end, signed)

    def answer(chosen: Values, text: str, say: Callable[[str], None]) -> None:
        with m.untouched(), m.attach(_steered(sae, chosen)):
            m.generate(asked(text), max_new_tokens, on_text=say)

    def measure(chosen: Values, text: str, untouched: str, steered: str) -> "pandas.DataFrame":
        return compare_answers(m, _steered(sae, chosen), asked(text), untouched, steered)

    def code(chosen: Values, text: str) -> str:
        return (f"with m.attach(sl.steer(sae, {list(chosen)}, {list(chosen.values())})):\n"
                f"    print(m.generate({asked(text)!r}, max_new_tokens={max_new_tokens}))")

    wanted = [int(f) for f in dict.fromkeys([*features, *start])]
    knobs = [find(f)._replace(value=start.get(f)) for f in wanted]
    return panel_view(knobs, prompt, answer=answer, measure=measure, code=code, find=find,
                      title=f"{m.name}: features set by hand")


def _steered(sae: "SAE", values: Values) -> Any:
    return steer(sae, list(values), list(values.values())) if values else []


def _knob(sae: "SAE", feature: int, names: Mapping[int, str], end: float, signed: bool) -> "Knob":
    from sparselens.views import Knob

    if not 0 <= feature < sae.d_sae:
        raise InputError(f"feature {feature} does not exist: this SAE has features 0 to {sae.d_sae - 1}.")
    return Knob(feature, str(names.get(feature, "")), -end if signed else 0.0, end)


@torch.no_grad()
def _range(m: "LiveModel", sae: "SAE", reads: list[str], prompt: Any) -> tuple[float, bool]:
    """The end of a slider, from what fires on the prompt; and whether codes have signs."""
    captured = m.capture(prompt, reads)
    x = torch.cat([captured[site] for site in reads], dim=-1)[captured.mask]
    codes = sae.encode(x[sae.applies(x)])
    values = codes.values if isinstance(codes, Latents) else codes
    values = values[values != 0].float()
    if not len(values):
        return 10.0, False
    wide = _TIMES * float(values.abs().median())
    step = 10 ** floor(log10(wide))
    return next(float(step * k) for k in (1, 2, 5, 10) if step * k >= wide), bool((values < 0).any())


@torch.no_grad()
def compare_answers(m: "LiveModel", thing: Any, prompt: Any, untouched: str, changed: str) -> "pandas.DataFrame":
    """Numbers about two answers to a prompt, a row a token.

    Args:
        m: a live model.
        thing: the attachment under which `changed` was written; `[]` for none.
        prompt: a text or a chat.
        untouched, changed: the answers without and with it.

    Returns:
        Columns `side` ("untouched" or "steered"), `position` in the answer, `token`, `logprob` (nats, by the untouched
        model) and `kl` (nats, from the untouched to the changed model where this token is predicted; NaN on the
        changed answer).
    """
    import pandas as pd

    parts = []
    for side, text in (("untouched", untouched), ("steered", changed)):
        ids, start = _joined(m, prompt, text)
        new = ids[0, start:]
        if not len(new):
            continue
        with m.untouched():
            clean = m.run(ids).logits[:, start - 1 : -1].cpu()
            kl = torch.full((len(new),), float("nan"))
            if side == "untouched":
                with m.attach(thing):
                    kl = kl_per_token(clean, m.run(ids).logits[:, start - 1 : -1].cpu(), torch.ones(1, len(new)) > 0)
        logprob = clean[0].float().log_softmax(-1).gather(-1, new[:, None])[:, 0]
        tokens = [m.tokenizer.decode([i]) for i in new.tolist()]
        parts.append(pd.DataFrame({"side": side, "position": range(len(new)), "token": tokens,
                                   "logprob": logprob.numpy(), "kl": kl.numpy()}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(
        columns=["side", "position", "token", "logprob", "kl"])


def _joined(m: "LiveModel", prompt: Any, answer: str) -> tuple[Int[Tensor, "1 pos"], int]:
    """The token ids of a prompt and an answer, `[1, pos]`, and where the answer begins."""
    row = m.reader.rows([prompt], 0, role=None, max_length=None, long="error", empty="error", generation=True)[0]
    new = m.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
    return torch.tensor([[*row.ids, *new]]), len(row.ids)

"""Writing steps from codes: in their own context, or in another problem's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import InputError, NotFiniteError

if TYPE_CHECKING:
    import pandas

    from sparselens.reasoning.ssae import StepSAE

_TOGETHER = 16  # rows written at once


def pairs_of(data: Any) -> list[tuple[str, str]]:
    """(context, step) pairs of `Traces`, or the pairs themselves."""
    items = list(data)
    if items and all(hasattr(item, "context") for item in items):
        return [(t.context(i), text) for t in items for i, text in enumerate(t.steps.texts)]
    return [(str(context), str(step)) for context, step in items]


def check_codes(ssae: "StepSAE", z: Tensor, rows: int) -> None:
    """Are these codes `[rows, n]` that a decoder can read?

    Raises:
        InputError: another shape. NotFiniteError: NaN or infinite numbers.
    """
    if z.shape != (rows, ssae.n_latents):
        raise InputError(f"codes have the shape {list(z.shape)}; {[rows, ssae.n_latents]} is needed.")
    if not bool(torch.isfinite(z).all()):
        raise NotFiniteError("the codes hold NaN or infinite numbers.")


def write(ssae: "StepSAE", z: Float[Tensor, "b n"] | None, contexts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Write a step after each context, from codes or without a prefix."""
    tokenizer = ssae.model.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer: use `write_ids` with token ids.")
    ids = tokenizer(list(contexts), add_special_tokens=False, verbose=False)["input_ids"]
    ids = [row[-ssae.max_context :] if ssae.max_context else [] for row in ids]
    rows = write_ids(ssae, z, ids, tokenizer.eos_token_id, max_new_tokens)
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


@torch.no_grad()
def write_ids(ssae: "StepSAE", z: Float[Tensor, "b n"] | None, contexts: Sequence[list[int]], end: int,
              max_new_tokens: int) -> list[list[int]]:
    """Write on, the likeliest token each time, until the end token, which is left out.

    Args:
        ssae: whose decoder writes.
        z: a code for each context; None for no prefix.
        contexts: token ids of each context; may be empty.
        end: id of the end token.
        max_new_tokens: most tokens of a step.

    Raises:
        InputError: not as many codes as contexts. NotFiniteError: codes that are NaN or infinite.
    """
    if z is not None:
        check_codes(ssae, z, len(contexts))
    out: list[list[int]] = []
    for at in range(0, len(contexts), _TOGETHER):
        part = slice(at, at + _TOGETHER)
        out += _greedy(ssae, None if z is None else z[part].to(ssae.b_enc), contexts[part], end, max_new_tokens)
    return out


def _greedy(ssae: "StepSAE", z: Tensor | None, contexts: Sequence[list[int]], end: int, most: int) -> list[list[int]]:
    decoder = ssae.decoder
    embeds, mask = _start(ssae, z, contexts)
    with decoder.ready() as module:
        found = module.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=most, do_sample=False,
                                temperature=None, top_p=None, top_k=None, eos_token_id=end, pad_token_id=end)
    rows = found.tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def _start(ssae: "StepSAE", z: Tensor | None, contexts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Embeddings of context and separator, the prefix in its place, padded on the left; and their mask."""
    from sparselens.reasoning.step_data import StepDataset

    given = contexts if ssae.condition_on_context else [[] for _ in contexts]
    batch = StepDataset(given, [[0]] * len(given), 0).batch(range(len(given))).to(ssae.b_enc.device)
    whole = ssae.decoder.embed(batch)
    first = ssae.prefix(z, len(given)).to(whole.dtype)
    rows = []
    for i, sep in enumerate(batch.sep.tolist()):
        own = whole[i, : sep + 1]
        rows.append(torch.cat([own, first[i]] if ssae.place == "step" else [first[i], own]))
    width = max(map(len, rows))
    embeds = torch.stack([torch.cat([row.new_zeros(width - len(row), row.shape[1]), row]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
    return embeds, (torch.arange(width, device=embeds.device) >= width - lengths[:, None]).long()


@dataclass(frozen=True)
class StepSwap:
    """What `swap_steps` gives: every code put into every problem.

    Attributes:
        steps: the steps whose codes were taken, as (context, step).
        contexts: the problems they were put into.
        texts: `texts[i][j]` is what code i writes in context j.
        own: what each code writes in its own context.
        plain: what the decoder writes in each context without a code.
    """

    steps: list[tuple[str, str]]
    contexts: list[str]
    texts: list[list[str]]
    own: list[str]
    plain: list[str]

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a step and problem: `step`, `context` (its end), `own`, `swapped`, `without_code`."""
        import pandas as pd

        rows = [(step, context, self.own[i], self.texts[i][j], self.plain[j])
                for i, (_, step) in enumerate(self.steps) for j, context in enumerate(self.contexts)]
        return pd.DataFrame(rows, columns=["step", "context", "own", "swapped", "without_code"])

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        tables = []
        for j, context in enumerate(self.contexts):
            rows = [("step", "in its own problem", "in this problem")]
            rows += [(step, self.own[i], self.texts[i][j]) for i, (_, step) in enumerate(self.steps)]
            tables.append(report_html(context.strip()[-200:], [*rows, ("(no code)", "", self.plain[j])]))
        return "".join(tables)


def swap_steps(ssae: "StepSAE", steps: Any, contexts: str | Sequence[str], max_new_tokens: int = 64) -> StepSwap:
    """Put the codes of steps into other problems, and let the decoder write there.

    What a code carries shows as what stays the same; what it leaves to the context changes with the problem.

    Args:
        ssae: a trained step-level SAE.
        steps: (context, step) pairs, or `Traces`.
        contexts: one problem, or several: a question and, if wanted, steps after it.
        max_new_tokens: most tokens of a step that is written.

    Raises:
        InputError: no steps or no contexts.
    """
    pairs, places = pairs_of(steps), [contexts] if isinstance(contexts, str) else list(contexts)
    if not pairs or not places:
        raise InputError("a swap needs at least one step and one context to put it into.")
    z = ssae.transform(pairs).z
    own = ssae.generate(z, [context for context, _ in pairs], max_new_tokens)
    flat = ssae.generate(z.repeat_interleave(len(places), 0), places * len(pairs), max_new_tokens)
    texts = [flat[i * len(places) : (i + 1) * len(places)] for i in range(len(pairs))]
    return StepSwap(pairs, places, texts, own, ssae.generate(None, places, max_new_tokens))

"""Masked diffusion language models: answers that appear in any order, some tokens a step, read in both directions."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.errors import FitError, InputError
from sparselens.files import read_json, write_whole
from sparselens.models.engine import Denoising
from sparselens.models.live import LiveModel
from sparselens.models.tiny import IGNORE, Example

if TYPE_CHECKING:
    import pandas


def masked(
    ids: Int[Tensor, "b pos"], prompt: int, mask_id: int, generator: torch.Generator, least: float = 0.05
) -> Example:
    """Hide answers for training, as LLaDA does (arXiv 2502.09992): a share t of each row, and a weight of 1/t.

    The loss of a row, `sum of cross-entropies / (t * length)`, bounds the answer's negative log-likelihood per token.

    Args:
        ids: prompts with their answers.
        prompt: tokens of the prompt, which are never hidden.
        mask_id: the token that hides.
        generator: seeded.
        least: smallest share; a smaller one would weigh single tokens too much.
    """
    share = torch.rand(len(ids), 1, generator=generator) * (1 - least) + least
    hide = torch.rand(ids.shape, generator=generator) < share
    hide[:, :prompt] = False
    targets = ids.masked_fill(~hide, IGNORE)
    weights = 1 / (share * (ids.shape[1] - prompt))
    return Example(ids.masked_fill(hide, mask_id), targets, weights.expand(ids.shape))


@dataclass(frozen=True)
class Generation:
    """Answers of a diffusion model, and when each token was decided.

    Attributes:
        ids: `[b, pos]` prompts with answers.
        prompt: tokens of the prompt.
        step: `[b, pos - prompt]` at which step each token of the answer was decided.
        confidence: `[b, pos - prompt]` its probability then.
    """

    ids: Int[Tensor, "b pos"]
    prompt: int
    step: Int[Tensor, "b answer"]
    confidence: Float[Tensor, "b answer"]

    @property
    def answers(self) -> Int[Tensor, "b answer"]:
        """The answers alone."""
        return self.ids[:, self.prompt :]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a token of an answer: row, position, token, step, confidence."""
        import pandas as pd

        b, n = self.step.shape
        rows = torch.arange(b).repeat_interleave(n)
        return pd.DataFrame({
            "row": rows.numpy(), "position": torch.arange(self.prompt, self.prompt + n).repeat(b).numpy(),
            "token": self.answers.flatten().cpu().numpy(), "step": self.step.flatten().cpu().numpy(),
            "confidence": self.confidence.flatten().cpu().numpy(),
        })

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        b, n = self.step.shape
        return report_html("Generation", [["answers", b], ["tokens each", n], ["steps", int(self.step.max()) + 1],
                                          ["mean confidence", float(self.confidence.mean())]])


class DiffusionLM:
    """A bidirectional live model that fills in masks, with the sampler of LLaDA.

    Attachments on `live` are seen by it; in its passes `context.denoising` tells step, steps and prompt.

    Args:
        live: a bidirectional model; see `models.tiny_lm(causal=False)` and `models.load_diffusion`.
        mask_id: the token that hides.
        shifted: whether the model says the token at a position one position earlier, as Dream does.

    Raises:
        FitError: the model is causal.
        InputError: the mask is no token of the model.
    """

    def __init__(self, live: LiveModel, mask_id: int, *, shifted: bool = False):
        if live.causal:
            raise FitError(f"{live.name} is causal: a diffusion model must see both sides. Use models.bidirectional.")
        if not 0 <= mask_id < live.vocab_size:
            raise InputError(f"mask_id={mask_id} is no token: the model has tokens 0 to {live.vocab_size - 1}.")
        self.live, self.mask_id, self.shifted = live, mask_id, shifted

    def __repr__(self) -> str:
        return f"DiffusionLM({self.live!r}, mask_id={self.mask_id})"

    @torch.no_grad()
    def logits(self, ids: Int[Tensor, "b pos"], denoising: Denoising | None = None) -> Float[Tensor, "b pos vocab"]:
        """What the model would say at each position, under whatever is attached; never the mask."""
        engine = self.live._engine
        with engine.lock:
            before, engine.run.denoising = engine.run.denoising, denoising
            try:
                out = self.live.module(input_ids=ids.to(self.live.device), use_cache=False).logits.float()
            finally:
                engine.run.denoising = before
        if self.shifted:
            out = torch.cat([out[:, :1], out[:, :-1]], 1)
        out[..., self.mask_id] = -torch.inf
        return out

    def save(self, folder: str | os.PathLike) -> None:
        """Write model and mask to a folder that `models.load_diffusion` reads; it appears whole or not at all."""
        with write_whole(folder, folder=True) as temporary:
            self.live.module.save_pretrained(temporary)
            config = read_json(temporary / "config.json") | {"mask_token_id": self.mask_id}
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            if self.live.tokenizer is not None:
                self.live.tokenizer.save_pretrained(temporary)

    def generate(
        self,
        prompt: Int[Tensor, "b p"],
        new_tokens: int,
        *,
        steps: int | None = None,
        block: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        on_step: Callable[[Denoising, Tensor], None] | None = None,
    ) -> Generation:
        """Write answers, the most confident tokens first.

        Args:
            prompt: token ids, all of one length.
            new_tokens: length of the answers.
            steps: forward passes; one for each token by default. Fewer decide several tokens at once.
            block: tokens of the answer that are filled before the next ones are begun; all at once by default.
            temperature: 0 takes the likeliest token; above, tokens are drawn.
            seed: of the drawing.
            on_step: called after each step with where it is and the tokens so far.

        Raises:
            InputError: lengths or steps that cannot be shared out.
        """
        steps, block = new_tokens if steps is None else steps, new_tokens if block is None else block
        rounds = _rounds(new_tokens, steps, block, prompt.shape[1], self.live.max_length)
        generator = torch.Generator().manual_seed(seed)
        p, device = prompt.shape[1], self.live.device
        hidden = torch.full((len(prompt), new_tokens), self.mask_id, dtype=prompt.dtype)
        ids = torch.cat([prompt, hidden], 1).to(device)
        when, sure = torch.zeros_like(ids), torch.zeros(ids.shape, device=device)
        for t, (stop, count) in enumerate(rounds):
            now = Denoising(t, steps, p)
            probability = self.logits(ids, now).softmax(-1)
            token = _chosen(probability, temperature, generator)
            confidence = probability.gather(-1, token[..., None])[..., 0]
            open_ = ids == self.mask_id
            open_[:, :p] = False
            open_[:, stop:] = False
            taken = _most_sure(confidence, open_, count)
            ids = torch.where(taken, token, ids)
            when, sure = when.masked_fill(taken, t), torch.where(taken, confidence, sure)
            if on_step is not None:
                on_step(now, ids)
        return Generation(ids, p, when[:, p:], sure[:, p:])


def _rounds(new_tokens: int, steps: int, block: int, prompt: int, longest: int) -> Iterator[tuple[int, int]]:
    """For each step the end of the active block and how many tokens to decide; all are decided in the end."""
    if new_tokens < 1 or prompt + new_tokens > longest:
        raise InputError(f"a prompt of {prompt} and {new_tokens} new tokens: at least one must be new, and both "
                         f"together at most {longest}.")
    if block < 1 or new_tokens % block:
        raise InputError(f"block={block} does not divide the {new_tokens} new tokens.")
    blocks = new_tokens // block
    if steps < blocks or steps % blocks or steps // blocks > block:
        raise InputError(f"steps={steps} cannot be shared out over {blocks} blocks of {block} tokens: give a multiple "
                         f"of {blocks}, at most {new_tokens}.")
    each = steps // blocks
    base, rest = divmod(block, each)
    return iter([(prompt + block * (b + 1), base + (t < rest)) for b in range(blocks) for t in range(each)])


def _chosen(probability: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """The likeliest tokens, or drawn ones: the largest of log p / temperature plus Gumbel noise."""
    if temperature <= 0:
        return probability.argmax(-1)
    noise = torch.rand(probability.shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    gumbel = -torch.log(-torch.log(noise)).to(probability.device)
    return (probability.double().log() / temperature + gumbel).argmax(-1)


def _most_sure(confidence: Tensor, open_: Bool[Tensor, "b pos"], count: int) -> Bool[Tensor, "b pos"]:
    """The `count` positions of each row that are open and most confident; of equals the earlier."""
    order = confidence.masked_fill(~open_, -torch.inf).argsort(dim=-1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(open_).scatter(1, order, True) & open_

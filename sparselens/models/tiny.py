"""A small language model to train from scratch: any attention or MLP can be put into it, and all else stays equal."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.errors import FitError, InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

IGNORE = -100  # a target that is not learnt


class Example(NamedTuple):
    """One batch to learn from.

    Attributes:
        ids: `[b, pos]` what the model reads.
        targets: `[b, pos]` what it should say at each position; `IGNORE` where nothing is asked.
        weights: `[b, pos]` how much each answer adds to the loss of its row; None takes the mean over all answers.
    """

    ids: Int[Tensor, "b pos"]
    targets: Int[Tensor, "b pos"]
    weights: Float[Tensor, "b pos"] | None = None


class Plugged(nn.Module):
    """An attention of one's own where the host had one.

    Args:
        inner: takes `[b, pos, d_model]`, gives the same shape, or `(that, loss)` with a loss to be added in training.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.aux: Tensor | None = None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None:
            raise FitError("an attention that was put into a tiny model reads rows of one length only: this batch is "
                           "padded. Give texts one at a time, or rows of equal length.")
        if past_key_values is not None:
            raise FitError("an attention that was put into a tiny model has no cache here: pass use_cache=False.")
        out = self.inner(hidden_states)
        out, self.aux = out if isinstance(out, tuple) else (out, None)
        return out, None


def tiny_lm(
    vocab_size: int,
    *,
    d_model: int = 128,
    n_layers: int = 4,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    d_ff: int | None = None,
    length: int = 256,
    causal: bool = True,
    attention: Callable[[int], nn.Module] | None = None,
    mlp: Callable[[int], nn.Module] | None = None,
    seed: int = 0,
) -> Any:
    """A small transformers Llama (RMS norm, rotary positions, gated MLP, tied embeddings) with fresh weights.

    `sl.wrap` opens it like any model, so whatever goes on a live model goes on this one.

    Args:
        vocab_size: number of tokens.
        d_model, n_layers, n_heads, n_kv_heads: sizes; as many key heads as query heads by default.
        d_ff: hidden units of the MLP; 8/3 of `d_model` by default.
        length: longest row.
        causal: False lets every position see all others, as in BERT and in masked diffusion models.
        attention, mlp: called with the index of a layer, gives the module to use there in place of the host's.
            It takes `[b, pos, d_model]` and gives the same; an attention looks after positions and causality itself.
        seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if d_model % n_heads or (d_model // n_heads) % 2:
        raise InputError(f"d_model {d_model} must be n_heads ({n_heads}) times an even number.")
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=d_model, num_hidden_layers=n_layers, num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads or n_heads, intermediate_size=d_ff or 8 * d_model // 3,
        max_position_embeddings=length, tie_word_embeddings=True, use_cache=attention is None and causal,
        rope_parameters={"rope_type": "default", "rope_theta": float(length)},  # slowest turn: six lengths
        initializer_range=(3 * d_model) ** -0.5,  # as nn.Linear has, so that modules put in start alike
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for i, layer in enumerate(model.model.layers):
            if attention is not None:
                layer.self_attn = Plugged(attention(i))
            if mlp is not None:
                layer.mlp = mlp(i)
    return model.eval() if causal else bidirectional(model).eval()


def bidirectional(model: Any) -> Any:
    """Let every position of a transformers decoder see all others. Changes the model, and returns it.

    Raises:
        FitError: its attention does not say whether it is causal, so it cannot be told otherwise.
    """
    layers = [module for module in model.modules() if hasattr(module, "is_causal") or isinstance(module, Plugged)]
    if not layers:
        raise FitError(f"{type(model).__name__} does not say where it is causal, so it cannot be made bidirectional.")
    model.config.is_causal = False
    for layer in layers:
        layer.is_causal = False
    return model


def n_parameters(model: nn.Module) -> int:
    """Number of weights; those that two modules share count once."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Training:
    """How a training went. Made by `train_lm`.

    Attributes:
        losses: mean loss in nats of each step, the added losses left out.
        seconds: wall-clock time.
    """

    losses: tuple[float, ...]
    seconds: float

    def to_frame(self) -> "pandas.DataFrame":
        """A row a step: step, loss."""
        import pandas as pd

        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the loss over steps. Returns the axes."""
        from sparselens.views import curve_figure

        return curve_figure({"loss": list(enumerate(self.losses, 1))}, ax, y="nats").axes[0]

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        rows = [["steps", len(self.losses)], ["first loss", self.losses[0]], ["last loss", self.losses[-1]],
                ["seconds", self.seconds]]
        return report_html("Training", rows)


def train_lm(
    model: Any,
    examples: Iterable[Example],
    steps: int,
    *,
    lr: float = 3e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    on_step: Callable[[int, float], None] | None = None,
) -> Training:
    """Train a tiny model: AdamW, a linear warm-up, a cosine to a tenth, gradients clipped to norm 1.

    All chance is in the model's weights and in the examples: with both seeded the run repeats.

    Args:
        model: from `tiny_lm`.
        examples: batches, at least `steps` of them; see `next_token` and `models.diffusion.masked`.
        steps: how many to take.
        lr: highest learning rate.
        warmup: share of the steps that the rate rises.
        weight_decay: on matrices.
        on_step: called with the step, from 1 on, and its loss.

    Raises:
        InputError: no step, or too few examples.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: train for at least one step.")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rising = max(1, round(warmup * steps))
    losses, start, source = [], time.perf_counter(), iter(examples)
    model.train()
    for step in range(steps):
        example = next(source, None)
        if example is None:
            raise InputError(f"there were {step} batches to learn from, and {steps} steps to take.")
        falling = 0.55 + 0.45 * float(torch.cos(torch.tensor(torch.pi * (step - rising) / max(1, steps - rising))))
        for group in optimiser.param_groups:
            group["lr"] = lr * (min(1.0, (step + 1) / rising) if step < rising else falling)
        loss = lm_loss(model, example)
        added = [m.aux for m in model.modules() if isinstance(m, Plugged) and m.aux is not None]
        optimiser.zero_grad(set_to_none=True)
        (loss + sum(added)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step + 1, losses[-1])
    model.eval()
    return Training(tuple(losses), time.perf_counter() - start)


def lm_loss(model: Any, example: Example) -> Float[Tensor, ""]:
    """Cross-entropy in nats: the mean over all targets, or with weights the sum over a row, averaged over rows."""
    logits = model(input_ids=example.ids, use_cache=False).logits.float()
    if example.weights is None:
        return nn.functional.cross_entropy(logits.flatten(0, 1), example.targets.flatten(), ignore_index=IGNORE)
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), example.targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return (each * example.weights.flatten()).sum() / len(example.ids)


@torch.no_grad()
def lm_scores(model: Any, examples: Iterable[Example]) -> tuple[float, float]:
    """Mean loss in nats and share of right answers, over all positions that have a target."""
    loss, right, count = 0.0, 0, 0
    for example in examples:
        asked = example.targets != IGNORE
        logits = model(input_ids=example.ids, use_cache=False).logits[asked].float()
        loss += float(nn.functional.cross_entropy(logits, example.targets[asked], reduction="sum"))
        right += int((logits.argmax(-1) == example.targets[asked]).sum())
        count += int(asked.sum())
    return loss / max(count, 1), right / max(count, 1)


def next_token(ids: Int[Tensor, "b pos"], ask: Tensor | None = None) -> Example:
    """A batch for causal models: at each position the target is the token after it.

    Args:
        ids: rows of tokens.
        ask: bool `[b, pos]`, True at tokens that are to be predicted; all by default.
    """
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = ids[:, 1:]
    if ask is not None:
        targets[:, :-1] = targets[:, :-1].masked_fill(~ask[:, 1:], IGNORE)
    return Example(ids, targets)


def windows(tokens: Int[Tensor, "n"], length: int, batch: int, seed: int = 0) -> Iterator[Example]:
    """Batches of windows at random places of a long row of tokens, without end, for causal models.

    Raises:
        InputError: fewer tokens than one window.
    """
    if len(tokens) < length:
        raise InputError(f"{len(tokens)} tokens are fewer than one window of {length}.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(tokens) - length + 1, (batch, 1), generator=generator)
        yield next_token(tokens[starts + torch.arange(length)])

"""Small language models on characters, all alike but for their attention."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from torch import nn

import sparselens as sl
from sparselens.models.tiny import lm_scores, n_parameters, next_token, tiny_lm, train_lm, windows

D, LAYERS, HEADS, LENGTH, BATCH = 64, 2, 4, 128, 8


def characters() -> tuple[str, torch.Tensor, torch.Tensor, int]:
    """What the text is, tokens to learn from, tokens held out `[rows, LENGTH]`, and the number of characters.

    WikiText-2 (`wikitext-2/valid.txt.gz` below the folder that SPARSELENS_TEXTS names), else the project's answers.
    """
    folder = os.environ.get("SPARSELENS_TEXTS")
    if folder:
        with gzip.open(Path(folder) / "wikitext-2" / "valid.txt.gz", "rt", encoding="utf-8") as file:
            text, name = file.read(400_000), "characters of WikiText-2"
    else:
        both = [sl.datasets.load_answers(voice)["answer"] for voice in ("formal", "chatty")]
        text, name = "\n\n".join("\n\n".join(pair) for pair in zip(*both, strict=True)), "characters of the answers"
    alphabet = sorted(set(text))
    place = {c: i for i, c in enumerate(alphabet)}
    tokens = torch.tensor([place[c] for c in text])
    cut = len(tokens) * 9 // 10
    held = tokens[cut:][: 64 * LENGTH].unflatten(0, (-1, LENGTH))
    return name, tokens[:cut], held, len(alphabet)


def held_out_loss(
    attention: Callable[[int], nn.Module], seed: int, steps: int, text: tuple, d_ff: int | None = None
) -> float:
    """Nats per character on held-out text after training."""
    _, tokens, held, size = text
    model = tiny_lm(size, d_model=D, n_layers=LAYERS, n_heads=HEADS, length=LENGTH, attention=attention, d_ff=d_ff,
                    seed=seed)
    train_lm(model, windows(tokens, LENGTH, BATCH, seed), steps)
    return lm_scores(model, [next_token(rows) for rows in held.split(16)])[0]


def equal_width(attention: Callable[[int], nn.Module], parameters: int, size: int) -> int:
    """Hidden units of the MLP with which a model has about so many parameters in all."""
    made = [n_parameters(tiny_lm(size, d_model=D, n_layers=LAYERS, n_heads=HEADS, attention=attention, d_ff=width))
            for width in (8, 16)]
    each = (made[1] - made[0]) / 8
    return max(8, round(8 + (parameters - made[0]) / each))


def told(losses: dict[str, list[float]]) -> str:
    """Mean loss of each, in words."""
    return "; ".join(f"{name} {mean(found):.3f}" for name, found in losses.items())


def widest(losses: dict[str, list[float]]) -> float:
    """Largest difference between seeds."""
    return max(max(found) - min(found) for found in losses.values())

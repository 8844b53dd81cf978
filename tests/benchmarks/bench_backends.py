"""Streaming activations against the bare forward pass stopped at the same layer, on every backend; and padding.

Process CPU time, one thread, minimum over interleaved rounds, on the packaged model.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import torch

import sparselens as sl

LAYER, ROUNDS = 15, 4
SITE = f"blocks.{LAYER}.hook_resid_post"
TARGETS = {"torch": 0.95, "nnsight": 0.95, "transformer_lens": 0.85}


class _Stop(BaseException):
    pass


def _bare(model: torch.nn.Module, ids: torch.Tensor) -> None:
    """A transformers forward pass with one hook that copies the residual stream and stops."""

    def hook(_module, _args, output):
        output.clone()
        raise _Stop

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    with torch.no_grad(), suppress(_Stop):
        model(input_ids=ids, use_cache=False)
    handle.remove()


def _seconds(tasks: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Least CPU seconds of each task over interleaved rounds."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            best[name] = min(best[name], time.process_time() - start)
    return best


def run() -> list[dict]:
    """Rows of the benchmark table."""
    torch.set_num_threads(1)
    plain = sl.load_model()
    native = plain.native
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (16, 128), generator=generator)
    models = {b: plain if b == "torch" else sl.wrap(native, plain.tokenizer, backend=b) for b in TARGETS}
    tasks: dict[str, Callable[[], object]] = {"bare": lambda: _bare(native, ids)}
    for backend, m in models.items():
        tasks[backend] = lambda m=m: list(m.stream(ids, SITE, batch_tokens=2048))
    found = _seconds(tasks)
    speed = {name: ids.numel() / seconds for name, seconds in found.items()}
    out = [
        {
            "name": f"stream to layer {LAYER}, {backend}",
            "ours": speed[backend],
            "baseline": speed["bare"],
            "unit": "tokens per CPU second",
            "target": f">= {target}",
        }
        for backend, target in TARGETS.items()
    ]
    return [*out, _padding(plain, generator)]


def _padding(m: sl.LiveModel, generator: torch.Generator) -> dict:
    """Texts of lognormal length against the same number of tokens packed into rows of 128."""
    lengths = torch.empty(160).log_normal_(4.2, 0.7, generator=generator).round().clamp(13, 256).long().tolist()
    texts = [torch.randint(100, 40_000, (n,), generator=generator).tolist() for n in lengths]
    flat = [i for text in texts for i in text]
    packed = [flat[i : i + 128] for i in range(0, len(flat) - 127, 128)]
    share = len(flat) / (128 * len(packed))
    tasks: dict[str, Callable[[], object]] = {
        "mixed": lambda: list(m.stream(texts, SITE)),
        "packed": lambda: list(m.stream(packed, SITE)),
    }
    found = _seconds(tasks, rounds=3)
    return {
        "name": "texts of mixed length, against the same tokens packed",
        "ours": found["mixed"],
        "baseline": found["packed"] * share,
        "unit": "CPU seconds",
        "target": "<= 1.15",
    }

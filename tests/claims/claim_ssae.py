"""The step-level SAE: what its code carries when the decoder sees the context, on steps with a known truth."""

from statistics import mean

import numpy as np
import torch

import sparselens as sl
from sparselens.reasoning import SparsityController, StepDataset, StepSAE
from sparselens.reasoning.ssae_write import write_ids

SYMBOLS, END = 16, 16
BATCHES, BATCH, TARGET, WIDTH = 1500, 128, 3.0, 48
SEEDS = 3


def planted(n: int, seed: int) -> tuple[StepDataset, np.ndarray, np.ndarray]:
    """Contexts of 6 symbols and steps [context 1, new, context 4, new']; symbols of both as arrays."""
    draw = np.random.default_rng(seed)
    contexts, new = draw.integers(0, SYMBOLS, (n, 6)), draw.integers(0, SYMBOLS, (n, 2))
    steps = np.stack([contexts[:, 1], new[:, 0], contexts[:, 4], new[:, 1]], 1)
    return StepDataset(contexts.tolist(), steps.tolist(), END), contexts, steps


def tiny_model(seed: int) -> sl.LiveModel:
    """A causal language model of 2 layers and width 48, fresh."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=SYMBOLS + 2, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, eos_token_id=END,
                         bos_token_id=SYMBOLS + 1, pad_token_id=END)
    return sl.wrap(LlamaForCausalLM(config).eval(), None, name="tiny")


def train(conditioned: bool, seed: int, batches: int = BATCHES) -> StepSAE:
    """A step-level SAE trained from nothing on the planted steps."""
    ssae = StepSAE(tiny_model(seed), tuning="full", condition_on_context=conditioned, seed=seed)
    controller = SparsityController(TARGET, every=10, rate=0.05)
    ssae.fit(planted(batches * BATCH, seed)[0], controller=controller, batch_size=BATCH, lr_lm=1e-3, lr_new=1e-3,
             seed=seed, progress=False, live=False)
    return ssae


def probes(z: torch.Tensor, steps: np.ndarray) -> list[float]:
    """Held-out accuracy of linear probes of each of the four symbols from codes."""
    from sklearn.linear_model import LogisticRegression

    half = len(z) // 2
    x = z.numpy() / z.numpy().std()
    fitted = [LogisticRegression(max_iter=2000).fit(x[:half], steps[:half, i]) for i in range(4)]
    return [float(p.score(x[half:], steps[half:, i])) for i, p in enumerate(fitted)]


def right(rows: list[list[int]], wanted: np.ndarray) -> float:
    """Share of symbols that are as wanted."""
    padded = np.array([(row + [-1] * 4)[:4] for row in rows])
    return float((padded == wanted).mean())


def measured(ssae: StepSAE, seed: int) -> dict[str, float]:
    """Probes, swap and sparsity on fresh steps."""
    data, contexts, steps = planted(4000, 1000 + seed)
    found = ssae.transform(data, batch_size=500)
    copied, new = probes(found.z, steps)[::2], probes(found.z, steps)[1::2]
    few = 400
    other = np.roll(contexts[:few], 1, axis=0)
    own, swapped = (write_ids(ssae, found.z[:few], c.tolist(), END, 4) for c in (contexts[:few], other))
    wanted = np.stack([other[:, 1], steps[:few, 1], other[:, 4], steps[:few, 3]], 1)
    return {"copied": mean(copied), "new": mean(new), "step": right(own, steps[:few]), "swap": right(swapped, wanted),
            "l1": float(found.l1.mean()), "l0": float(found.l0.float().mean())}


def _row(claim: str, data: str, seeds: int, baseline: str, result: str, spread: str, holds: bool) -> dict[str, object]:
    return {"paper": "SSAE, 2603.03031", "claim": claim, "data": data, "seeds": seeds, "baseline": baseline,
            "result": result, "spread": spread, "holds": holds}


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _planted() -> list[dict[str, object]]:
    seeing = [measured(train(True, seed), seed) for seed in range(SEEDS)]
    blind = [measured(train(False, seed), seed) for seed in range(SEEDS)]
    value = lambda rows, name: mean(row[name] for row in rows)  # noqa: E731
    holds = all(s["copied"] <= 0.15 and s["swap"] >= 0.9 for s in seeing) and all(b["copied"] >= 0.35 for b in blind)
    content = _row(
        "a code whose decoder sees the context leaves out what the context tells: symbols copied from it cannot be "
        "read from the code, and the code works in another context",
        f"contexts of 6 symbols of {SYMBOLS}, steps [context 1, new, context 4, new']; both models 2 layers of width "
        f"{WIDTH}, {BATCHES} batches of {BATCH}, target {TARGET:.0f}; chance {1 / SYMBOLS:.2f}",
        SEEDS,
        f"decoder without context: copied symbols {value(blind, 'copied'):.2f}, new ones {value(blind, 'new'):.2f}",
        f"copied {value(seeing, 'copied'):.2f}, new {value(seeing, 'new'):.2f}; steps written right "
        f"{value(seeing, 'step'):.3f}, in another context {value(seeing, 'swap'):.3f}; L1 {value(seeing, 'l1'):.2f}, "
        f"L0 {value(seeing, 'l0'):.1f}",
        f"copied {_range([s['copied'] for s in seeing])}, without context {_range([b['copied'] for b in blind])}",
        holds,
    )
    norms = [s["l1"] for s in seeing]
    steered = _row("the controller brings the mean L1 norm to within 0.2 of its target", "the same", SEEDS,
                   f"target {TARGET:.0f}", f"{mean(norms):.2f}", _range(norms),
                   all(abs(norm - TARGET) < 0.2 for norm in norms))
    return [content, steered]


def run() -> list[dict[str, object]]:
    """The rows."""
    return _planted()

"""The step-level SAE: what its code carries when the decoder sees the context, on steps with a known truth; and on
SmolLM2 with GSM8K's steps (`gsm8k/train.jsonl.gz` below the folder that SPARSELENS_TEXTS names) or made-up problems.
"""

import gzip
import json
import os
import random
import re
from pathlib import Path
from statistics import mean

import numpy as np
import torch

import sparselens as sl
from sparselens.reasoning import SparsityController, StepDataset, StepSAE
from sparselens.reasoning.ssae_write import write_ids

SYMBOLS, END = 16, 16
BATCHES, BATCH, TARGET, WIDTH = 1500, 128, 3.0, 48
SEEDS = 2
MODEL = "smollm2-135m-instruct"
STEPS_DECODED, STEPS_READ, ALTERED = 100, 400, 300


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
    controller = SparsityController(TARGET, every=10, rate=0.05, weight=1e-3)
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


def _planted() -> dict[str, object]:
    seeing = [measured(train(True, seed), seed) for seed in range(SEEDS)]
    blind = [measured(train(False, seed), seed) for seed in range(SEEDS)]
    value = lambda rows, name: mean(row[name] for row in rows)  # noqa: E731
    holds = all(s["copied"] <= 0.15 and s["swap"] >= 0.9 and abs(s["l1"] - TARGET) < 0.2 for s in seeing) and all(
        b["copied"] >= 0.35 for b in blind)
    return _row(
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


def gsm8k_steps(n: int) -> tuple[str, list[tuple[str, str]], list[str]]:
    """What they are, (context, step) pairs and problems: of GSM8K's test set, else of problems made here."""
    folder = os.environ.get("SPARSELENS_TEXTS")
    if folder:
        with gzip.open(Path(folder) / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        random.Random(1).shuffle(rows)
        traces = sl.read_traces([row | {"answer": re.sub(r"<<.*?>>", "", row["answer"])} for row in rows])
        name = "GSM8K test, calculator notes taken out"
    else:
        traces, name = sl.planted_chains(n, share_wrong=0.0), "word problems made here"
    found = [(t.context(i), text, t.problem) for t in traces for i, text in enumerate(t.steps.texts)][:n]
    return f"SmolLM2-135M-Instruct, {n} steps of {name}", [(c, text) for c, text, _ in found], [p for *_, p in found]


def _nll(ssae: StepSAE) -> dict[str, object]:
    """Paired over steps; the interval is normal."""
    name, pairs, _ = gsm8k_steps(STEPS_DECODED)
    z = ssae.transform(pairs, long="cut").z
    shuffled = z[torch.as_tensor(np.roll(np.random.default_rng(0).permutation(len(z)), 1))]
    own, other, none = (ssae.nll(pairs, codes, long="cut") for codes in (z, shuffled, "none"))
    gaps = {word: (float((x - own).mean()), 1.96 * float((x - own).std()) / len(own) ** 0.5)
            for word, x in (("shuffled", other), ("none", none))}
    return _row("a step is foretold better from its own code than from another step's, or from none", name, 1,
                f"nats a token: shuffled codes {float(other.mean()):.3f}, no code {float(none.mean()):.3f}",
                f"own codes {float(own.mean()):.3f}",
                "; ".join(f"gap to {word} {gap:.3f} +- {half:.3f}" for word, (gap, half) in gaps.items()),
                gaps["shuffled"][0] - gaps["shuffled"][1] > 0)


@torch.no_grad()
def _contexts(ssae: StepSAE, data: StepDataset) -> np.ndarray:
    """The encoder's states at the separator, which have not seen the step."""
    out = torch.zeros(len(data), ssae.model.d_model)
    for batch in data.batches(16):
        states = ssae.encoder.states(ssae.encoder.embed(batch))
        out[batch.rows] = states[torch.arange(len(batch)), batch.sep].float()
    return out.numpy()


def _length_and_first(ssae: StepSAE) -> dict[str, object]:
    name, pairs, problems = gsm8k_steps(STEPS_READ)
    data = ssae.dataset(pairs, problems=problems, long="cut")
    x = {"code": ssae.transform(data).z.numpy(), "context": _contexts(ssae, data)}
    cut, groups = int(0.7 * len(data)), np.array(problems, dtype=object)
    length = np.array([len(step) for step in data.steps], dtype=float)
    first = np.array([step[0] for step in data.steps])
    found = {}
    for word, rows in x.items():
        for task, y in (("length", length), ("first_token", first)):
            probe = sl.StepProbe(task).fit(rows[:cut], y[:cut], groups[:cut])
            found[word, task] = probe.evaluate(rows[cut:], y[cut:], groups[cut:])
    rmse = {word: found[word, "length"]["rmse"] for word in x}
    perplexity = {word: found[word, "first_token"]["perplexity"] for word in x}
    said = {word: f"length off by {rmse[word].value:.1f} tokens ({rmse[word].low:.1f} to {rmse[word].high:.1f}), first "
                  f"token perplexity {perplexity[word].value:.1f}" for word in x}
    holds = rmse["code"].high < rmse["context"].low and perplexity["code"].high < perplexity["context"].low
    return _row("length and first token of a step are read from its code far better than from the context alone (which "
                "has not seen the step)", name + ", 70 % to fit", 1, f"context: {said['context']}",
                f"code: {said['code']}", "intervals over problems", holds)


def _correct(ssae: StepSAE) -> dict[str, object]:
    traces = sl.planted_chains(ALTERED, seed=5)
    draw, pairs, y, problems = random.Random(0), [], [], []
    for trace in traces:
        right = [i for i, label in enumerate(trace.labels) if label == 1]
        step = trace.first_error if trace.first_error >= 0 else draw.choice(right)
        pairs.append((trace.context(step), trace.steps.texts[step]))
        y.append(float(trace.first_error < 0))
        problems.append(trace.problem)
    z = ssae.transform(pairs, long="cut").z.numpy()
    scores = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(y))
        fit, held = order[: int(0.7 * len(y))], order[int(0.7 * len(y)) :]
        truth = np.array(y)
        probe = sl.StepProbe("correct", seed=seed).fit(z[fit], truth[fit])
        scores.append(float((probe.predict(z[held]) == truth[held]).mean()))
    return _row("a probe of codes tells altered steps from right ones, 5 points or more above the prior",
                f"{len(y)} steps of made-up problems, one a problem, half of them altered", 5, "prior 0.50",
                f"accuracy {mean(scores):.3f}", _range(scores), mean(scores) >= 0.55)


def run() -> list[dict[str, object]]:
    """The rows: the planted steps, then the shipped step-level SAE."""
    ssae = StepSAE.load(MODEL, sl.load_model(MODEL))
    return [_planted(), _nll(ssae), _length_and_first(ssae), _correct(ssae)]

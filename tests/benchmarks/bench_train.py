"""The lean TopK training step against a dense one, and against SAELens in an interpreter of its own.

    python tests/benchmarks/bench_train.py                             # against dense autograd
    python tests/benchmarks/bench_train.py --saelens v/bin/python      # against SAELens; writes saelens_step.json

All times are CPU seconds of the process on one thread: rounds alternate, the fastest counts.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

SIZES = {"d_in": 576, "d_sae": 9216, "k": 32, "batch": 2048}
RECORD = Path(__file__).with_name("saelens_step.json")
TARGET = 3.0
ROUNDS = 4

# Runs in the other interpreter: a SAELens TopK training step for every line on stdin, its CPU seconds on stdout.
SAELENS = """
import sys, time, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
import sae_lens
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
d_in, d_sae, k, batch = map(int, sys.argv[1:])
torch.manual_seed(0)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k))
config = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=batch, lr=1e-3, lr_end=1e-4)
x = torch.randn(batch, d_in)
trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(lambda: x, None), evaluator=None)
print(sae_lens.__version__, flush=True)
for line in sys.stdin:
    began = time.process_time()
    output = trainer._train_step(sae=trainer.sae, sae_in=x)
    trainer.n_training_steps += 1
    print(time.process_time() - began, flush=True)
"""


def our_step(d_in: int, d_sae: int, k: int, batch: int):
    """A training step of `train_sae`: gradients, projection, Adam, renormalisation, dead-latent bookkeeping."""
    from sparselens.sae import SAE
    from sparselens.sae.trainer import SAETrainer

    x = torch.randn(batch, d_in)
    sae = SAE("topk", d_in=d_in, d_sae=d_sae, k=k)
    trainer = SAETrainer(sae, x, k=k, lr=1e-3, dead_after=1_000_000_000)
    return lambda: trainer.step(x, 1.0)


def dense_step(d_in: int, d_sae: int, k: int, batch: int):
    """The same step as everybody first writes it: dense codes, autograd, Adam (foreach), renormalised decoder."""
    from sparselens.sae import SAE

    x = torch.randn(batch, d_in)
    sae = SAE("topk", d_in=d_in, d_sae=d_sae, k=k)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3, foreach=True)

    def step() -> None:
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        values, where = pre.topk(k, dim=1, sorted=False)
        codes = torch.zeros_like(pre).scatter(1, where, values.relu())
        loss = (codes @ sae.W_dec + sae.b_dec - x).square().sum() / batch
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)

    return step


def seconds(step) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    step()
    return time.process_time() - began


def run() -> list[dict]:
    """Ours against dense autograd with Adam (foreach)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, dense = our_step(**SIZES), dense_step(**SIZES)
    pairs = [(seconds(ours), seconds(dense)) for _ in range(ROUNDS + 1)][1:]  # the first round warms up
    fast, slow = (min(column) for column in zip(*pairs, strict=True))
    name = "TopK training step against dense autograd"
    return [{"name": name, "ours": 1 / fast, "baseline": 1 / slow, "unit": "steps per CPU second", "target": ">= 2.0"}]


def against_saelens(python: str) -> dict:
    """Ours against one step of the SAELens trainer in another interpreter, in alternating rounds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments = [python, "-c", SAELENS, *(str(size) for size in SIZES.values())]
    ours = our_step(**SIZES)
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        version = other.stdout.readline().strip()

        def theirs() -> float:
            other.stdin.write("step\n")
            other.stdin.flush()
            return float(other.stdout.readline())

        pairs = [(seconds(ours), theirs()) for _ in range(ROUNDS + 1)][1:]
        other.stdin.close()
    fast, slow = (min(column) for column in zip(*pairs, strict=True))
    return {
        "name": f"TopK training step against sae-lens {version}",
        "ratio": slow / fast,
        "ours": fast,
        "baseline": slow,
        "target": TARGET,
        "how": f"CPU seconds a step, one thread, float32, {SIZES}; fastest of {ROUNDS} alternating rounds after a "
        f"warm-up; torch {torch.__version__} here. Both steps include their bookkeeping of dead latents; neither "
        "has dead latents to revive.",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saelens", metavar="PYTHON", help="an interpreter that has sae-lens")
    chosen = parser.parse_args()
    if chosen.saelens:
        result = against_saelens(chosen.saelens)
        RECORD.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
        sys.exit(result["ratio"] < TARGET)
    print(json.dumps(run(), indent=2))

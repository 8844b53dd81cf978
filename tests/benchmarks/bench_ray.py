"""`embed(engine="ray")` on 1, 2 and 4 workers of this machine: what differs from a run without, and the cost.

The packaged model and the shipped SAE, in blocks of eight texts. With fewer processors than workers a document costs
more of each worker's time; the result must not change.
"""

import logging
import os
import time
from unittest.mock import patch

import torch

import sparselens as sl

WORKERS, TEXTS = (1, 2, 4), 64


def _run(texts: list[str], m: sl.LiveModel, sae: sl.SAE, **settings) -> tuple[sl.SAEEmbedding, float]:
    """The embedding, and how many seconds passed."""
    start = time.perf_counter()
    with patch("sparselens.embeddings.documents.BLOCK_DOCUMENTS", 8):
        emb = sl.embed(texts, m, sae, progress=False, **settings)
    return emb, time.perf_counter() - start


def _differing(a: sl.SAEEmbedding, b: sl.SAEEmbedding) -> int:
    """Stored numbers that are not equal bit for bit: pooled ones, and those of every token."""
    import numpy as np

    tokens = [(a.activations(i, range(a.d_sae)), b.activations(i, range(b.d_sae))) for i in range(len(a))]
    return int((a.matrix != b.matrix).nnz) + sum(int(np.count_nonzero(x != y)) for x, y in tokens)


def run() -> list[dict]:
    """Rows of the benchmark table."""
    import ray

    torch.set_num_threads(1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    m, sae = sl.load_model(), sl.SAE.load("smollm2-135m-instruct")
    texts = sl.datasets.load_answers("formal")["answer"].tolist()[:TEXTS]
    alone, passed = _run(texts, m, sae)
    said = f"{1000 * alone.cost().seconds_per_document:.0f} ms a document and {passed:.0f} s in all without Ray"
    rows = []
    for workers in WORKERS:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            emb, passed = _run(texts, m, sae, engine="ray", workers=workers)
        finally:
            ray.shutdown()
        cost = 1000 * emb.cost().seconds_per_document
        rows.append({
            "name": f"embed on {workers} Ray worker{'s' * (workers > 1)}: numbers that differ from a run without",
            "ours": _differing(emb, alone),
            "baseline": None,
            "unit": "numbers",
            "target": "<= 0",
            "note": f"{cost:.0f} ms of a worker a document, {passed:.0f} s in all with the start of the workers; "
            f"{said}; {os.cpu_count()} processors",
        })
    return rows


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))

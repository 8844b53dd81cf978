"""Time and memory of `diff` and `correlate` on a large generated corpus: 100,000 documents, 65,536 features.

Process CPU time, one thread, in a process of its own; the embedding, texts included, is in memory before. Descriptions
are part of `diff`.
"""

import subprocess
import sys

DOCUMENTS, FEATURES, ACTIVE, TOP = 100_000, 65_536, 50, 5000

MEASURE = f"""
import resource, time
import numpy as np
import sparselens as sl
from tests.benchmarks.bench_analyses import corpus

emb = corpus({DOCUMENTS}, {FEATURES}, {ACTIVE})
half = np.arange(len(emb)) < len(emb) // 2
start = time.process_time()
found = sl.diff(emb.subset(half), emb.subset(~half))
print(time.process_time() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
del found
start = time.process_time()
sl.correlate(emb, top={TOP}, max_frequency=1.0)
print(time.process_time() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def corpus(n: int, d_sae: int, active: int, tokens: int = 20):
    """Documents with `active` features each, some far more frequent than others, spread over 20 tokens."""
    import numpy as np

    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.embeddings.pool import Entries, pool
    from sparselens.embeddings.store import Blocks, block_table
    from tests.embeddings.synthetic import INFO

    random = np.random.default_rng(0)
    share = np.cumsum(1 / np.arange(10, d_sae + 10) ** 0.8)
    words = [f" w{i}" for i in range(5000)]
    tables, starts = [], list(range(0, n, 1000))
    for _ in starts:
        drawn = np.searchsorted(share, random.random((1000, active)) * share[-1])
        document = np.repeat(np.arange(1000), active)
        keys = np.unique(np.stack([document, drawn.ravel()]), axis=1)  # a feature drawn twice counts once
        token = np.sort(random.integers(0, tokens, keys.shape[1]) + keys[0] * tokens)
        value = random.random(keys.shape[1], dtype=np.float32) + 0.1
        entries = Entries(keys[0], token, keys[1], value)
        pieces = [[words[i] for i in row] for row in random.integers(0, len(words), (1000, tokens))]
        lengths = np.full(1000, tokens)
        pooled = pool(entries, "max", lengths)
        tables.append(block_table(["".join(p) for p in pieces], pieces, lengths, entries, pooled, d_sae))
    return SAEEmbedding(Blocks(tables, [*starts, n]), INFO | {"d_sae": d_sae})


def run() -> list[dict]:
    """Rows of the benchmark table."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout.split()
    seconds, memory, more_seconds, more_memory = map(float, done)
    size = f"{DOCUMENTS:,} x {FEATURES:,}"
    return [
        {"name": f"diff of {size}, {ACTIVE} active a row", "ours": seconds, "baseline": None, "unit": "CPU seconds",
         "target": "< 5", "note": "first use of the embedding; descriptions of all features included"},
        {"name": f"peak memory of diff of {size}", "ours": memory, "baseline": None, "unit": "GB", "target": "< 2",
         "note": "of the whole process, libraries and texts included"},
        {"name": f"correlate the {TOP:,} most frequent of {size}", "ours": more_seconds, "baseline": None,
         "unit": "CPU seconds", "target": "< 20", "note": f"peak {more_memory:.2f} GB"},
    ]

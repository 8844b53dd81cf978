"""MONA: samples of a task found by their mean sparse codes, on planted tasks and on templated instructions."""

from functools import cache

import numpy as np
from scipy.sparse import csr_matrix

import sparselens as sl

PAPER = "MONA 2503.15573"
SEEDS = range(5)
TASKS, LATENTS, OWN, TARGETS, POOL = 8, 2048, 60, 50, 800
LOUD = 5  # latents that any text may have, strong


@cache
def world(seed: int, d: int = 24, noise: float = 0.3, loud: float | None = None, shared: int = 6):
    """Samples of 8 tasks, 10 to 120 tokens each; the first 50 are of task 0 and serve as the target.

    Each token has `shared` latents of all tasks and 10 - `shared` of its own task's 60, with exponential strengths; its
    dense vector is their sum in `d` dimensions plus noise. With `loud`, five more latents of strength 2 fire on a fifth
    of the tokens, times a gain of the sample that is log-normal with this sigma.

    Returns:
        Task and length of each sample, sums of its codes, mean codes, mean dense vectors.
    """
    random = np.random.default_rng(seed)
    n, first = TARGETS + POOL, TASKS * OWN
    task, length = random.integers(0, TASKS, n), random.integers(10, 121, n)
    task[:TARGETS] = 0
    directions = random.normal(size=(LATENTS, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows, columns, values, dense = [], [], [], np.zeros((n, d))
    for i, (t, tokens) in enumerate(zip(task, length, strict=True)):
        common = random.integers(first, LATENTS, tokens * shared)
        own = t * OWN + random.integers(0, OWN, tokens * (10 - shared))
        latent = np.r_[common, own]
        value = random.exponential(size=len(latent))
        if loud is not None:
            gain = 2 * np.exp(loud * random.normal())
            latent = np.r_[latent, np.tile(first + np.arange(LOUD), tokens)]
            value = np.r_[value, gain * (random.random(tokens * LOUD) < 0.2)]
        dense[i] = value @ directions[latent] + noise * np.sqrt(tokens) * random.normal(size=d)
        rows.append(np.full(len(latent), i))
        columns.append(latent)
        values.append(value)
    at = (np.concatenate(rows), np.concatenate(columns))
    total = csr_matrix((np.concatenate(values), at), shape=(n, LATENTS))
    total.sum_duplicates()
    return task, length, total, csr_matrix(total.multiply(1 / length[:, None])), dense / length[:, None]


def chosen(samples, share: float, **settings) -> np.ndarray:
    return sl.select(samples[TARGETS:], samples[:TARGETS], share, **settings).indices


def precision(seed: int, what: int, similarity: str, **settings) -> float:
    """Share of the target's task among as many samples as it has in the pool."""
    found = world(seed, **settings)
    truth = found[0][TARGETS:] == 0
    return float(truth[chosen(found[what], float(truth.mean()), similarity=similarity)].mean())


def spread_of_lengths(seed: int, what: int, **settings) -> tuple[float, float]:
    """Standard deviation and mean of the chosen lengths, relative to the pool's."""
    found = world(seed, **settings)
    truth, length = found[0][TARGETS:] == 0, found[1][TARGETS:]
    picked = length[chosen(found[what], float(truth.mean()))]
    return float(picked.std() / length.std()), float(picked.mean() / length.mean())


def row(claim: str, data: str, baseline, result, holds: bool, seeds: int = len(SEEDS)) -> dict:
    return {"paper": PAPER, "claim": claim, "data": data, "seeds": seeds, "baseline": float(np.mean(baseline)),
            "result": float(np.mean(result)), "spread": float(np.std(result)), "holds": bool(holds)}


def superposition() -> dict:
    codes = [precision(s, 3, "jaccard") for s in SEEDS]
    dense = [precision(s, 4, "cosine") for s in SEEDS]
    return row("Jaccard of sparse codes finds a task better than cosine of dense vectors, by 0.1 in precision",
               "8 planted tasks, 2,048 latents in 24 dimensions", dense, codes, np.mean(codes) - np.mean(dense) >= 0.1)


def loud_latents() -> list[dict]:
    rows = []
    for sigma in (0.3, 1.0):
        jaccard, cosine = ([precision(s, 3, kind, loud=sigma) for s in SEEDS] for kind in ("jaccard", "cosine"))
        rows.append(row("Jaccard beats cosine on sparse codes, by 0.1 in precision",
                        f"planted tasks, 5 loud shared latents with log-normal gain (sigma {sigma})", cosine, jaccard,
                        np.mean(jaccard) - np.mean(cosine) >= 0.1))
    jaccard, cosine = ([precision(s, 3, kind) for s in SEEDS] for kind in ("jaccard", "cosine"))
    rows.append(row("Jaccard beats cosine on sparse codes", "planted tasks without loud latents: cosine is better",
                    cosine, jaccard, np.mean(jaccard) > np.mean(cosine)))
    return rows


def length() -> list[dict]:
    total, mean = ([spread_of_lengths(s, what, loud=0.3)[0] for s in SEEDS] for what in (2, 3))
    tied = row("Summed codes choose samples of like length, mean codes do not: their spread is smaller by 0.05",
               "planted tasks with loud latents; spread of the chosen lengths, sum (result) against mean", mean, total,
               np.mean(mean) - np.mean(total) >= 0.05)
    leaning = [spread_of_lengths(s, 3, shared=8)[1] for s in SEEDS]
    free = row("Mean codes are free of a length bias (mean chosen length within 10 % of the pool's)",
               "planted tasks, 8 of 10 latents shared: short samples have sparser means, so long ones are chosen",
               [1.0] * len(leaning), leaning, abs(np.mean(leaning) - 1) <= 0.1)
    return [tied, free]


def mean_activations(m, texts: list[str], site: str) -> np.ndarray:
    """Mean residual of the content tokens of each text, without the first."""
    total, counts = np.zeros((len(texts), m.d_model)), np.zeros(len(texts))
    for batch in m.stream(texts, site):
        used = batch.content & ~batch.first
        np.add.at(total, batch.doc[used].numpy(), batch.values[used].numpy())
        np.add.at(counts, batch.doc[used].numpy(), 1)
    return total / np.maximum(counts, 1)[:, None]


def templated() -> list[dict]:
    m, sae = sl.load_model("smollm2-135m-instruct"), sl.SAE.load("smollm2-135m-instruct")
    frame = sl.datasets.instruction_families()
    names = frame["family"].unique()
    family = frame["family"][:600].to_numpy()
    everything = frame["text"].tolist()
    emb = sl.embed(everything, m, sae, pooling="mean", progress=False)
    dense = mean_activations(m, everything, sae.site)
    found: dict[str, list[float]] = {"codes": [], "dense": [], "bm25": [], "random": []}
    for i, name in enumerate(names):
        own = range(600 + 20 * i, 620 + 20 * i)
        pool, target = emb.subset(range(600)), emb.subset(own)
        picks = {
            "codes": sl.select(pool, target, 1 / 6), "bm25": sl.select(pool, target, 1 / 6, similarity="bm25"),
            "dense": sl.select(dense[:600], dense[own], 1 / 6, similarity="cosine"),
            "random": sl.select(pool, target, 1 / 6, similarity="random", seed=i),
        }
        for kind, pick in picks.items():
            found[kind].append(float((family[pick.indices] == name).mean()))
    data = ("SmolLM2-135M, layer 14: 600 instructions of six families; 20 targets of one, from another template; "
            "precision at 100, each family")
    codes = found["codes"]
    return [
        row("Mean codes find the family (precision at 100 of at least 0.8; baseline: random)", data, found["random"],
            codes, np.mean(codes) >= 0.8, 6),
        row("Codes are within 0.1 of, or above, the cosine of mean residuals", data, found["dense"], codes,
            np.mean(codes) >= np.mean(found["dense"]) - 0.1, 6),
        row("Codes beat BM25", data, found["bm25"], codes, np.mean(codes) > np.mean(found["bm25"]), 6),
    ]


def run() -> list[dict]:
    return [superposition(), *loud_latents(), *length(), *templated()]

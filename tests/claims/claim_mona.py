"""MONA: samples of a task found by their mean sparse codes, on planted tasks and on templated instructions."""

import itertools
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
            "result": float(np.mean(result)), "spread": float(np.std(result)), "holds": holds}


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


# Of each family the last template and the last four words of the second slot are for the targets alone.
FAMILIES: dict[str, tuple[list[str], list, list]] = {
    "arithmetic": (
        ["What is {a} plus {b}?", "Work out {a} times {b}.", "Subtract {b} from {a} and give the result.",
         "Divide {a} by {b}.", "If I have {a} coins and lose {b}, how many are left?"],
        list(range(12, 99, 3)), list(range(2, 12))),
    "translation": (
        ["Translate '{a}' into {b}.", "How do you say '{a}' in {b}?", "Give the {b} for the phrase '{a}'.",
         "I want to learn {b}. Tell me the words for '{a}'.", "Write '{a}' as a native speaker of {b} would."],
        ["good morning", "where is the station", "I am hungry", "see you soon", "thank you"],
        ["French", "German", "Spanish", "Italian", "Polish", "Dutch", "Greek", "Swedish", "Turkish", "Danish"]),
    "code": (
        ["Write a Python function that {a} a {b}.", "Show code that {a} a {b} in Java.",
         "Fix my script; it never {a} the {b}.", "Which library call {a} a {b}?",
         "Debug this loop, which {a} every {b}."],
        ["sorts", "reverses", "copies", "prints", "parses"],
        ["list", "string", "dictionary", "file", "matrix", "queue", "tuple", "array", "stack", "tree"]),
    "cooking": (
        ["How long should I {a} {b}?", "Suggest a recipe in which I {a} {b}.", "What spices go well when I {a} {b}?",
         "At what heat do I {a} {b}?", "My guests arrive at eight; must I {a} {b} before?"],
        ["roast", "boil", "fry", "bake", "steam"],
        ["potatoes", "carrots", "chicken", "salmon", "pumpkin", "rice", "beans", "lamb", "onions", "apples"]),
    "sport": (
        ["Who won the {b} in {a}?", "Explain the rules of {a} at the {b}.", "How many teams play {a} in the {b}?",
         "When does the {a} {b} begin?", "Name a famous {a} player from the {b}."],
        ["football", "tennis", "hockey", "rugby", "basketball"],
        ["world cup", "final", "olympics", "league", "championship", "open", "play-offs", "derby", "cup", "season"]),
    "poetry": (
        ["Write a {a} poem about {b}.", "Compose a haiku on {b} that feels {a}.", "Give me two {a} verses on {b}.",
         "I would like a {a} sonnet on {b}.", "Rhyme a {a} stanza with {b} in it."],
        ["sad", "joyful", "short", "tender", "dark"],
        ["the sea", "autumn", "my mother", "the moon", "a river", "silence", "a bird", "snow", "the wind", "home"]),
}


def instructions(seed: int = 0) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """600 instructions of six families, the family of each, and 20 worded otherwise of each family."""
    random = np.random.default_rng(seed)
    texts: list[str] = []
    targets = []
    for templates, a, b in FAMILIES.values():
        every = [t.format(a=x, b=y) for t, x, y in itertools.product(templates[:-1], a, b[:-4])]
        texts += random.permutation(every)[:100].tolist()
        others = [templates[-1].format(a=x, b=y) for x, y in itertools.product(a, b[-4:])]
        targets.append(random.permutation(others)[:20].tolist())
    return texts, np.repeat(np.arange(6), 100), targets


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
    texts, family, targets = instructions()
    everything = texts + [t for target in targets for t in target]
    emb = sl.embed(everything, m, sae, pooling="mean", progress=False)
    dense = mean_activations(m, everything, sae.site)
    found: dict[str, list[float]] = {"codes": [], "dense": [], "bm25": [], "random": []}
    for i in range(6):
        own = range(600 + 20 * i, 620 + 20 * i)
        pool, target = emb.subset(range(600)), emb.subset(own)
        picks = {
            "codes": sl.select(pool, target, 1 / 6), "bm25": sl.select(pool, target, 1 / 6, similarity="bm25"),
            "dense": sl.select(dense[:600], dense[own], 1 / 6, similarity="cosine"),
            "random": sl.select(pool, target, 1 / 6, similarity="random", seed=i),
        }
        for name, pick in picks.items():
            found[name].append(float((family[pick.indices] == i).mean()))
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

"""Retrieval by properties: what the normalisation and the temperature do, and what a query finds without labels."""

import numpy as np

import sparselens as sl
from sparselens.embeddings import average_precision
from sparselens.embeddings.descriptions import promotes
from tests.embeddings.synthetic import embedding_of

PAPER = "interp-embed 2512.10092"
SEEDS = range(20)
DOCUMENTS, FEATURES, RELEVANT = 2000, 10, 0.1


def world(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of ten features, the first telling most about relevance, each with a scale of its own (sigma 2)."""
    random = np.random.default_rng(seed)
    relevant = random.random(DOCUMENTS) < RELEVANT
    telling = 0.6 * np.exp(-np.arange(FEATURES) / 3)
    fires = random.random((DOCUMENTS, FEATURES)) < 0.05 + np.outer(relevant, telling)
    scale = np.exp(2 * random.normal(size=FEATURES))
    return fires * (0.5 + random.random(fires.shape)) * scale, relevant


def found_by(values: np.ndarray, relevant: np.ndarray, temperature: float) -> tuple[float, float]:
    """Average precision with the normalisation, and of the same weights on raw values."""
    hits = sl.retrieve(embedding_of(values, block=500), list(range(FEATURES)), temperature=temperature)
    raw = values @ hits.features["weight"].to_numpy()
    return average_precision(hits.scores, relevant), average_precision(raw, relevant)


def planted() -> list[dict]:
    results = np.array([[found_by(*world(seed), temperature) for temperature in (0.2, 0.01)] for seed in SEEDS])
    mild, cold = results[:, 0, 0], results[:, 1, 0]
    raw = results[:, 0, 1]
    data = "2,000 planted documents, 10 features with log-normal scales (sigma 2), average precision"
    return [
        row("Dividing each feature by its 90th percentile raises average precision by 0.1 at T = 0.2", data, len(SEEDS),
            raw, mild, bool(mild.mean() - raw.mean() >= 0.1)),
        row("T = 0.2 beats T = 0.01", data, len(SEEDS), cold, mild, bool(mild.mean() > cold.mean())),
    ]


def row(claim: str, data: str, seeds: int, baseline, result, holds: bool) -> dict:
    return {"paper": PAPER, "claim": claim, "data": data, "seeds": seeds, "baseline": float(np.mean(baseline)),
            "result": float(np.mean(result)), "spread": float(np.std(result)), "holds": holds}


def on_answers() -> list[dict]:
    """20 chatty answers among 160 formal ones: can they be found by name, by their words, by examples?"""
    m, sae = sl.load_model("smollm2-135m-instruct"), sl.SAE.load("smollm2-135m-instruct")
    formal, chatty = (sl.datasets.load_answers(style)["answer"].tolist() for style in ("formal", "chatty"))
    every = sl.embed(formal[:160] + chatty[200:220] + chatty[300:315], m, sae, role="assistant", progress=False)
    emb, relevant = every.subset(range(180)), np.arange(180) >= 160
    firing = np.unique(emb.matrix.indices).tolist()
    lens = {f: " ".join(tokens) for f, tokens in zip(firing, promotes(firing, m, sae, 10), strict=True)}
    base = float(relevant.mean())
    data = "SmolLM2-135M, layer 14, 180 answers in two voices, average precision against the base rate"

    def precision(*query, **settings) -> float:
        return average_precision(sl.retrieve(emb, *query, **settings).scores, relevant)

    by_name = [precision("slang", labels=lens), precision("slang", m, sae)]
    by_words = precision("gonna wanna awesome", m, sae)
    by_examples = [precision(every.subset(range(180 + 3 * i, 183 + 3 * i))) for i in range(5)]
    return [
        row("The name of a style, matched with logit-lens tokens, finds it (above twice the base rate)",
            f"{data}; query 'slang'", 1, base, by_name[0], by_name[0] > 2 * base),
        row("The name of a style, read by the model, finds it (above twice the base rate)", f"{data}; query 'slang'", 1,
            base, by_name[1], by_name[1] > 2 * base),
        row("Words of a style find it (above twice the base rate)", f"{data}; query 'gonna wanna awesome'", 1, base,
            by_words, by_words > 2 * base),
        row("Three examples of a style find it (above twice the base rate)",
            f"{data}; five sets of three other answers", 5, base, by_examples, bool(np.mean(by_examples) > 2 * base)),
    ]


def run() -> list[dict]:
    return [*planted(), *on_answers()]

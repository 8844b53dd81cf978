"""Differences found in real texts and verified on texts held out; runs where SPARSELENS_TEXTS names a folder of them.

Read are `brown.jsonl.gz` (paragraphs with a `genre`) and `hh-harmless/test.jsonl.gz` (dialogues, `chosen` and
`rejected`). The texts are embedded with the packaged model and dictionary, cut at 96 tokens, once: the folders under
`out/claims` are used again.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

import sparselens as sl
from sparselens.datasets import read_texts
from sparselens.embeddings.contrasts import contrast
from sparselens.embeddings.statistics import q_values

PAPER = "interp-embed, 2512.10092"
CACHE = Path("out/claims")
TOKENS, SIDE, HELD_OUT, TOP, SPLITS = 96, 300, 100, 10, 5
LEVEL = 0.01
DIALOGUES = 1000


def run() -> list[dict]:
    """Rows of the claims table; none without texts."""
    folder = os.environ.get("SPARSELENS_TEXTS")
    if not folder:
        return []
    m, sae = sl.load_model(), sl.SAE.load("smollm2-135m-instruct")
    brown = _embed(_genres(Path(folder) / "brown.jsonl.gz"), m, sae, "brown")
    return [*_genre_rows(brown), *_dialogue_rows(Path(folder) / "hh-harmless" / "test.jsonl.gz", m, sae)]


def _embed(texts: pd.DataFrame, m: sl.LiveModel, sae: sl.SAE, name: str) -> sl.SAEEmbedding:
    return sl.embed(texts, m, sae, CACHE / name, max_length=TOKENS, long="cut")


def _genres(path: Path) -> pd.DataFrame:
    """Up to 300 paragraphs of each genre to compare and 100 held out; a small genre gives a quarter for that."""
    parts = []
    for _, rows in read_texts(path).groupby("genre"):
        rows = rows.sample(min(len(rows), SIDE + HELD_OUT), random_state=0)
        held = np.arange(len(rows)) < min(HELD_OUT, len(rows) // 4)
        parts.append(rows[["text", "genre"]].assign(held_out=held))
    return pd.concat(parts).sample(frac=1, random_state=0).reset_index(drop=True)


def _genre_rows(emb: sl.SAEEmbedding) -> list[dict]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    documents, random = emb.documents, np.random.default_rng(0)
    genre, held = documents["genre"].to_numpy(), documents["held_out"].to_numpy()
    found, auc, spread, ceiling, matched = [], [], [], [], []
    for one in np.unique(genre):
        sides = []
        for where in (~held, held):
            inside = np.flatnonzero((genre == one) & where)
            rest = random.choice(np.flatnonzero((genre != one) & where), len(inside), replace=False)
            sides.append((emb.subset(inside), emb.subset(rest)))
        difference = sl.diff(*sides[0])
        found.append(len(difference.significant(LEVEL)))
        matched.append(len(sl.diff(*sides[0], match_length=True).significant(LEVEL)))
        y = [np.repeat([1, 0], [len(e) for e in pair]) for pair in sides]
        sure = difference.significant(LEVEL)["feature"].tolist()
        sure = sure if len(sure) >= TOP else difference.frame["feature"][: 5 * TOP].tolist()
        choices = ((auc, difference.frame["feature"][:TOP], 1.0), (spread, _sparse_choice(sides[0], y[0], sure), 1.0),
                   (ceiling, range(emb.d_sae), 0.001))
        for scores, features, c in choices:
            x = [np.concatenate([e.matrix[:, list(features)].toarray() for e in pair]) for pair in sides]
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c)).fit(x[0], y[0])
            scores.append(roc_auc_score(y[1], model.predict_proba(x[1])[:, 1]))
    nothing = []
    for _ in range(SPLITS):
        chosen = random.permutation(np.flatnonzero(~held))[: 2 * SIDE]
        nothing.append(len(sl.diff(emb.subset(chosen[:SIDE]), emb.subset(chosen[SIDE:])).significant(LEVEL)))
    data = f"Brown, {len(found)} genres, {min(SIDE, 3 * 213 // 4)} to {SIDE} paragraphs a side, each against the rest"
    shared = {"paper": PAPER, "data": data, "seeds": 1}
    return [
        {**shared, "claim": "a genre differs from the rest in at least 20 features at q < 0.01, a random split in at "
                            f"most 1 ({SPLITS} splits)",
         "baseline": f"random split: at most {max(nothing)}",
         "result": f"median {int(np.median(found))}, least {min(found)}; texts of like length: median "
                   f"{int(np.median(matched))}, least {min(matched)}",
         "spread": f"{min(found)} to {max(found)} over genres", "holds": min(found) >= 20 and max(nothing) <= 1},
        {**shared, "claim": "the 10 features that differ most tell the genre from the rest on held-out paragraphs: "
                            "mean AUC of a logistic regression above 0.85",
         "baseline": "chance 0.5",
         "result": f"{np.mean(auc):.3f}; 10 of the significant ones chosen by an L1 penalty {np.mean(spread):.3f}; all "
                   f"features {np.mean(ceiling):.3f}",
         "spread": f"{min(auc):.2f} to {max(auc):.2f} over genres", "holds": float(np.mean(auc)) > 0.85},
    ]


def _sparse_choice(pair: tuple, y: np.ndarray, features: list[int]) -> list[int]:
    """The first features that a logistic regression takes up as its L1 penalty is lowered: ten that differ in kind."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = StandardScaler().fit_transform(np.concatenate([e.matrix[:, features].toarray() for e in pair]))
    weights = np.zeros(len(features))
    for c in np.geomspace(0.001, 1, 40):
        weights = LogisticRegression(C=c, penalty="l1", solver="liblinear").fit(x, y).coef_[0]
        if (weights != 0).sum() >= TOP:
            break
    return [features[i] for i in np.argsort(-np.abs(weights))[:TOP]]


def _dialogue_rows(path: Path, m: sl.LiveModel, sae: sl.SAE) -> list[dict]:
    """The last answers of chosen and rejected dialogues: found in one half, verified in the other."""
    texts = read_texts(path, field="chosen").sample(DIALOGUES, random_state=0).reset_index(drop=True)
    sides = []
    for name in ("chosen", "rejected"):
        answers = pd.DataFrame({"text": texts[name].str.rpartition("\n\nAssistant:")[2].str.strip(),
                                "dialogue": np.arange(len(texts))})
        sides.append(_embed(answers, m, sae, f"hh-{name}"))
    first = np.arange(len(texts)) < len(texts) // 2
    halves = [[e.subset(rows) for e in sides] for rows in (first, ~first)]
    paired = [sl.diff(*half, paired="dialogue", names=("chosen", "rejected")) for half in halves]
    matched = [sl.diff(*half, match_length=True) for half in halves]
    found, same, verified = _verified(*paired)
    found_matched, same_matched, verified_matched = _verified(*matched)
    flipped = np.random.default_rng(0).random(first.sum()) < 0.5
    nothing = _mixed(halves[0], [np.where(flipped, i, 1 - i) for i in (0, 1)])
    strongest = matched[0].frame if found_matched else paired[0].frame
    words = "; ".join(f"{r.description} ({r.difference:+.2f})" for r in strongest.head(3).itertuples())
    lengths = [e.documents["n_tokens"].mean() for e in halves[0]]
    return [{
        "paper": PAPER,
        "claim": "chosen and rejected answers differ in features, and most of these hold on the held-out half",
        "data": f"hh-harmless, last answers of {len(texts)} dialogues, half held out",
        "seeds": 1,
        "baseline": f"sides of each pair swapped at random: {nothing} found at q < 0.05",
        "result": f"row by row {found} found, on the other half {same} of the same sign and {verified} at q < 0.05; "
                  f"among answers of like length {found_matched} found, {same_matched} and {verified_matched}; {words}",
        "spread": f"mean tokens {lengths[0]:.0f} and {lengths[1]:.0f}",
        "holds": bool(found and verified >= found / 2),
    }]


def _verified(found: sl.embeddings.DatasetDiff, again: sl.embeddings.DatasetDiff) -> tuple[int, int, int]:
    """How many features are significant; of these in other texts: of the same sign, and at q < 0.05 besides."""
    sure = found.significant()
    other = again.frame.set_index("feature").reindex(sure["feature"])
    same = np.sign(other["difference"].to_numpy()) == np.sign(sure["difference"].to_numpy())
    q = q_values(other["p_value"].fillna(1.0).to_numpy())
    return len(sure), int(same.sum()), int((same & (q < 0.05)).sum())


def _mixed(sides: list[sl.SAEEmbedding], pick: list[np.ndarray]) -> int:
    """How many features differ at q < 0.05 when the sides of each pair are put in a random order."""
    from scipy.sparse import vstack

    fires, n = vstack([e.fires() for e in sides], format="csr"), len(sides[0])
    a, b = (fires[np.arange(n) + n * which] for which in pick)
    frame = contrast(a, {"b": b}, way="max_freq", paired=True, alpha=0.05, min_support=1)
    return int((frame["q_value"] < 0.05).sum())

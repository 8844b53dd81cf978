"""ITDA: dictionaries of real activations, and what their places tell about layers, on SmolLM2."""

from statistics import mean, stdev

import torch
from torch.nn import functional

import sparselens as sl
from sparselens.sae import SAE, build_itda, jaccard, match_layers, representation_similarity
from sparselens.sae.itda import Atoms

PAPER = "ITDA, 2505.17769"
LAYERS, K, COSINE = (5, 15, 24), 16, 0.77  # the cosine of tau = 8e-4 at d = 576
ROWS, LENGTH, HELD, BATCH = 60, 124, 20, 16
SEEDS = range(3)


def run() -> list[dict]:
    """Rows: the fit against other dictionaries of equal size, and the places as a measure of likeness."""
    torch.set_num_threads(1)
    m = sl.load_model()
    voices = (sl.datasets.load_answers(voice)["answer"] for voice in ("formal", "chatty"))
    texts = [text for pair in zip(*voices, strict=True) for text in pair]
    ids = m.tokenizer("\n".join(texts), return_tensors="pt")["input_ids"][0]
    ids = ids[: (ROWS + HELD) * LENGTH].reshape(-1, LENGTH)
    sites = [f"blocks.{layer}.hook_resid_post" for layer in LAYERS]
    cap = m.capture(ids, sites)
    acts = {site: cap[site][:, 1:].float() for site in sites}
    seen, held = ({s: x[part].flatten(0, 1) for s, x in acts.items()} for part in (slice(ROWS), slice(ROWS, None)))
    built = {site: build(x) for site, x in seen.items()}
    data = f"SmolLM2, layers {', '.join(map(str, LAYERS))}, {ROWS} x {LENGTH} tokens of the project's answers, k {K}"
    return [*fit(built, seen, held, data), *likeness(built, seen, data)]


def build(x: torch.Tensor) -> SAE:
    return build_itda(x, k=K, min_cosine=COSINE, batch_tokens=BATCH * (LENGTH - 1), progress=False)


def fvu(atoms: torch.Tensor, x: torch.Tensor) -> float:
    """Share of variance that signed matching pursuit over unit rows leaves."""
    sae = SAE(Atoms(K, len(atoms)), d_in=x.shape[1], d_sae=len(atoms), seed=None).requires_grad_(False)
    sae.W_dec.data, sae.b_dec.data = functional.normalize(atoms, dim=1), torch.zeros(x.shape[1])
    return float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def fit(built: dict[str, SAE], seen: dict, held: dict, data: str) -> list[dict]:
    ours, normal, tokens = [], [], []
    for site, sae in built.items():
        ours.append(fvu(sae.W_dec, held[site]))
        for seed in SEEDS:
            g = torch.Generator().manual_seed(seed)
            normal.append(fvu(torch.randn(sae.W_dec.shape, generator=g), held[site]))
            tokens.append(fvu(seen[site][torch.randperm(len(seen[site]), generator=g)[: sae.d_sae]], held[site]))
    sizes = ", ".join(str(sae.d_sae) for sae in built.values())
    shared = {"paper": PAPER, "data": f"{data}; {HELD} rows held out; {sizes} atoms", "seeds": len(SEEDS),
              "result": "fvu " + ", ".join(f"{v:.3f}" for v in ours)}
    by_layer = [[mean(rows[i : i + 3]) for i in range(0, len(rows), 3)] for rows in (normal, tokens)]
    spread = [max(stdev(rows[i : i + 3]) for i in range(0, len(rows), 3)) for rows in (normal, tokens)]
    return [
        {**shared, "claim": "held-out tokens are fitted far better than by as many normal directions (half the fvu)",
         "baseline": "fvu " + ", ".join(f"{v:.3f}" for v in by_layer[0]),
         "spread": f"sd of the baseline {spread[0]:.3f}",
         "holds": all(a < 0.5 * b for a, b in zip(ours, by_layer[0], strict=True))},
        {**shared, "claim": "and better than by tokens drawn at random",
         "baseline": "fvu " + ", ".join(f"{v:.3f}" for v in by_layer[1]),
         "spread": f"sd of the baseline {spread[1]:.3f}",
         "holds": all(a < b for a, b in zip(ours, by_layer[1], strict=True))},
    ]


def likeness(built: dict[str, SAE], seen: dict, data: str) -> list[dict]:
    """Layers against turned copies of themselves with noise, and against one another."""
    first = list(built.values())
    accuracy, own, rest, exact = [], [], [], []
    for seed in SEEDS:
        g = torch.Generator().manual_seed(seed)
        copies = []
        for x in seen.values():
            turned = 3 * x @ torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=g)).Q
            noise = torch.randn(x.shape, generator=g) * turned.norm(dim=1, keepdim=True) * 0.05 / x.shape[1] ** 0.5
            copies.append(build(turned + noise))
        found = match_layers(first, copies)
        accuracy.append(found.accuracy)
        own += found.similarity.diagonal().tolist()
        rest += found.similarity[~torch.eye(len(first), dtype=torch.bool)].tolist()
    x = seen[next(iter(seen))]
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(9))).Q
    exact = jaccard(first[0], build(3 * x @ turn))
    near, far = [jaccard(first[0], first[1]), jaccard(first[1], first[2])], jaccard(first[0], first[2])
    layers = list(seen.values())
    cka = [[representation_similarity(a, b) for b in layers] for a in layers]
    return [
        {"paper": PAPER, "data": data,
         "claim": "a layer is matched with its copy, turned, scaled and with 5 % noise, by shared places",
         "seeds": len(SEEDS), "baseline": f"other layers: Jaccard {mean(rest):.2f}",
         "result": f"own copy: {mean(own):.2f}; accuracy {mean(accuracy):.2f}; without noise {exact:.3f}",
         "spread": f"own {min(own):.2f} to {max(own):.2f}, others {min(rest):.2f} to {max(rest):.2f}",
         "holds": mean(accuracy) == 1.0 and exact > 0.99},
        {"paper": PAPER, "data": data, "seeds": 1,
         "claim": "layers near one another share more places than distant ones",
         "baseline": f"5 and 24: {far:.2f} (linear CKA {cka[0][2]:.2f})",
         "result": f"5 and 15: {near[0]:.2f}, 15 and 24: {near[1]:.2f} (linear CKA {cka[0][1]:.2f}, {cka[1][2]:.2f})",
         "spread": "one corpus", "holds": min(near) > far},
    ]

"""Next-token models and log-posteriors of concepts; sparse plus low-rank codes, measured by linear probes."""

import math
from statistics import mean, stdev

import torch
from torch.nn import functional

import sparselens as sl
from sparselens.sae import SparseLowRank, Structured, concept_alignment, posterior_linearity, read_pairs
from sparselens.sae.concepts import correlations
from tests.claims.planted import fvu, listed, trained

PAPER = "I Predict Therefore I Am, 2503.08980"
STATES, CONTEXTS, OUTPUTS, D = 8, 300, 40, 8
LEAKS = (0.5, 0.1, 0.01, 0.0005)
WORDS = {
    "plural": "cat cats,dog dogs,house houses,tree trees,car cars,book books,king kings,hand hands,day days,year years,"
    "girl girls,town towns,river rivers,road roads,bird birds,friend friends",
    "past": "walk walked,play played,ask asked,call called,look looked,want wanted,help helped,turn turned,need needed,"
    "work worked,open opened,talk talked,start started,move moved,live lived,use used",
    "ing": "walk walking,play playing,ask asking,call calling,look looking,want wanting,help helping,turn turning,"
    "eat eating,work working,open opening,talk talking,start starting,read reading,sing singing,go going",
    "comparative": "small smaller,great greater,old older,young younger,long longer,short shorter,high higher,"
    "low lower,fast faster,slow slower,strong stronger,weak weaker,rich richer,poor poorer,cold colder,warm warmer",
    "capital": "France Paris,Germany Berlin,Italy Rome,Spain Madrid,Japan Tokyo,China Beijing,Russia Moscow,"
    "Egypt Cairo,Austria Vienna,Poland Warsaw,Portugal Lisbon,Ireland Dublin,Cuba Havana,Peru Lima,Kenya Nairobi,"
    "Greece Athens",
    "case": "cat CAT,dog DOG,house HOUSE,tree TREE,car CAR,book BOOK,king KING,hand HAND,day DAY,year YEAR,girl GIRL,"
    "town TOWN,river RIVER,road ROAD,bird BIRD,friend FRIEND",
    "French": "cat chat,dog chien,house maison,tree arbre,car voiture,book livre,king roi,hand main,day jour,year an,"
    "girl fille,town ville,river fleuve,road route,bird oiseau,friend ami",
}


def next_token_world(leak: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Representations of a model trained on an exact table p(y | x), the log-posteriors of its contexts, and the mean
    of `1 - p(c* | x, y)`."""
    g = torch.Generator().manual_seed(seed)
    given_c = torch.rand(STATES, CONTEXTS, generator=g).double()
    given_c /= given_c.sum(1, keepdim=True)
    posterior = (given_c / given_c.sum(0)).T
    block = torch.kron(torch.eye(STATES), torch.ones(1, OUTPUTS // STATES)).double() * STATES / OUTPUTS
    other = torch.rand(STATES, OUTPUTS, generator=g).double()
    emitted = (1 - leak) * block + leak * other / other.sum(1, keepdim=True)
    table = posterior @ emitted
    joint = posterior[:, :, None] * emitted
    unclear = 1 - float(joint.amax(1).sum(1).mean())
    f = (0.1 * torch.randn(CONTEXTS, D, generator=g)).double().requires_grad_()
    heads = [(0.1 * torch.randn(OUTPUTS, D, generator=g)).double().requires_grad_(), torch.zeros(OUTPUTS).double()]
    heads[1].requires_grad_()
    adam = torch.optim.Adam([f, *heads], lr=0.05)
    for step in range(1500):
        adam.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step / 1500))
        loss = -(table * functional.log_softmax(f @ heads[0].T + heads[1], 1)).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return f.detach().float(), posterior.log().float(), unclear


def posteriors() -> list[dict]:
    seeds, logs, probs, unclear = range(3), [], [], []
    for leak in LEAKS:
        worlds = [next_token_world(leak, seed) for seed in seeds]
        found = [posterior_linearity(f, log_p) for f, log_p, _ in worlds]
        logs.append([r.r2_log for r in found])
        probs.append([r.r2_prob for r in found])
        unclear.append(mean(u for *_, u in worlds))
    log_means, prob_means = [mean(row) for row in logs], [mean(row) for row in probs]
    clear = [i for i, u in enumerate(unclear) if u <= 0.01]
    return [{
        "paper": PAPER,
        "claim": "representations become linear in the log-posterior as the concept is told by context and token: R2 "
        "rises, to 0.98 and more at an ambiguity of 0.01",
        "data": f"{STATES} states, {CONTEXTS} contexts, {OUTPUTS} outputs, exact table, width {D}",
        "seeds": len(seeds),
        "baseline": f"R2 of the posterior itself {listed(prob_means)}",
        "result": f"R2 of the log-posterior {listed(log_means)} at an ambiguity of {listed(unclear, 4)}",
        "spread": f"sd {listed([stdev(row) for row in logs], 3)}",
        "holds": log_means == sorted(log_means) and bool(clear) and min(log_means[i] for i in clear) >= 0.98,
    }]  # fmt: skip


def alignment() -> list[dict]:
    m = sl.load_model()
    pairs = {name: [tuple(" " + w for w in p.split()) for p in words.split(",")] for name, words in WORDS.items()}
    read = read_pairs(m, pairs)
    found = [concept_alignment(read, seed=seed) for seed in range(3)]
    diagonals = [one.diagonal for one in found]
    null = [float(one.null.mean()) for one in found]
    return [{
        "paper": PAPER,
        "claim": "probe weights lie along the direction in which a concept moves representations (mean diagonal 0.3, "
        "and 0.2 above random labels)",
        "data": f"SmolLM2, final norm, {len(pairs)} concepts of 16 word pairs, halves for probe and direction",
        "seeds": len(found),
        "baseline": f"random labels {mean(null):.2f}; off the diagonal {mean(o.off_diagonal for o in found):.2f}",
        "result": f"mean diagonal {mean(diagonals):.2f}",
        "spread": f"{min(diagonals):.2f} to {max(diagonals):.2f}",
        "holds": mean(diagonals) >= 0.3 and mean(diagonals) - mean(null) >= 0.2,
    }]  # fmt: skip


def dependent_concepts(n: int, strength: float, seed: int, d: int = 48, concepts: int = 96, shared: int = 4):
    """Rows of concepts of which each of a quarter makes three others likely, plus dense factors that all rows share."""
    g = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(concepts, d, generator=g), dim=1)
    factors = torch.linalg.qr(torch.randn(d, shared, generator=g)).Q.T
    roots = concepts // 4
    parent = torch.rand(n, roots, generator=g) < 0.06
    child = torch.rand(n, concepts - roots, generator=g) < torch.where(parent.repeat(1, 3), 0.3, 0.01)
    held = torch.cat([parent, child], 1).float()
    size = 0.5 + torch.rand(n, concepts, generator=g)
    return (held * size) @ directions + strength * torch.randn(n, shared, generator=g) @ factors, held


def recovered(codes, held: torch.Tensor) -> float:
    """Mean over concepts of the correlation of their best latent, chosen on one half of the rows."""
    z = codes.dense() if hasattr(codes, "dense") else codes
    half = len(z) // 2
    best = correlations(z[:half], held[:half]).abs().argmax(0)
    return float(correlations(z[half:][:, best], held[half:]).diagonal().abs().mean())


def structured() -> list[dict]:
    recipes = {
        "TopK": {"architecture": "topk"},
        "p-annealing": {"architecture": "relu", "rules": [SparseLowRank()]},
        "structured": {"architecture": Structured(8)},
    }
    seeds, rows = range(2), []
    for strength in (1.0, 0.0):
        score, left, active = ({name: [] for name in recipes} for _ in range(3))
        for seed in seeds:
            x, held = dependent_concepts(30_000, strength, seed)
            for name, recipe in recipes.items():
                sae = trained(x[:-8000], 1500, 512, d_sae=192, k=6, seed=seed, **recipe)
                codes = sae.encode(x[-8000:])
                score[name].append(recovered(codes, held[-8000:]))
                left[name].append(fvu(sae, x[-8000:]))
                dense = codes.dense() if hasattr(codes, "dense") else codes
                active[name].append(float((dense != 0).sum() / len(dense)))
        means = {name: mean(values) for name, values in score.items()}
        for other in ("p-annealing", "TopK"):
            least = 0.02 if strength else -0.02
            rows.append({
                "paper": PAPER,
                "claim": f"with factors that all rows share, sparse latents beside a low-rank code follow concepts "
                f"better than {other} (by 0.02 at equal l0)" if strength else
                f"and where nothing is shared, no worse than {other} (by 0.02)",
                "data": f"96 dependent concepts in 48 dimensions, {4 if strength else 0} shared factors, 192 latents, "
                "k 6",
                "seeds": len(seeds),
                "baseline": f"{other} {means[other]:.3f} (fvu {mean(left[other]):.3f}, l0 {mean(active[other]):.1f})",
                "result": f"{means['structured']:.3f} (fvu {mean(left['structured']):.3f}, "
                f"l0 {mean(active['structured']):.1f})",
                "spread": f"over seeds {listed([max(v) - min(v) for v in score.values()], 3)}",
                "holds": means["structured"] >= means[other] + least,
            })  # fmt: skip
    return rows


def run() -> list[dict]:
    """Rows: log-posteriors, alignment on SmolLM2, the structured SAE with and without shared factors."""
    torch.set_num_threads(1)
    return [*posteriors(), *alignment(), *structured()]

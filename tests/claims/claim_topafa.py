"""top-AFA and its diagnostic: norms of codes against norms of inputs."""

from statistics import mean

import torch

import sparselens as sl
from sparselens.sae import TopAFA, zf
from tests.claims.planted import listed, trained

PAPER = "top-AFA, 2503.24277"
D, H, ROWS = 256, 1024, 1000
SEEDS = (0, 1, 2)
KS = (8, 32, 128)


def counted(seed: int, noise: float, min_act: float | None = None) -> tuple[float, float]:
    """Correlation of the number of kept latents with the true number, and their mean distance, for oracle activations
    with or without cross-talk of all other latents."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(H, D, generator=g), dim=1)
    truth = torch.randint(2, 40, (ROWS,), generator=g)
    ranks = torch.rand(ROWS, H, generator=g).argsort(1).argsort(1)
    acts = (ranks < truth[:, None]) * (torch.rand(ROWS, H, generator=g) + 0.5)
    target = (acts @ rows).norm(dim=1)
    acts = acts + noise * torch.rand(ROWS, H, generator=g) * (acts == 0)
    part = TopAFA() if min_act is None else TopAFA(min_act=min_act)
    kept = (part.keep(acts, torch.ones(H), target) > 0).sum(1).float()
    return float(torch.corrcoef(torch.stack([kept, truth.float()]))[0, 1]), float((kept - truth).abs().mean())


def run() -> list[dict]:
    """Rows: the rule on oracle activations, with cross-talk, and the diagnostic on the real model."""
    torch.set_num_threads(1)
    clean, mixed, cut = ([counted(seed, *how) for seed in SEEDS] for how in ((0.0,), (0.02,), (0.02, 0.05)))
    data = f"{H} directions in {D}, 2 to 39 active, oracle activations"
    shared = {"paper": PAPER, "seeds": len(SEEDS)}

    def told(found: list[tuple[float, float]]) -> str:
        return f"correlation {mean(c for c, _ in found):.2f}, off by {mean(o for _, o in found):.1f}"

    return [
        {
            **shared,
            "claim": "the number of latents is read off the norm (correlation 0.9, off by 4 at most)",
            "data": data,
            "baseline": "a constant k: correlation 0, off by 9.5",
            "result": told(clean),
            "spread": listed([c for c, _ in clean]),
            "holds": min(c for c, _ in clean) >= 0.9 and max(o for _, o in clean) <= 4,
        },
        {
            **shared,
            "claim": "it survives cross-talk of up to 2 % in all other latents: only with small activations cut off",
            "data": f"{data}, and cross-talk",
            "baseline": f"no cut: {told(mixed)}",
            "result": f"min_act 0.05: {told(cut)}",
            "spread": listed([c for c, _ in cut]),
            "holds": min(c for c, _ in cut) >= 0.9,
        },
        _diagnostic(),
    ]


def _diagnostic() -> dict:
    m = sl.load_model()
    texts = [*sl.datasets.load_answers("formal")["answer"], *sl.datasets.load_answers("chatty")["answer"]][:480]
    site = "blocks.15.hook_resid_post"
    x = torch.cat([batch.values[~batch.first & batch.content].float() for batch in m.stream(texts, site)])
    ratios = []
    for k in KS:
        sae = trained(x[2000:], 250, 1024, architecture="topk", d_sae=2304, k=k)
        ratios.append(float(zf(sae, x[:2000]).ratio.median()))
    return {
        "paper": PAPER,
        "seeds": 1,
        "claim": "with more latents the norm of codes comes nearer to that of tokens",
        "data": f"SmolLM2, layer 15, {len(x):,} tokens, TopK with k = {', '.join(map(str, KS))}",
        "baseline": "1 (norms agree)",
        "result": "median ratio " + listed(ratios, 3),
        "spread": "one seed",
        "holds": ratios == sorted(ratios) and abs(ratios[-1] - 1) < abs(ratios[0] - 1),
    }

"""AbsTopK: on signed features one latent does the work of two."""

import torch

from sparselens.sae import SAE, bidirectionality, train_sae

SEEDS = (0, 1, 2)
D, N, ACTIVE = 32, 48, 3


def planted(seed: int, signed: bool, rows: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of 3 of 48 unit directions in 32 dimensions, coefficients of size 0.5 to 1.5; and the coefficients."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=generator), dim=1)
    which = torch.rand(rows, N, generator=generator).topk(ACTIVE, dim=1).indices
    sizes = torch.rand(rows, ACTIVE, generator=generator) + 0.5
    if signed:
        sizes *= torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1
    codes = torch.zeros(rows, N).scatter(1, which, sizes)
    return codes @ directions, codes


def trained(x: torch.Tensor, architecture: str, d_sae: int, seed: int) -> SAE:
    settings = {"architecture": architecture, "d_sae": d_sae, "k": ACTIVE, "lr": 3e-3, "seed": seed, "decay": 0.3}
    return train_sae(x, n_tokens=1500 * 512, batch_size=512, progress=False, live=False, **settings)[0]


def measured(sae: SAE, x: torch.Tensor, codes: torch.Tensor) -> tuple[float, float]:
    """FVU, and the mean over features of the best signed correlation of a latent with the coefficient."""
    fvu = float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    z = sae.encode(x).dense()
    z, truth = z - z.mean(0), codes - codes.mean(0)
    corr = (truth.T @ z) / (truth.norm(dim=0)[:, None] * z.norm(dim=0).clamp_min(1e-9))
    return fvu, float(corr.abs().max(1).values.mean())


def run() -> list[dict]:
    torch.set_num_threads(1)
    rows = []
    gaps: dict[int, list[tuple[float, float]]] = {N: [], 2 * N: []}
    control, corr, sides = [], [], []
    for seed in SEEDS:
        x, codes = planted(seed, signed=True)
        for d_sae in gaps:
            found = {name: trained(x, name, d_sae, seed) for name in ("abstopk", "topk")}
            (a, corr_a), (t, corr_t) = (measured(found[name], x[:8000], codes[:8000]) for name in ("abstopk", "topk"))
            gaps[d_sae].append((a, t))
            if d_sae == N:
                corr.append((corr_a, corr_t))
                sides.append(bidirectionality(found["abstopk"], x[:8000]).share)
        x, codes = planted(seed, signed=False)
        a, t = (measured(trained(x, name, N, seed), x[:8000], codes[:8000])[0] for name in ("abstopk", "topk"))
        control.append(a / t)
    paper, data = "AbsTopK 2510.00404", "48 directions in 32 dimensions, 3 active with coefficients of both signs"
    for d_sae, pairs in gaps.items():
        ratios = [a / t for a, t in pairs]
        rows.append(
            {
                "paper": paper,
                "claim": f"AbsTopK leaves less than 0.6 of TopK's FVU with {d_sae} latents",
                "data": data,
                "seeds": len(SEEDS),
                "baseline": f"TopK FVU {mean([t for _, t in pairs]):.3f}",
                "result": f"FVU {mean([a for a, _ in pairs]):.3f}",
                "spread": f"ratio {min(ratios):.2f} to {max(ratios):.2f}",
                "holds": max(ratios) < 0.6,
            }
        )
    differences = [a - t for a, t in corr]
    rows.append(
        {
            "paper": paper,
            "claim": "one latent follows a signed feature: its best correlation is 0.2 above TopK's",
            "data": data,
            "seeds": len(SEEDS),
            "baseline": f"TopK {mean([t for _, t in corr]):.2f}",
            "result": f"{mean([a for a, _ in corr]):.2f}; {mean(sides):.0%} of latents use both signs",
            "spread": f"gap {min(differences):.2f} to {max(differences):.2f}",
            "holds": min(differences) >= 0.2,
        }
    )
    rows.append(
        {
            "paper": paper,
            "claim": "where nothing is signed there is no gain (FVU ratio 0.7 to 1.5)",
            "data": "the same with positive coefficients",
            "seeds": len(SEEDS),
            "baseline": "TopK, ratio 1",
            "result": f"ratio {mean(control):.2f}",
            "spread": f"{min(control):.2f} to {max(control):.2f}",
            "holds": min(control) >= 0.7 and max(control) <= 1.5,
        }
    )
    return rows


def mean(values: list[float]) -> float:
    return sum(values) / len(values)

"""Routing Transformer: what clusters catch of a real model's attention, and what they bring a small model in training.

Characters and texts: see `tests/claims/tiny_lms.py` and `tests/claims/texts.py`.
"""

from statistics import mean, median

import torch

import sparselens as sl
from sparselens import datasets
from sparselens.attention import Centroids, RoutingAttention, SelfAttention
from sparselens.attention.clusters import membership, normalised
from sparselens.models.tiny import lm_scores, next_token, tiny_lm, train_lm
from tests.claims.texts import token_ids
from tests.claims.tiny_lms import HEADS, LENGTH, D, characters, held_out_loss, told, widest

PAPER = "Routing Transformer, 2003.05997"
SEEDS, STEPS = (0, 1, 2), 150
TOKENS, CLUSTERS, SINK, NEAR = 512, 16, 4, 64
RECALL = {"facts": 32, "gap": 64, "interleaved": True}
RECALL_STEPS, BLOCK = 300, 16
KINDS = {
    "dense": lambda i: SelfAttention(D, HEADS),
    "local": lambda i: RoutingAttention(D, HEADS, local_heads=HEADS, window=BLOCK),
    "local and routing": lambda i: RoutingAttention(D, HEADS, 2, clusters=8, window=BLOCK, assign="causal_topw"),
}


def run() -> list[dict]:
    """Rows: attention of SmolLM2 that clusters catch, and as a mask; characters; recall beyond the window; leakage."""
    torch.set_num_threads(1)
    return [_captured(), _as_mask(), _characters(), _recall(), _leakage()]


def _captured() -> dict:
    """The first tokens, to which most heads give much attention whatever the text says, are left out of the count."""
    model = sl.load_model()
    name, tokens = token_ids(model)
    ratios, kept = [], {"clusters": [], "by lot": [], "with a window": []}
    generator = torch.Generator().manual_seed(0)
    at = torch.arange(TOKENS)
    near = (at[:, None] - at < NEAR)[:, SINK:]
    sites = [f"blocks.{i}.attn.hook_{kind}" for i in range(model.n_layers) for kind in ("q", "k", "pattern")]
    seen = model.capture(tokens[None, :TOKENS], sites)
    for i in range(model.n_layers):
        block = f"blocks.{i}.attn.hook_"
        query, key = (normalised(seen[block + kind].unflatten(-1, (heads, -1)).transpose(1, 2))
                      for kind, heads in (("q", model.n_heads), ("k", model.n_kv_heads)))
        key = key.repeat_interleave(model.n_heads // model.n_kv_heads, 1)[:, :, SINK:]
        centroids = Centroids(model.n_heads, CLUSTERS, model.d_head, decay=0.0)
        centroids.start(key)  # of the keys: queries lie elsewhere, and go to the centroid they fit best
        for _ in range(20):
            centroids.update(key)
        ours, theirs = (membership(centroids.scores(x), 1, "argmax")[0].float() for x in (query, key))
        same = (ours @ theirs.transpose(1, 2)) > 0
        shuffled = same[:, :, torch.randperm(TOKENS - SINK, generator=generator)]
        pattern = seen[block + "pattern"][0][..., SINK:]
        total = pattern.sum((-1, -2))
        ways = {"clusters": same, "by lot": shuffled, "with a window": same | near}
        mass = {way: (pattern * keep).sum((-1, -2)) / total for way, keep in ways.items()}
        for way, caught in mass.items():
            kept[way] += caught.tolist()
        ratios += (mass["clusters"] / mass["by lot"].clamp(min=1e-9)).tolist()
    share = sum(ratio >= 1.3 for ratio in ratios) / len(ratios)
    return {
        "paper": PAPER,
        "claim": "clusters of keys, queries with their best centroid, catch 1.3 times what clusters by lot do in most "
                 "heads",
        "data": f"SmolLM2-135M, {TOKENS} tokens of {name}, {CLUSTERS} clusters a head; {SINK} first tokens left out",
        "seeds": 1,
        "baseline": f"by lot, as many keys for each query: {mean(kept['by lot']):.3f} of the attention",
        "result": f"{mean(kept['clusters']):.3f}; with a window of {NEAR} {mean(kept['with a window']):.3f}; "
                  f"median ratio {median(ratios):.2f}",
        "spread": f"1.3 times or more in {share:.0%} of {len(ratios)} heads",
        "holds": share > 0.5,
    }


def _as_mask() -> dict:
    """KL(dense || sparse) over the last half of two passages, clusters found on other text of the same kind."""
    model = sl.load_model()
    name, tokens = token_ids(model)
    passages = [tokens[None, i * TOKENS : (i + 1) * TOKENS] for i in range(2)]
    routing = sl.KMeansRouting(CLUSTERS, sink=SINK, local=NEAR // 2).fit(model, tokens[None, -3 * TOKENS : -TOKENS])

    def late(ids):
        return model.run(ids).logits[0, TOKENS // 2 : -1].log_softmax(-1)

    def cost(thing) -> tuple[list[float], float]:
        counted, found = thing.counted(model), []
        for ids in passages:
            dense = late(ids)
            with model.attach(counted):
                found.append(float((dense.exp() * (dense - late(ids))).sum(-1).mean()))
        return found, 1 - counted.numbers()["sparsity"]

    mine, density = cost(routing)
    others = {"window": sl.SinkWindow(density, phase="prefill"), "by lot": sl.RandomBlocks(density, phase="prefill"),
              "Vertical-Slash": sl.VerticalSlash(density), "blocks": sl.BlockSparse(density)}
    found = {kind: cost(thing) for kind, thing in others.items()}
    return {
        "paper": PAPER,
        "claim": "as a mask for a model that was trained without it, clusters beside a window cost less than a longer "
                 "window with as many keys",
        "data": f"SmolLM2-135M, {len(passages)} passages of {TOKENS} tokens of {name}, {CLUSTERS} clusters a key head, "
                f"{SINK} first and {NEAR // 2} last keys, all layers",
        "seeds": len(passages),
        "baseline": "KL " + ", ".join(f"{kind} {mean(kl):.2f} (density {d:.2f})" for kind, (kl, d) in found.items()),
        "result": f"KL {mean(mine):.2f} (density {density:.2f})",
        "spread": f"{min(mine):.2f} to {max(mine):.2f} over passages",
        "holds": mean(mine) < mean(found["window"][0]),
    }


def _characters() -> dict:
    text = characters()
    losses = {name: [held_out_loss(kind, seed, STEPS, text) for seed in SEEDS] for name, kind in KINDS.items()}
    return {
        "paper": PAPER,
        "claim": "two routing heads in the place of two local ones do not raise the loss",
        "data": f"{text[0]}, {LENGTH} tokens, window {BLOCK}, {STEPS} steps",
        "seeds": len(SEEDS),
        "baseline": f"all heads local {mean(losses['local']):.3f}, dense {mean(losses['dense']):.3f}",
        "result": told(losses),
        "spread": f"{widest(losses):.3f} nats at most between seeds",
        "holds": mean(losses["local and routing"]) <= mean(losses["local"]),
    }


def _recall() -> dict:
    """Right answers to keys whose values stand at least `gap` tokens back, beyond what two local layers reach."""

    def example(n: int, seed: int):
        ids, start = datasets.recall_rows(n, seed=seed, **RECALL)
        asked = torch.zeros_like(ids, dtype=torch.bool)
        asked[:, start + 1 :: 2] = True
        return next_token(ids, asked)

    def score(kind, seed: int) -> float:
        model = tiny_lm(datasets.RECALL_VOCAB, d_model=D, n_layers=2, n_heads=HEADS, length=LENGTH, attention=kind,
                        seed=seed)
        first = 1000 * (1 + seed)
        train_lm(model, (example(16, first + i) for i in range(RECALL_STEPS)), RECALL_STEPS, lr=5e-3)
        return lm_scores(model, [example(64, 1)])[1]

    right = {name: [score(kind, seed) for seed in SEEDS] for name, kind in KINDS.items()}
    chance, mine = 1 / datasets.RECALL_VALUES, mean(right["local and routing"])
    return {
        "paper": PAPER,
        "claim": "routing answers 0.5 above chance what local heads cannot, within 0.15 of dense",
        "data": f"eight facts, {RECALL['gap']} tokens of filler, eight questions; {RECALL_STEPS} steps",
        "seeds": len(SEEDS),
        "baseline": f"chance {chance:.2f}, local {mean(right['local']):.2f}, dense {mean(right['dense']):.2f}",
        "result": f"{mine:.2f}",
        "spread": "over seeds " + "; ".join(f"{k} {min(v):.2f} to {max(v):.2f}" for k, v in right.items()),
        "holds": mine >= max(chance + 0.5, mean(right["dense"]) - 0.15),
    }


def _leakage() -> dict:
    """What the first half of a row notices of the second."""
    x = torch.randn(4, 64, D, generator=torch.Generator().manual_seed(0))
    found = {}
    for assign in ("topw", "argmax", "causal_topw"):
        layer = RoutingAttention(D, HEADS, 0, clusters=8, window=8, assign=assign)
        layer(x)
        found[assign] = layer.leakage(x, 32)
    return {
        "paper": PAPER,
        "claim": "clusters of the closest tokens of the whole row let the future in; nearest centroids do not",
        "data": "random vectors, 64 tokens, the second half exchanged",
        "seeds": 1,
        "baseline": "0 for an attention that depends on the past only",
        "result": "; ".join(f"{assign} {change:.3g}" for assign, change in found.items()),
        "spread": "largest change of an output",
        "holds": found["topw"] > 1e-3 and found["argmax"] == found["causal_topw"] == 0,
    }

"""Decoding one token at a time from the kept weight columns alone, end to end through `m.generate`.

On SmolLM2 and on a Llama-shaped model of width 2,048 with random weights, in float32 (bfloat16 for the record). The
baseline is the faster of two dense forms: the layers as they are, and the product with the transposed copy of each
weight. Forms alternate within a round, and the median over the rounds counts. Selecting channels is part of the time.
`bound` in a note is the dense bytes a token over those that are read: where a computer waits for its memory, no kernel
does better.

Run it as `OMP_NUM_THREADS=2 python -m tests.bench --only activation`: the number of threads is what counts on most
computers, and it is in the note.
"""

import time
from contextlib import nullcontext
from statistics import median

import torch

import sparselens as sl
from sparselens.activation import linears
from sparselens.activation.kernels import backend
from sparselens.models.engine import Swap

SHORT, NEW, ROUNDS = 6, 24, 5
PROMPT = "Once upon a time, in a village by the sea, there lived a fisherman who"
R_SPARSE = 1.43  # published for R-Sparse at half the weights
TARGETS = {"SmolLM2": {0.5: 1.5, 0.65: 1.8}, "width 2,048": {0.5: 1.4, 0.65: 1.8}}


class Transposed:
    """The linear layers as products with contiguous transposed copies: the other dense form."""

    def __init__(self):
        self.copies: dict[int, torch.Tensor] = {}

    def edits(self, model: sl.LiveModel, at: object = None) -> list[Swap]:
        return [self._swap(linear) for linear in linears(model)]

    def _swap(self, linear) -> Swap:
        if id(linear.module) not in self.copies:
            self.copies[id(linear.module)] = linear.weight.detach().T.contiguous()
        stored = self.copies[id(linear.module)]
        return Swap(linear.site, lambda x, _original, _context: x @ stored)


def wide() -> sl.LiveModel:
    """Four Llama blocks of width 2,048 with seeded random weights and a small vocabulary, which never stop writing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49_152, hidden_size=2048, intermediate_size=5632, num_hidden_layers=6,
                         num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=512,
                         eos_token_id=None, bos_token_id=None)
    return sl.wrap(LlamaForCausalLM(config).eval(), sl.load_model().tokenizer)


def rate(m: sl.LiveModel) -> float:
    """Tokens per second of what `m.generate` writes after its first few tokens.

    Raises:
        RuntimeError: the model stopped writing.
    """
    at: list[float] = []
    handle = m.native.register_forward_hook(lambda *_: at.append(time.perf_counter()))
    try:
        m.generate(PROMPT, max_new_tokens=SHORT + NEW)
    finally:
        handle.remove()
    if len(at) != SHORT + NEW:
        raise RuntimeError(f"the model wrote {len(at)} tokens of {SHORT + NEW}: give another prompt.")
    return NEW / (at[-1] - at[SHORT - 1])


def rates(m: sl.LiveModel, forms: dict[str, object], rounds: int = ROUNDS) -> dict[str, float]:
    """Median tokens per second of every form, forms taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, thing in forms.items():
            with nullcontext() if thing is None else m.attach(thing):
                found[name].append(rate(m))
    return {name: median(each) for name, each in found.items()}


def bound(m: sl.LiveModel, sparsity: float) -> float:
    """Dense weights read a token over those read at a sparsity; the unembedding is read whole."""
    layers, rest = sum(linear.numel for linear in linears(m)), m.unembedding.numel()
    return (layers + rest) / (layers * (1 - sparsity) + rest)


def run() -> list[dict]:
    """Rows of the benchmark table."""
    return [row for name, make in (("SmolLM2", sl.load_model), ("width 2,048", wide)) for row in _rows(name, make())]


def _rows(name: str, m: sl.LiveModel) -> list[dict]:
    forms: dict[str, object] = {"dense": None, "transposed": Transposed()}
    forms |= {f"{share:.0%}": sl.WINA(share) for share in TARGETS[name]}
    forms["idle"] = sl.WINA(0.5, phase="prefill", speed="mask")
    if name == "SmolLM2":  # the factors of the wide model take minutes to compute
        forms["R-Sparse 50%"] = sl.RSparse(0.5)
    found = rates(m, forms)
    dense = max(found["dense"], found["transposed"])
    how = f"{torch.get_num_threads()} threads, {backend()} kernel, median of {ROUNDS} rounds"
    row = {"baseline": dense, "unit": "tokens/s"}
    rows = [
        {"name": f"decode, {name}, WINA {share:.0%}", "ours": found[f"{share:.0%}"], "target": f">= {least}",
         "note": f"bound {bound(m, share):.2f}; {how}", **row}
        for share, least in TARGETS[name].items()
    ]
    if "R-Sparse 50%" in found:
        rows.append({"name": f"decode, {name}, R-Sparse 50%", "ours": found["R-Sparse 50%"], "target": f">= {R_SPARSE}",
                     "note": f"bound {bound(m, 0.5):.2f}; {how}", **row})
    rows.append({"name": f"decode, {name}, attached but idle", "ours": found["idle"], "target": ">= 0.97",
                 "note": how, "baseline": found["dense"], "unit": "tokens/s"})
    return [*rows, _half(name, m)]


def _half(name: str, m: sl.LiveModel) -> dict:
    """The same in bfloat16, at half the channels."""
    m.native.to(torch.bfloat16)
    m = sl.wrap(m.native, m.tokenizer)
    found = rates(m, {"dense": None, "transposed": Transposed(), "50%": sl.WINA(0.5)}, rounds=2)
    return {"name": f"decode, {name}, WINA 50%, bfloat16", "ours": found["50%"], "unit": "tokens/s", "target": "> 0",
            "baseline": max(found["dense"], found["transposed"]), "note": f"bound {bound(m, 0.5):.2f}; for the record"}

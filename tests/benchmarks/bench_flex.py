"""Sparse attention on a GPU: the `flex` executor against dense attention by PyTorch's FlashAttention kernel.

`python -m tests.bench --only flex --out FILE` on a machine with CUDA: a minute and a half, most of it compiling.
Figures are medians of CUDA events, rounds taking turns. Block masks are built apart, and their cost is noted.
Patterns keep blocks of 128 by lot, the same share of every row; the own block is always among them.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

import sparselens as sl
from sparselens.attention.executors import attend_blocks, block_mask, flex, masked
from sparselens.attention.method import Layer
from sparselens.attention.pattern import Allowed, Pattern, top_blocks
from sparselens.models.attention_function import Heads

HEADS, KV, BLOCK, ROUNDS = 32, 8, 128, 7
#: length, causal, head dim; those that matter most come first
CASES = [(n, causal, d) for d in (128, 64) for n in (65_536, 32_768) for causal in (False, True)]
DENSITIES = (0.1, 0.2, 0.3, 0.5)
SECONDS = 100  # no case is begun after it
SPARSED = 0.3  # the density at which SparseD promises 1.5 times the speed, at 64k
Row = dict[str, object]


def run(device: str = "cuda", cases: Any = CASES, small: int = 2048) -> list[Row]:
    """Rows: correctness, speed by length and density, planning. None without CUDA. Smaller arguments try the script.

    A part that fails is printed, and the others still run.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("bench_flex: skipped, there is no CUDA device", file=sys.stderr)
        return []
    start, rows = time.perf_counter(), []
    parts: list[tuple[str, Callable[[], Iterator[Row]]]] = [("equality", lambda: equality(device, small))]
    parts += [(f"case {c}", lambda c=c: speed(device, *c)) for c in cases]
    planned = max(n for n, _, _ in cases)
    parts.insert(5, ("planning", lambda: planning(device, planned)))
    for name, part in parts:
        if time.perf_counter() - start > SECONDS:
            print(f"{name}: left out, {SECONDS} s are over", file=sys.stderr)
            continue
        try:
            with torch.no_grad():
                rows += list(part())
        except Exception:
            traceback.print_exc()
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def equality(device: str, n: int) -> Iterator[Row]:
    """Flex against the exact attention of some rows, and the masked executor beside it, in float32."""
    for causal, length, block in ((True, n, 128), (False, n - 48, 64)):
        heads, allowed = random_heads(length, 64, causal, device, torch.float32), allow(length, causal, device)
        pattern = random_pattern(allowed, 0.3, block)
        truth = brute(heads, pattern.rows(allowed)[0], torch.arange(length, device=device))
        errors = {run: apart(run(heads, pattern, allowed)[0], truth) for run in (flex, masked)}
        yield {"name": f"flex, float32, {length} tokens, {kind(causal)}, blocks of {block}: error",
               "ours": errors[flex], "baseline": None, "target": "<= 1e-5",
               "note": f"of float64, relative; the masked executor's {errors[masked]:.1e}"}


def speed(device: str, n: int, causal: bool, d: int) -> Iterator[Row]:
    """Rows of one length: the time by density; whether some rows are right; SparseD's aim."""
    heads, allowed = random_heads(n, d, causal, device, torch.bfloat16), allow(n, causal, device)
    patterns = {density: random_pattern(allowed, density) for density in DENSITIES}
    masks = {density: block_mask(pattern, allowed) for density, pattern in patterns.items()}
    repeated = [x.repeat_interleave(HEADS // KV, 1) for x in (heads.key, heads.value)]
    work: dict[Any, Callable[[], Any]] = {"flash": lambda: dense(heads, repeated, "FLASH_ATTENTION")}
    if works(lambda: dense(heads, repeated, "CUDNN_ATTENTION")):
        work["cudnn"] = lambda: dense(heads, repeated, "CUDNN_ATTENTION")
    for density in DENSITIES:
        work[density] = lambda density=density: attend_blocks(heads, masks[density], allowed)
        work["mask", density] = lambda density=density: block_mask(patterns[density], allowed)
    ms = medians(work, device)
    where = f"{n:,} tokens, {kind(causal)}, head dim {d}"
    note = f"{card(device)}, {HEADS} heads, {KV} for keys, bf16; cuDNN's dense {ms.get('cudnn', float('nan')):.2f} ms"
    for density in DENSITIES:
        found = patterns[density].density(allowed)
        yield {"name": f"flex, {where}, density {found:.3f}", "ours": ms[density], "baseline": ms["flash"],
               "target": f"<= {found + 0.1:.3f}", "unit": "ms",
               "note": f"{note}; building the block mask {ms['mask', density]:.2f} ms"}
    yield from rightness(heads, patterns[SPARSED], allowed, repeated, where)
    whole = ms[SPARSED] + ms["mask", SPARSED]
    yield {"name": f"speed with the block mask built anew, {where}, density {SPARSED}", "ours": 1000 / whole,
           "baseline": 1000 / ms["flash"], "target": ">= 1.5" if n >= 65_536 else "> 0", "unit": "layers/s",
           "note": note}


def rightness(
    heads: Heads, pattern: Pattern, allowed: Allowed, repeated: list[torch.Tensor], where: str
) -> Iterator[Row]:
    """The error of some query rows against float64, and FlashAttention's on the same rows without a pattern."""
    rows = torch.randperm(allowed.n_q, generator=torch.Generator().manual_seed(1))[:32].sort().values
    rows = rows.to(heads.query.device)
    keep = torch.cat([pattern.rows(allowed, int(i), int(i) + 1)[0] for i in rows], 1)
    whole = torch.cat([allowed.rows(int(i), int(i) + 1)[0] for i in rows], 1).expand_as(keep)
    ours = apart(flex(heads, pattern, allowed)[0, :, rows], brute(heads, keep, rows))
    flash = apart(dense(heads, repeated, "FLASH_ATTENTION")[0, :, rows], brute(heads, whole, rows))
    yield {"name": f"flex, bf16, {where}: error", "ours": ours, "baseline": None, "target": "<= 1e-2",
           "note": f"of float64 in {len(rows)} rows by lot, relative; FlashAttention's dense {flash:.1e}"}


def planning(device: str, n: int) -> Iterator[Row]:
    """What choosing a pattern costs, beside one dense layer."""
    things: list[tuple[int, bool, sl.attention.SparseAttention]] = [
        (n, True, sl.BlockSparse(0.2, block=BLOCK)),
        (n // 2, True, sl.VerticalSlash(0.2, granularity="kernel64")),
        (n // 2, False, sl.SparseD(SPARSED, block=BLOCK)),
        (n, False, sl.SparseD(SPARSED, block=BLOCK)),
    ]
    for length, causal, method in things:
        heads, allowed = random_heads(length, 128, causal, device, torch.bfloat16), allow(length, causal, device)
        repeated = [x.repeat_interleave(HEADS // KV, 1) for x in (heads.key, heads.value)]
        ask = Layer(heads.query, heads.key, allowed, 0, heads.scale)
        try:
            found = method.prefill(ask).density(allowed)
        except torch.OutOfMemoryError:
            print(f"planning {method} at {length}: out of memory", file=sys.stderr)
            continue
        ms = medians({"dense": lambda heads=heads, kv=repeated: dense(heads, kv, "FLASH_ATTENTION"),
                      "plan": lambda method=method, ask=ask: method.prefill(ask)}, device, rounds=1)
        yield {"name": f"planning {type(method).__name__}, {length:,} tokens, {kind(causal)}", "ours": ms["plan"],
               "baseline": ms["dense"], "target": "> 0", "unit": "ms",
               "note": f"of one layer, {card(device)}, head dim 128, density that came out {found:.3f}; SparseD plans "
                       "once for a whole generation"}


def random_heads(n: int, d: int, causal: bool, device: str, dtype: torch.dtype) -> Heads:
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (torch.randn(1, h, n, d, generator=generator, device=device, dtype=dtype)
                         for h in (HEADS, KV, KV))
    return Heads(query, key, value, None, causal, d**-0.5)


def allow(n: int, causal: bool, device: str) -> Allowed:
    return Allowed(n, n, causal, None, torch.device(device))


def random_pattern(allowed: Allowed, density: float, block: int = BLOCK) -> Pattern:
    """Blocks by lot, the same share of every row, the own one among them."""
    possible = allowed.tiles((block, block)) > 0
    n = possible.shape[-1]
    generator = torch.Generator(allowed.device).manual_seed(0)
    scores = torch.rand(1, HEADS, n, n, device=allowed.device, generator=generator)
    own = torch.eye(n, dtype=torch.bool, device=allowed.device)
    count = (possible.sum(-1) * density).round().long().clamp(min=1)
    return Pattern(top_blocks(scores.masked_fill(own, 2.0), count, possible.expand_as(scores)), (block, block))


def dense(heads: Heads, repeated: list[torch.Tensor], backend: str) -> torch.Tensor:
    """Dense attention by one kernel of PyTorch, keys and values repeated beforehand."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        return F.scaled_dot_product_attention(heads.query, *repeated, is_causal=heads.causal, scale=heads.scale)


def brute(heads: Heads, keep: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Exact attention of some rows in float64, `[heads, rows, d]`; `keep`: `[heads, rows, keys]`."""
    out = []
    for i in range(HEADS):
        query, key, value = (x[0, j].double() for x, j in ((heads.query, i), (heads.key, i * KV // HEADS),
                                                            (heads.value, i * KV // HEADS)))
        scores = (query[rows] @ key.T * heads.scale).masked_fill(~keep[i], -torch.inf)
        out.append(torch.softmax(scores, -1) @ value)
    return torch.stack(out)


def apart(a: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative error; NaN stays NaN, and fails every target."""
    return float((a.double() - truth).norm() / truth.norm())


def medians(work: dict[Any, Callable[[], Any]], device: str, rounds: int = ROUNDS) -> dict[Any, float]:
    """Median milliseconds of each, after a round that compiles and warms up."""
    found: dict[Any, list[float]] = {name: [] for name in work}
    for i in range(rounds + 1):
        for name, call in work.items():
            took = timed(call, device)
            if i:
                found[name].append(took)
    return {name: median(times) for name, times in found.items()}


def timed(call: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call, by CUDA events where there are any."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def works(call: Callable[[], Any]) -> bool:
    """Whether PyTorch has that kernel here."""
    try:
        call()
    except RuntimeError:
        return False
    return True


def kind(causal: bool) -> str:
    return "causal" if causal else "bidirectional"


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"

"""Matching pursuit with a table of products against multiplying the residual anew at each step.

The rival is overcomplete's `MpSAE` if OVERCOMPLETE_PYTHON names an interpreter that has it (0.3.0 was used), else the
same loop written out here. Both take the same rows and dictionary, on one thread; rounds alternate, CPU seconds of the
fastest count. The codes must agree to 1e-5.

    OVERCOMPLETE_PYTHON=v/bin/python python -m tests.bench --only mp
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from sparselens.sae import SAE
from sparselens.sae.mp import MatchingPursuit

D, D_SAE, K, ROWS, ROUNDS = 576, 4608, 32, 1024, 3

RIVAL = """
import importlib.util, sys, time, types, torch
torch.set_num_threads(1)
package = types.ModuleType("overcomplete")  # without its vision models, which need much else
package.__path__ = list(importlib.util.find_spec("overcomplete").submodule_search_locations)
sys.modules["overcomplete"] = package
from overcomplete.sae import MpSAE
given = torch.load(sys.argv[1], weights_only=True)
sae = MpSAE(given["x"].shape[1], len(given["W"]), k=int(sys.argv[3]))
sae.get_dictionary = lambda: given["W"]
with torch.no_grad():
    for line in sys.stdin:
        start = time.process_time()
        codes = sae.encode(given["x"])[1]
        seconds = time.process_time() - start
        torch.save(codes, sys.argv[2])
        print(seconds, flush=True)
"""


def loop(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """overcomplete's loop: two products with the whole dictionary a step."""
    codes, rest = torch.zeros(len(x), len(atoms)), x.clone()
    for _ in range(k):
        value, index = (rest @ atoms.T).max(1)
        added = torch.nn.functional.one_hot(index, len(atoms)).float() * value[:, None]
        codes, rest = codes + added, rest - added @ atoms
    return codes


def run() -> dict:
    """The row of the benchmark table."""
    torch.set_num_threads(1)
    sae = SAE(MatchingPursuit(K, tol=0.0), d_in=D, d_sae=D_SAE).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    picked = torch.rand(ROWS, D_SAE, generator=generator).topk(2 * K).indices
    truth = torch.zeros(ROWS, D_SAE).scatter(1, picked, torch.rand(ROWS, 2 * K, generator=generator) + 0.5)
    x = truth @ sae.W_dec + 0.1 * torch.randn(ROWS, D, generator=generator)
    python = os.environ.get("OVERCOMPLETE_PYTHON")
    sae.encode(x[:8])  # the table is made once for a dictionary
    best = {"ours": float("inf"), "rival": float("inf")}
    with tempfile.TemporaryDirectory() as name:
        given, got = Path(name) / "given.pt", Path(name) / "codes.pt"
        torch.save({"x": x, "W": sae.W_dec.detach().clone()}, given)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        rival = python and subprocess.Popen([python, "-c", RIVAL, str(given), str(got), str(K)], **pipes)
        for _ in range(ROUNDS):
            start = time.process_time()
            codes = sae.encode(x)
            best["ours"] = min(best["ours"], time.process_time() - start)
            start = time.process_time()
            if not rival:
                theirs, seconds = loop(x, sae.W_dec, K), time.process_time() - start
            else:
                print(file=rival.stdin, flush=True)
                seconds = float(rival.stdout.readline())
                theirs = torch.load(got, weights_only=True)
            best["rival"] = min(best["rival"], seconds)
        if rival:
            rival.communicate()
    gap = float((codes.dense() - theirs).abs().max())
    if gap > 1e-5 * float(theirs.abs().max()):
        raise AssertionError(f"the codes differ by {gap}")
    return {"name": f"matching pursuit, {D_SAE:,} x {D}, k {K}", "ours": ROWS / best["ours"],
            "baseline": ROWS / best["rival"], "unit": "tokens/s", "target": ">= 10",
            "note": f"against {'overcomplete' if python else 'its loop written out'}; codes differ by {gap:.1e}"}

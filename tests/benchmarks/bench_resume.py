"""Ten kills (signal 9) at random moments of training: how far the weights end from those of an undisturbed run."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sparselens.sae import SAE
from tests.sae.killed import SAES

KILLS, STEPS = 10, 1500


def run() -> dict:
    """The row of the benchmark table."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "tests.sae.killed", name, str(KILLS), str(STEPS), "0"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        largest = 0.0
        for sae in SAES:
            whole, killed = (SAE.load(Path(name) / run / sae).state_dict() for run in ("whole", "killed"))
            largest = max([largest, *(float((whole[key] - killed[key]).abs().max()) for key in whole)])
    note = f"three SAEs, {STEPS} steps; last checkpoints at {', '.join(done.stdout.split())}"
    return {"name": f"training killed {KILLS} times: largest difference of a weight", "ours": largest, "baseline": None,
            "target": "<= 0", "note": note}

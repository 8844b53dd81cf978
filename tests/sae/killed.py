"""Training runs that are killed at random moments: `python -m tests.sae.killed FOLDER KILLS STEPS SEED`.

Trains once undisturbed into FOLDER/whole, and once into FOLDER/killed, killed KILLS times (signal 9) and started again
each time. Moments are drawn in CPU time of the child, so that a busy machine does not change them. Prints how many
steps the last checkpoint had at each kill. Children are forked from a process that computes on one thread.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from sparselens.sae import SAE, train_sae
from tests.sae.synthetic import QUIET, planted

SAES = {
    "one": {"site": "a", "d_sae": 96, "k": 3},
    "two": {"site": "b", "architecture": "jumprelu", "d_sae": 96, "k": 3, "lr": 3e-3},
    "three": {"site": "a", "architecture": "batchtopk", "d_sae": 80, "k": 4, "seed": 5},
}


def resumable(out: Path, steps: int = 200) -> dict[str, SAE]:
    """Three SAEs at two sites, on one pass."""
    x = {"a": planted(rows=6000)[0], "b": planted(rows=6000, seed=1)[0]}
    settings = {"n_tokens": steps * 256, "batch_size": 256, "checkpoint_every": 20, **QUIET}
    return train_sae(x, saes=SAES, out=out, **settings)[0]


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_child(work: Callable[[], object], kill_after: float | None = None) -> float:
    """Run `work` in a forked process, killed after so many CPU seconds; returns those it used.

    Raises:
        RuntimeError: it failed, or was over before it could be killed.
    """
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    used = 0.0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status or kill_after is not None:
                raise RuntimeError(f"the child ended by itself, status {status}")
            return used
        used = cpu_seconds(pid)
        if kill_after is not None and used >= kill_after:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return used
        time.sleep(0.005)


def last_checkpoint(out: Path) -> int:
    """Steps of the newest checkpoint of a run."""
    found = sorted((out / "checkpoints").glob("[0-9]*/state.json"))
    return int(found[-1].parent.name) if found else 0


def main(folder: Path, kills: int, steps: int, seed: int) -> None:
    """Both runs; see above."""
    draw = random.Random(seed)
    resumable(folder / "warm", 2)  # whatever is imported or built on first use
    whole = in_child(lambda: resumable(folder / "whole", steps))
    for _ in range(kills):  # together less than the run takes, so that it cannot be over
        in_child(lambda: resumable(folder / "killed", steps), draw.uniform(0.3, 1.0) * whole / kills)
        print(last_checkpoint(folder / "killed"), flush=True)
    in_child(lambda: resumable(folder / "killed", steps))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))

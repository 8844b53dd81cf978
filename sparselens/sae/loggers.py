"""Where a training run writes its numbers: any callable that takes a dict for each logged step and SAE.

The dict is an entry of `TrainingRun.history`: `sae, step, tokens, fvu, l0, dead_share, lr_factor`.
"""

import csv
import os
from pathlib import Path
from typing import Any

_NAMED = ("sae", "step")  # the rest are the numbers


class CSVLogger:
    """Adds a row to a CSV file for every entry; a run that is resumed goes on in the same file.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def __call__(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(entry))
            if fresh:
                writer.writeheader()
            writer.writerow(entry)


class TensorBoardLogger:
    """Writes every number as the scalar `<sae>/<name>` against the tokens seen. Needs the package `tensorboard`.

    Args:
        folder: where the event files go.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def __call__(self, entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name not in _NAMED:
                self.writer.add_scalar(f"{entry['sae']}/{name}", value, entry["tokens"])
        self.writer.flush()


class WandbLogger:
    """Logs every number as `<sae>/<name>` to a run of Weights & Biases. Needs the package `wandb`.

    Args:
        run: what `wandb.init(...)` gave.
    """

    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, entry: dict[str, Any]) -> None:
        self.run.log({f"{entry['sae']}/{name}": value for name, value in entry.items() if name not in _NAMED})

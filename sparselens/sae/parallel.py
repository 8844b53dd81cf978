"""Several processes that train one SAE: started by `torchrun`, each takes its share of every batch."""

import os

import torch
from torch import Tensor
from torch import distributed as dist


def join() -> None:
    """Join the other processes that `torchrun` has started, if it has."""
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return size() == 1 or dist.get_rank() == 0


def share(rows: Tensor) -> Tensor:
    """The rows of a batch that this process works on."""
    return rows if size() == 1 else rows[dist.get_rank() :: size()]


def sum_(tensor: Tensor) -> Tensor:
    """Put the sum over all processes into `tensor`, and return it."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """Put the mean over all processes into `tensor`, and return it."""
    return sum_(tensor).div_(size()) if size() > 1 else tensor


def max_(tensor: Tensor) -> Tensor:
    """Put the elementwise maximum over all processes into `tensor`, and return it."""
    if size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def agree_(tensor: Tensor) -> Tensor:
    """Put what the first process has into `tensor`, and return it."""
    if size() > 1:
        values = tensor.detach().contiguous()
        dist.broadcast(values, 0)
        tensor.data.copy_(values)
    return tensor


def wait() -> None:
    """Until all processes have come here."""
    if size() > 1:
        dist.barrier()

"""Memory for weights that are read in pieces: in large pages, where the system has them.

A weight column is a short run of memory somewhere in a large block. With pages of 4 kB nearly every column costs a walk
through the page table; with pages of 2 MB nearly none does, and columns are read a fifth faster.
"""

import mmap
import threading
import weakref

import torch
from torch import Tensor

BLOCK = 64 << 20  # bytes asked of the system at a time; a larger tensor has a block of its own
PAGE = 2 << 20
ALIGN = 64  # bytes: a cache line

_LOCK = threading.Lock()
_open: "weakref.ref[mmap.mmap] | None" = None  # the block that has room left; it lives as long as a tensor in it does
_used = 0


def kept_transposed(weight: Tensor) -> Tensor:
    """The transpose of `weight` `[out, in]` as a contiguous matrix `[in, out]`.

    It is a copy in large pages for a weight in the processor's memory, elsewhere an ordinary one. The transpose of a
    contiguous matrix is not copied.
    """
    stored = weight.detach().T
    if stored.is_contiguous():
        return stored
    if stored.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or not stored.numel():
        return stored.contiguous()
    return _room(stored.numel(), stored.dtype).reshape(stored.shape).copy_(stored)


def _room(n: int, dtype: torch.dtype) -> Tensor:
    """`n` numbers that nothing else uses, as a tensor. Blocks are shared by several, and freed with the last."""
    global _open, _used
    size = n * dtype.itemsize
    with _LOCK:
        block = _open() if _open is not None else None
        start = -(-_used // ALIGN) * ALIGN
        if block is None or start + size > len(block):
            length = -(-max(size, BLOCK) // PAGE) * PAGE
            block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            block.madvise(mmap.MADV_HUGEPAGE)
            start, _open = 0, weakref.ref(block)
        _used = start + size
        return torch.frombuffer(block, dtype=dtype, count=n, offset=start)

"""One token through a linear layer, reading only the weight columns of the input channels that are kept.

A matrix times one vector takes as long as the matrix takes to be read. Columns that are left out need not be read, if
each lies in one piece of memory: the weight is kept a second time, transposed. Of the ways to do it:

- "compiled": `matvec.cpp`, built by the C++ compiler of the computer at the first use. The fastest; see
  `tests/benchmarks/bench_activation.py`.
- "numba": the same loop, where numba is installed and no compiler is. One thread, float32 only.
- "torch": everywhere else, other devices and gradients included. Not faster than a dense layer before some nine tenths
  of the channels are left out.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from inspect import unwrap

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.activation import compiled
from sparselens.activation.gates import Gate, Threshold, TopK, channel_scores
from sparselens.activation.pages import kept_transposed
from sparselens.errors import InputError, closest

BACKENDS = ("compiled", "numba", "torch")
KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Below this many bytes of weight, waking a second thread costs more than it saves.
BYTES_PER_THREAD = 4 << 20
# Share of kept columns below which gathering them beats a dense product in torch.
GATHER = 0.1


class Columns:
    """A weight stored by columns, and optionally a low-rank matrix that serves the channels which are not kept.

    `y = W (x * kept) + left (right^T (x * dropped)) + bias`, with sums in float32.

    Args:
        weight: `W`, `[out, in]`. It is copied, unless it is the transpose of a contiguous matrix.
        low_rank: `(left, right)`, `[out, rank]` and `[in, rank]`; None for nothing.
        backend: one of `BACKENDS`; None takes the first that can be had for the device and type of the weight.

    Raises:
        InputError: an unknown backend, one that cannot be had, or factors of the wrong shape.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        low_rank: tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]] | None = None,
        backend: str | None = None,
    ):
        if low_rank is not None and not (
            low_rank[0].shape[:1] == weight.shape[:1]
            and low_rank[1].shape[:1] == weight.shape[1:]
            and low_rank[0].shape[1] == low_rank[1].shape[1]
        ):
            raise InputError(
                f"low_rank has shapes {[list(factor.shape) for factor in low_rank]}; for a weight of shape "
                f"{list(weight.shape)} it must be [out, rank] and [in, rank]."
            )
        self.d_out, self.d_in = weight.shape
        self.stored = kept_transposed(weight)
        self.left, self.right = None, None
        if low_rank is not None and low_rank[0].shape[1]:
            self.left = low_rank[0].detach().to(weight).T.contiguous()
            self.right = low_rank[1].detach().to(weight).contiguous()
        self.backend = _chosen(self.stored, backend)
        self._kind = KINDS.get(weight.dtype, -1)
        self._call: Callable[..., int] | None = None
        if self.backend == "compiled":
            self._call = compiled.library().sparse
            self._plan = compiled.Plan(
                self.stored.data_ptr(), *_pointers(self.left, self.right), self.d_in, self.d_out, self.rank
            )
            self._at = ctypes.addressof(self._plan)
            self._threads = max(1, self.stored.nbytes // BYTES_PER_THREAD)

    def __repr__(self) -> str:
        return f"Columns([{self.d_out}, {self.d_in}], {self.stored.dtype}, rank={self.rank}, backend={self.backend!r})"

    @property
    def rank(self) -> int:
        """Of the low-rank matrix; 0 without one."""
        return 0 if self.left is None else len(self.left)

    def threshold(
        self,
        x: Float[Tensor, "*one d_in"],
        scale: Float[Tensor, "d_in"] | None,
        tau: float,
        bias: Float[Tensor, "d_out"] | None = None,
    ) -> tuple[Float[Tensor, "*one d_out"], int]:
        """The layer for one token on the channels where `|x_j| * scale_j > tau`.

        Args:
            x: one token; leading axes of length 1 are kept.
            scale: float32; None for all ones.
            tau: what the score must exceed. A score that is not a number is kept, so that it shows.
            bias: added to the output.

        Returns:
            The output, and how many channels were kept.

        Raises:
            InputError: more than one token, or tensors whose type or device differs from the weight's.
        """
        return self._multiply(x, scale, -1, tau, bias)

    def topk(
        self,
        x: Float[Tensor, "*one d_in"],
        scale: Float[Tensor, "d_in"] | None,
        k: int,
        bias: Float[Tensor, "d_out"] | None = None,
    ) -> tuple[Float[Tensor, "*one d_out"], int]:
        """The layer for one token on the `k` channels of largest `|x_j| * scale_j`; else as `threshold`."""
        if not 0 <= k <= self.d_in:
            raise InputError(f"k={k} channels of {self.d_in} cannot be kept: give 0 to {self.d_in}.")
        return self._multiply(x, scale, k, 0.0, bias)

    def _multiply(
        self, x: Tensor, scale: Tensor | None, k: int, tau: float, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        stored = self.stored
        if x.dtype != stored.dtype or x.device != stored.device or x.shape[-1] != self.d_in or x.numel() != self.d_in:
            raise InputError(
                f"x is {list(x.shape)} {x.dtype} on {x.device}; these columns take one token of {self.d_in} channels, "
                f"{stored.dtype} on {stored.device}."
            )
        if self._call is None or (torch.is_grad_enabled() and x.requires_grad):
            return self._by_torch(x, scale, TopK(k) if k >= 0 else Threshold(tau), bias)
        y = x.new_empty((*x.shape[:-1], self.d_out))
        x = x if x.is_contiguous() else x.contiguous()
        kept = self._call(
            self._at,
            self._kind,
            x.data_ptr(),
            _pointer(scale, torch.float32, self.d_in),
            _pointer(bias, stored.dtype, self.d_out),
            y.data_ptr(),
            k,
            tau,
            min(self._threads, torch.get_num_threads()),
        )
        return y, kept

    def _by_torch(self, x: Tensor, scale: Tensor | None, gate: Gate, bias: Tensor | None) -> tuple[Tensor, int]:
        keep = gate.keep(channel_scores(x, scale))
        kept = int(keep.sum())
        if self.backend == "numba" and not (torch.is_grad_enabled() and x.requires_grad):
            index = keep.flatten().nonzero().flatten()
            y = x.new_zeros(self.d_out)
            values = x.detach().flatten()[index]
            _numba_sum()(self.stored.numpy(), index.numpy(), values.numpy(), y.numpy())
            y = y.reshape(*x.shape[:-1], -1)
        elif kept < GATHER * self.d_in:
            index = keep.flatten().nonzero().flatten()
            y = x[..., index] @ self.stored[index]
        else:
            y = x.masked_fill(~keep, 0) @ self.stored
        if self.left is not None and self.right is not None:
            y = y + (x.masked_fill(keep, 0) @ self.right) @ self.left
        return (y if bias is None else y + bias), kept


def dense_row(x: Float[Tensor, "*one d_in"], weight: Float[Tensor, "d_out d_in"], bias: Tensor | None) -> Tensor:
    """`W x + b` for one token on the processor, `weight` read where it lies.

    torch reads the weight of a single token on one thread; this reads it on all.

    Args:
        x: one token; leading axes of length 1 are kept.
        weight: contiguous, of the type of x, one of `KINDS`.
        bias: of that type; None for nothing.

    Returns:
        `[*one, d_out]`.
    """
    d_out, d_in = weight.shape
    y = x.new_empty((*x.shape[:-1], d_out))
    x = x if x.is_contiguous() else x.contiguous()
    compiled.library().dense(
        KINDS[weight.dtype],
        _pointer(weight, x.dtype, d_out * d_in),
        _pointer(x, x.dtype, d_in),
        _pointer(bias, x.dtype, d_out),
        y.data_ptr(),
        d_in,
        d_out,
        min(max(1, weight.nbytes // BYTES_PER_THREAD), torch.get_num_threads()),
    )
    return y


def backend() -> str:
    """What computes single tokens in float32 on this computer's processor: one of `BACKENDS`.

    The first call in a process, or the first `Columns`, builds or loads the compiled kernel; where that cannot be done
    a warning says why, once.
    """
    if _compiled_fault() is None:
        return "compiled"
    return "numba" if find_spec("numba") else "torch"


@functools.cache
def _compiled_fault() -> str | None:
    """Why there is no compiled kernel; None if there is one, and it computes what torch does."""
    try:
        compiled.library()
        fault = None if _agrees() else "it gives other numbers than torch does"
    except compiled.BuildError as error:
        fault = str(error)
    if fault is not None:
        other = "numba, on one thread" if find_spec("numba") else "torch, which is no faster than a dense layer"
        warnings.warn(
            f"the compiled kernel for sparse decoding cannot be used ({fault}). Single tokens are computed with "
            f"{other}. A C++ compiler on the path, or named by $CXX, makes sparse decoding fast.",
            RuntimeWarning,
            stacklevel=4,
        )
    return fault


def _agrees() -> bool:
    """Whether the compiled kernel computes what torch does, on a small layer that has all the cases."""
    generator = torch.Generator().manual_seed(0)
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        weight, left, right, x, bias = (
            torch.randn(size, generator=generator).to(dtype) for size in ((37, 50), (37, 19), (50, 19), (50,), (37,))
        )
        scale = torch.rand(50, generator=generator)
        fast, slow = (Columns(weight, (left, right), name) for name in ("compiled", "torch"))
        for (y, n), (truth, m) in (
            (fast.topk(x, scale, 21, bias), slow.topk(x, scale, 21, bias)),
            (fast.threshold(x, None, 0.7), slow.threshold(x, None, 0.7)),
        ):
            if n != m or not torch.allclose(y.float(), truth.float(), rtol=bound, atol=10 * bound):
                return False
        made, truth = dense_row(x, weight, bias).float(), (weight @ x + bias).float()
        if not torch.allclose(made, truth, rtol=bound, atol=10 * bound):
            return False
    return True


def _chosen(stored: Tensor, name: str | None) -> str:
    """The backend for a weight."""
    if name is not None and name not in BACKENDS:
        raise InputError(f"backend={name!r} is unknown; valid are {', '.join(BACKENDS)}.{closest(name, BACKENDS)}")
    can = ["torch"]
    if stored.device.type == "cpu" and stored.dtype in KINDS:
        if stored.dtype == torch.float32 and find_spec("numba"):
            can.insert(0, "numba")
        if name == "compiled":
            with suppress(compiled.BuildError):
                compiled.library()
                can.insert(0, "compiled")
        elif name is None and _compiled_fault() is None:
            can.insert(0, "compiled")
    if name is not None and name not in can:
        raise InputError(
            f"backend={name!r} cannot compute {stored.dtype} on {stored.device} here; valid are {', '.join(can)}."
        )
    return name or can[0]


def _pointer(tensor: Tensor | None, dtype: torch.dtype, length: int) -> int | None:
    """Address of a vector, checked: the kernel reads what it is told to."""
    if tensor is None:
        return None
    if tensor.dtype != dtype or tensor.numel() != length or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise InputError(
            f"a vector of {length} {dtype} on the processor is needed, not {list(tensor.shape)} {tensor.dtype} on "
            f"{tensor.device}."
        )
    return tensor.data_ptr()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


@functools.cache
def _numba_sum() -> Callable[..., None]:
    """`add(columns, index, values, y)`: y += the rows of `columns` that `index` names, each times its value."""
    import numba

    def add(columns, index, values, y):
        whole = len(index) // 4 * 4
        for i in range(0, whole, 4):
            a, b, c, d = index[i], index[i + 1], index[i + 2], index[i + 3]
            p, q, r, s = values[i], values[i + 1], values[i + 2], values[i + 3]
            for o in range(len(y)):
                y[o] += p * columns[a, o] + q * columns[b, o] + r * columns[c, o] + s * columns[d, o]
        for i in range(whole, len(index)):
            for o in range(len(y)):
                y[o] += values[i] * columns[index[i], o]

    return numba.njit(fastmath={"contract"})(unwrap(add))  # bare: checkers of types wrap functions

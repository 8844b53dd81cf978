"""One token through kept weight columns: against sums in float64, on every backend; building, and falling back."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sparselens.activation import compiled, kernels
from sparselens.activation.kernels import Columns
from sparselens.errors import InputError

try:
    compiled.library()
    HAVE = list(kernels.BACKENDS)
except compiled.BuildError:
    HAVE = ["numba", "torch"]
if not kernels.find_spec("numba"):
    HAVE.remove("numba")
needs_compiler = pytest.mark.skipif("compiled" not in HAVE, reason="no C++ compiler")
SHAPES = [(1, 1), (3, 2), (16, 8), (37, 50), (64, 129), (192, 577), (1000, 33)]
BOUND = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def layer(d_out, d_in, rank=0, dtype=torch.float32, seed=0):
    """Weight, factors, token, scale and bias of a layer."""
    g = torch.Generator().manual_seed(seed)
    weight, left, right = (torch.randn(s, generator=g) for s in ((d_out, d_in), (d_out, rank), (d_in, rank)))
    x, scale, bias = (torch.randn(s, generator=g) for s in (d_in, d_in, d_out))
    return weight.to(dtype), (left.to(dtype), right.to(dtype)), x.to(dtype), scale.abs(), bias.to(dtype)


def truth(weight, factors, x, keep, bias):
    """The sum in float64."""
    w, left, right, x, bias = (t.double() for t in (weight, *factors, x, bias))
    return w @ (x * keep) + left @ (right.T @ (x * ~keep)) + bias


def near(y, expected, dtype):
    """Whether an output is the sum, up to the rounding of its type."""
    return y.dtype == dtype and float((y.double() - expected).norm()) <= BOUND[dtype] * float(expected.norm()) + 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", HAVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_gates_equal_the_sum_over_the_kept_columns(shape, name, dtype):
    if name == "numba" and dtype != torch.float32:
        pytest.skip("numba has no bfloat16")
    for rank in (0, 1, 19):
        weight, factors, x, scale, bias = layer(*shape, rank, dtype)
        columns = Columns(weight, factors, name)
        assert columns.rank == rank
        scores = x.float().abs() * scale
        tau = float(scores.median())
        y, n = columns.threshold(x, scale, tau, bias)
        keep = scores > tau
        assert n == keep.sum()
        assert near(y, truth(weight, factors, x, keep, bias), dtype)
        k = shape[1] // 3
        y, n = columns.topk(x, scale, k, bias)
        keep = torch.zeros(shape[1], dtype=torch.bool)
        keep[scores.topk(k).indices] = True
        assert n == k
        assert near(y, truth(weight, factors, x, keep, bias), dtype)


@pytest.mark.parametrize("name", HAVE)
def test_without_a_scale_the_input_itself_is_scored(name):
    weight, _, x, _, _ = layer(20, 40)
    y, n = Columns(weight, backend=name).threshold(x, None, 0.5)
    assert n == (x.abs() > 0.5).sum()
    assert torch.allclose(y, weight @ (x * (x.abs() > 0.5)), atol=1e-5)


@pytest.mark.parametrize("name", HAVE)
def test_the_ends_are_the_bias_and_the_dense_layer(name):
    weight, factors, x, scale, bias = layer(20, 40, 4)
    columns = Columns(weight, None, name)
    none, n = columns.topk(x, scale, 0, bias)
    assert n == 0 and torch.equal(none, bias)
    above, n = columns.threshold(x, scale, float("inf"), bias)
    assert n == 0 and torch.equal(above, bias)
    everything, n = columns.topk(x, scale, 40, bias)
    assert n == 40 and torch.allclose(everything, weight @ x + bias, atol=1e-5)
    low, n = Columns(weight, factors, name).topk(x, scale, 0)
    assert n == 0 and torch.allclose(low, factors[0] @ (factors[1].T @ x), atol=1e-4)


@pytest.mark.parametrize("name", HAVE)
@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 12,
        [0.0] * 12,
        [3.0, 1.0, 1.0, 1.0, -1.0, 2.0, 0.0, 0.0, -3.0, 1.0, 0.5, -0.5],
        [1e-42, 2e-42, -3e-42, 1e-45, 0.0, 1.0, 1e38, -3e38, 1e-38, 5e-39, 2.0, 3.0],
    ],
    ids=["all equal", "all zero", "ties", "very small and large"],
)
def test_topk_keeps_exactly_k_whatever_the_ties(name, values):
    x = torch.tensor(values)
    columns = Columns(torch.eye(12), backend=name)  # the output is the kept input
    ones = Columns(torch.ones(1, 12), backend=name)
    for k in range(13):
        y, n = columns.topk(x, None, k)
        assert n == k
        best = x.abs().sort(descending=True).values
        assert torch.equal(y.abs().sort(descending=True).values, torch.cat([best[:k], torch.zeros(12 - k)]))
        assert float(ones.topk(x, None, k)[0]) == pytest.approx(float(y.sum()), rel=1e-5)


@pytest.mark.parametrize("name", HAVE)
def test_threshold_is_strict(name):
    y, n = Columns(torch.eye(3), backend=name).threshold(torch.tensor([1.0, -1.5, 0.5]), None, 1.0)
    assert n == 1 and y.tolist() == [0.0, -1.5, 0.0]


@pytest.mark.parametrize("name", HAVE)
def test_what_is_not_a_number_shows(name):
    columns = Columns(torch.ones(2, 4), backend=name)
    x = torch.tensor([1.0, float("nan"), 2.0, 3.0])
    assert columns.threshold(x, None, 100.0)[0].isnan().all()
    assert columns.topk(x, None, 1)[0].isnan().all()


def test_scores_are_in_float32_where_half_precision_would_overflow():
    x = torch.tensor([60000.0, 1.0, 49984.0], dtype=torch.float16)
    scale = torch.tensor([10.0, 1.0, 30.0])
    columns = Columns(torch.eye(3, dtype=torch.float16))
    assert columns.backend == "torch"
    assert columns.topk(x, scale, 1)[0].tolist() == [0.0, 0.0, 49984.0]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_threads_give_the_bits_of_one(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "BYTES_PER_THREAD", 1 << 17)
    weight, factors, x, scale, bias = layer(530, 777, 33, dtype)
    columns = Columns(weight, factors)
    assert columns.backend == "compiled"
    one = columns.topk(x, scale, 300, bias)[0]
    torch.set_num_threads(2)
    try:
        assert columns.stored.nbytes > 2 * kernels.BYTES_PER_THREAD
        two = columns.topk(x, scale, 300, bias)[0]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


def test_leading_axes_stay_and_strides_do_not_matter():
    weight, _, x, scale, _ = layer(20, 40)
    columns = Columns(weight)
    plain = columns.topk(x, scale, 9)[0]
    strided = torch.stack([x, x], dim=1)[:, 0]
    assert torch.equal(columns.topk(strided[None, None], scale, 9)[0], plain[None, None])


def test_a_matrix_kept_as_in_by_out_is_not_copied():
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(6, 4)
    assert Columns(conv.weight.T).stored.data_ptr() == conv.weight.data_ptr()
    linear = nn.Linear(4, 6)
    stored = Columns(linear.weight).stored
    assert stored.is_contiguous() and torch.equal(stored, linear.weight.T)


@pytest.mark.parametrize("name", HAVE)
def test_gradients_flow(name):
    weight, factors, x, scale, _ = layer(20, 40, 3)
    keep = torch.zeros(40)
    keep[(x.abs() * scale).topk(9).indices] = 1
    x.requires_grad_()
    Columns(weight, factors, name).topk(x, scale, 9)[0].sum().backward()
    expected = weight.sum(0) * keep + (factors[1] @ factors[0].sum(0)) * (1 - keep)
    assert torch.allclose(x.grad, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.topk(torch.zeros(2, 40), None, 3), "one token of 40 channels"),
        (lambda c: c.topk(torch.zeros(39), None, 3), "one token of 40 channels"),
        (lambda c: c.topk(torch.zeros(40, dtype=torch.bfloat16), None, 3), "bfloat16"),
        (lambda c: c.topk(torch.zeros(40), None, 41), "k=41"),
        (lambda c: c.topk(torch.zeros(40), None, -1), "k=-1"),
        (lambda c: c.topk(torch.zeros(40), torch.ones(40).double(), 1), "40 torch.float32"),
        (lambda c: c.topk(torch.zeros(40), None, 1, torch.ones(20).bfloat16()), "20 torch.float32"),
        (lambda c: Columns(torch.zeros(3, 4), backend="nmuba"), "Closest: numba"),
        (lambda c: Columns(torch.zeros(3, 4, dtype=torch.float64), backend="compiled"), "valid are torch"),
        (lambda c: Columns(torch.zeros(3, 4), (torch.zeros(3, 2), torch.zeros(3, 2))), r"\[in, rank\]"),
    ],
)
@needs_compiler
def test_what_cannot_be_used_is_an_error(call, says):
    with pytest.raises(InputError, match=says):
        call(Columns(torch.zeros(20, 40)))


# --- building ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    for cached in (compiled._library, kernels._compiled_fault):
        cached.cache_clear()
    yield tmp_path / "kernels"
    for cached in (compiled._library, kernels._compiled_fault):
        cached.cache_clear()


def files(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@needs_compiler
def test_it_is_built_once(fresh):
    compiled.library()
    (path,) = fresh.iterdir()
    built = path.stat().st_mtime_ns
    compiled._library.cache_clear()
    compiled.library()
    assert path.stat().st_mtime_ns == built


@needs_compiler
def test_a_damaged_file_is_built_anew(fresh):
    fresh.mkdir()
    path = fresh / f"matvec-{compiled._key(compiled.find_compiler())}.so"
    path.write_bytes(b"cut off")
    assert kernels.backend() == "compiled"
    assert files(fresh) == [path.name] and path.stat().st_size > 1000


@needs_compiler
def test_a_build_that_is_killed_leaves_no_library(fresh, monkeypatch):
    def killed(compiler, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compile", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled.library()
    assert files(fresh) == []
    compiled.library()
    assert len(files(fresh)) == 1


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_obstacle(fresh):
    fresh.write_text("a file where the folder would be")
    assert kernels.backend() == "compiled"


BUILD = "from sparselens.activation import kernels; print(kernels.backend())"


@needs_compiler
def test_several_processes_may_build_at_once(fresh):
    runs = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    assert [run.communicate(timeout=120) for run in runs] == [("compiled\n", "")] * 2
    assert len(files(fresh)) == 1


def test_importing_builds_nothing(fresh):
    script = "import sparselens.activation.kernels, sparselens; sparselens.TEAL(0.5)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert files(fresh) == []


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_something_else_computes_and_says_so(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(RuntimeWarning, match=rf"cannot be used \(.*{compiler}.*C\+\+ compiler"):
        assert kernels.backend() == ("numba" if "numba" in HAVE else "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        columns = Columns(torch.eye(3))
    assert columns.backend == kernels.backend()
    assert columns.topk(torch.tensor([1.0, 3.0, 2.0]), None, 1)[0].tolist() == [0.0, 3.0, 0.0]
    with pytest.raises(InputError, match="valid are"):
        Columns(torch.eye(3), backend="compiled")


@needs_compiler
def test_a_library_that_computes_something_else_is_not_used(fresh, monkeypatch, tmp_path):
    wrong = tmp_path / "wrong.cpp"
    right = compiled.SOURCE.read_text()
    wrong.write_text(right.replace("sum += value[r] * load", "sum -= value[r] * load"))
    assert wrong.read_text() != right
    monkeypatch.setattr(compiled, "SOURCE", wrong)
    with pytest.warns(RuntimeWarning, match="other numbers than torch"):
        assert kernels.backend() != "compiled"

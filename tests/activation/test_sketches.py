"""Quantiles from sketches: the error bound, merging, and what is refused."""

import pytest
import torch

from sparselens.activation.sketches import ERROR, Sketch
from sparselens.errors import InputError, NotFiniteError

LAWS = {
    "normal": lambda n: torch.randn(n),
    "heavy": lambda n: torch.randn(n) / torch.rand(n).clamp(min=1e-6),
    "tiny": lambda n: torch.rand(n) * 1e-20,
    "wide": lambda n: torch.exp(20 * torch.randn(n)),
    "lumps": lambda n: torch.randint(0, 3, (n,)).float(),
    "half": lambda n: torch.randn(n).half(),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_quantile_is_within_the_bound_of_the_true_one(law):
    values = LAWS[law](20_001)
    sketch = Sketch()
    for part in values.split(3000):
        sketch.add(part)
    assert sketch.count == len(values)
    ordered = values.float().abs().sort().values.double()
    for q in (0.0, 0.01, 0.25, 0.5, 0.65, 0.9, 0.999, 1.0):
        rank = max(1, -(-int(q * len(values) * 1000) // 1000))  # ceil, without float error
        true = float(ordered[rank - 1])
        assert abs(sketch.quantile(q) - true) <= ERROR * true + 1e-38


def test_merged_sketches_are_the_sketch_of_both():
    a, b = torch.randn(1000), 5 * torch.randn(700)
    one, two, both = Sketch(), Sketch(), Sketch()
    one.add(a)
    two.add(b)
    both.add(torch.cat([a, b]))
    assert torch.equal(one.merge(two).counts, both.counts)
    assert one.count == 1000  # merging leaves the parts alone


def test_trimming_loses_nothing():
    sketch = Sketch()
    assert torch.equal(Sketch.of_trimmed(*sketch.trimmed()).counts, sketch.counts)
    sketch.add(torch.randn(1000))
    low, counts = sketch.trimmed()
    assert len(counts) < 5000
    assert torch.equal(Sketch.of_trimmed(low, counts).counts, sketch.counts)
    for wrong in ((-1, counts), (32700, torch.ones(100, dtype=torch.int64)), (0, -counts), (0, counts.float())):
        with pytest.raises(InputError):
            Sketch.of_trimmed(*wrong)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_and_not_counted(bad):
    sketch = Sketch()
    with pytest.raises(NotFiniteError):
        sketch.add(torch.tensor([1.0, bad]))
    assert sketch.count == 0


def test_quantiles_of_nothing_and_outside_the_range_are_refused():
    sketch = Sketch()
    with pytest.raises(InputError):
        sketch.quantile(0.5)
    sketch.add(torch.ones(3))
    with pytest.raises(InputError):
        sketch.quantile(1.5)


def test_within_a_bin_the_quantile_is_interpolated():
    sketch = Sketch()
    sketch.add(torch.linspace(1, 1 + ERROR, 1001)[:-1])  # one bin
    assert len(sketch.trimmed()[1]) == 1
    for q in (0.1, 0.5, 0.9):
        assert sketch.quantile(q) == pytest.approx(1 + q * ERROR, abs=0.01 * ERROR)

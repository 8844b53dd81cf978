import numpy as np
import torch

from sparselens.sae.latents import Latents, active_counts, to_csr, to_dense

Z = Latents(
    torch.tensor([[[2.0, 0.0], [-1.0, 3.0]], [[0.0, 0.0], [5.0, 4.0]]]),
    torch.tensor([[[4, 1], [0, 2]], [[3, 1], [4, 0]]]),
    5,
)
DENSE = torch.tensor(
    [[[0, 0, 0, 0, 2.0], [-1, 0, 3, 0, 0]], [[0, 0, 0, 0, 0], [4, 0, 0, 0, 5]]],
)


def test_dense_places_values_and_returns_dense_input_untouched():
    assert torch.equal(to_dense(Z), DENSE)
    assert torch.equal(Z.dense(), DENSE)
    assert to_dense(DENSE) is DENSE


def test_csr_holds_the_active_codes_only_in_sorted_order():
    for z in (Z, DENSE):
        matrix = to_csr(z)
        assert matrix.shape == (4, 5) and matrix.nnz == 5 and matrix.has_sorted_indices
        assert np.array_equal(matrix.toarray(), DENSE.reshape(4, 5).numpy())


def test_csr_of_half_precision_and_of_nothing():
    assert to_csr(Latents(Z.values.bfloat16(), Z.indices, 5)).dtype == np.float32
    assert to_csr(DENSE[:0]).shape == (0, 5)
    assert to_csr(Latents(Z.values[:0], Z.indices[:0], 5)).shape == (0, 5)


def test_active_means_not_zero():
    expected = torch.tensor([[1, 2], [0, 2]])
    assert torch.equal(active_counts(Z), expected)
    assert torch.equal(active_counts(DENSE), expected)

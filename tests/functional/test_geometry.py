"""Lengths and envelopes of edges where exactness matters."""

import pytest
import torch

from e2former_pyg.functional.geometry import edge_geometry, edge_vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_as_long_as_the_cutoff_has_weight_exactly_zero(dtype):
    vectors = torch.tensor([[3.0, 0.0, 4.0], [0.0, -5.0, 0.0], [3.0, 3.9, 0.0]], dtype=dtype)
    geometry = edge_geometry(vectors, 5.0, 1, dtype)
    assert geometry.length[:2].tolist() == [5.0, 5.0]
    assert geometry.envelope[:2].tolist() == [0.0, 0.0]
    assert geometry.envelope[2] > 0


def test_zero_length_has_no_direction_and_no_derivative():
    vectors = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    geometry = edge_geometry(vectors, 5.0, 2, torch.float64)
    assert geometry.length.item() == 0
    assert geometry.envelope.item() == 1
    assert geometry.harmonics[0].tolist() == [1.0] + [0.0] * 8
    for value in (geometry.length, geometry.envelope, geometry.harmonics):
        (first,) = torch.autograd.grad(value.sum(), vectors, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), vectors, retain_graph=True)
        assert (first == 0).all()
        assert (second == 0).all()


def test_strain_turns_into_the_vector():
    generator = torch.Generator().manual_seed(0)
    i, j, shift = torch.randn(3, 4, 3, dtype=torch.float64, generator=generator)
    strain = 0.1 * torch.randn(4, 3, 3, dtype=torch.float64, generator=generator)
    expected = torch.einsum("na,nab->nb", i - j - shift, torch.eye(3).double() + strain)
    torch.testing.assert_close(edge_vectors(i, j, shift, strain), expected)

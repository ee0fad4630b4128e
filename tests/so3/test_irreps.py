import pytest
import torch
from e3nn import o3

from e2former_pyg.so3 import default_irreps, degree_index, from_irreps, to_irreps

LAYOUTS = [
    ("4x0e+4x1o+4x2e", 2),
    ("4x2e+4x0e+4x1e", 2),
    ("3x1o+4x0e+1x1o", 1),
    ("1x2e+4x0o+2x1o+3x2o+2x1e", 2),
    ("4x0e", 0),
    (o3.Irreps("4x3o+4x1o+4x0e+4x2e"), 3),
]


@pytest.mark.parametrize(("irreps", "lmax"), LAYOUTS)
@pytest.mark.parametrize("batch", [(), (5,), (2, 0), (2, 3)])
def test_round_trip(irreps, lmax, batch):
    torch.manual_seed(0)
    x = torch.randn(*batch, (lmax + 1) ** 2, 4)
    vec = to_irreps(x, irreps)
    assert vec.shape == (*batch, o3.Irreps(irreps).dim)
    assert torch.equal(from_irreps(vec, irreps), x)


@pytest.mark.parametrize(("irreps", "lmax"), LAYOUTS)
def test_conversion_commutes_with_rotation(irreps, lmax):
    torch.manual_seed(1)
    rotation = o3.rand_matrix(dtype=torch.float64)
    x = torch.randn(7, (lmax + 1) ** 2, 4, dtype=torch.float64)
    blocks = [o3.wigner_D(degree, *o3.matrix_to_angles(rotation)) for degree in range(lmax + 1)]
    turned = torch.block_diag(*blocks) @ x
    flat = to_irreps(x, irreps) @ o3.Irreps(irreps).D_from_matrix(rotation).T
    torch.testing.assert_close(to_irreps(turned, irreps), flat, rtol=0, atol=1e-12)
    torch.testing.assert_close(from_irreps(flat, irreps), turned, rtol=0, atol=1e-12)


def test_layout_is_multiplicity_major():
    x = torch.arange(8.0).view(4, 2)
    assert to_irreps(x, "2x1o+2x0e").tolist() == [2, 4, 6, 3, 5, 7, 0, 1]
    assert to_irreps(x, "1x1o+2x0e+1x1e").tolist() == [2, 4, 6, 0, 1, 3, 5, 7]


def test_gradients_pass_through():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: to_irreps(x, "3x1o+3x0e"), x)


@pytest.mark.parametrize("convert", [to_irreps, from_irreps])
def test_errors_name_the_irreps(convert):
    vec = torch.zeros(2, 36)
    with pytest.raises(ValueError, match=r"`irreps` .* found no degree \[1\]"):
        convert(vec, "4x0e+4x2e")
    with pytest.raises(ValueError, match=r"`irreps` .* same multiplicity .* found \[4, 2\]"):
        convert(vec, "4x0e+2x1o")
    with pytest.raises(ValueError, match="`irreps` must have at least one entry"):
        convert(vec, "0x0e")
    with pytest.raises(ValueError, match="`irreps` must be valid e3nn irreps"):
        convert(vec, "four scalars")


def test_errors_name_the_tensor():
    with pytest.raises(ValueError, match=r"`x` must have shape \[..., 4, 3\]"):
        to_irreps(torch.zeros(5, 4, 2), "3x0e+3x1o")
    with pytest.raises(ValueError, match=r"`x` must have shape"):
        to_irreps(torch.zeros(4), "3x0e+3x1o")
    with pytest.raises(ValueError, match=r"`vec` must have shape \[..., 12\]"):
        from_irreps(torch.zeros(5, 11), "3x0e+3x1o")
    with pytest.raises(TypeError, match="`x` must be a tensor, found list"):
        to_irreps([0.0], "1x0e")
    with pytest.raises(TypeError, match="`vec` must be a tensor, found list"):
        from_irreps([0.0], "1x0e")


def test_default_irreps():
    assert default_irreps(8, 2) == o3.Irreps("8x0e+8x1e+8x2e")
    assert default_irreps(8, 3, parity="o3") == o3.Irreps("8x0e+8x1o+8x2e+8x3o")
    assert torch.equal(
        from_irreps(torch.arange(32.0), default_irreps(8, 1))[1:].T.flatten(), torch.arange(8.0, 32)
    )
    with pytest.raises(ValueError, match="`parity` must be 'so3' or 'o3', found 'e'"):
        default_irreps(8, 2, parity="e")
    with pytest.raises(ValueError, match="`channels` must be positive"):
        default_irreps(0, 2)
    with pytest.raises(ValueError, match="`lmax` must be a non-negative integer"):
        default_irreps(8, -1)


def test_degree_index():
    assert degree_index(2).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert degree_index(8).bincount().tolist() == list(range(1, 18, 2))
    assert degree_index(1).dtype == torch.long
    assert degree_index(3, "cpu") is degree_index(3, torch.device("cpu"))
    assert degree_index(3, "meta").device.type == "meta"
    with pytest.raises(ValueError, match="`lmax` must be a non-negative integer, found -1"):
        degree_index(-1)


def test_degree_index_built_in_inference_mode_serves_autograd():
    with torch.inference_mode():
        index = degree_index(11)  # a degree that no other test asks for
    weight = torch.randn(12, 2, requires_grad=True)
    weight.index_select(0, index).sum().backward()
    assert weight.grad is not None
    assert weight.grad[:, 0].tolist() == list(range(1, 24, 2))

"""Models compute the degrees that their heads read, and no others."""

import pytest
import torch
from e3nn.o3 import rand_matrix

from e2former_pyg import E2Former, E2FormerPotential, E2FormerProperty
from e2former_pyg.nn import E2FormerAttention, E2FormerConv


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("lmax_out", [0, 1, 2])
@pytest.mark.parametrize("final_norm", [True, False])
def test_features(lab, num_layers, lmax_out, final_norm):
    settings = {"num_layers": num_layers, "lmax_out": lmax_out, "final_norm": final_norm}
    model, (z, pos) = lab.make("backbone", **settings), lab.molecule()
    out = model(z, pos)
    assert out.shape == (8, (lmax_out + 1) ** 2, 8)
    torch.manual_seed(0)
    rotation = rand_matrix(dtype=torch.float64)
    turned = model(z, pos @ rotation.T)
    torch.testing.assert_close(turned[:, :1], out[:, :1])
    if lmax_out > 0:  # vectors turn with the molecule
        torch.testing.assert_close(turned[:, 1:4], rotation @ out[:, 1:4])


@pytest.mark.parametrize(
    ("cls", "own", "degree"),
    [
        (E2Former, {}, 2),
        (E2FormerPotential, {}, 0),
        (E2FormerPotential, {"forces": None}, 0),
        (E2FormerPotential, {"forces": "direct"}, 1),
        (E2FormerPotential, {"lmax_out": None}, 0),
        (E2FormerPotential, {"lmax_out": 1}, 1),
        (E2FormerPotential, {"lmax": 0}, 0),
        (E2FormerProperty, {}, 0),
        (E2FormerProperty, {"out": "0e + 2e"}, 2),
        (E2FormerProperty, {"out": "1o", "lmax": 3}, 1),
        (E2FormerProperty, {"out": "1o", "lmax_out": None}, 1),
    ],
)
def test_default(cls, own, degree):
    model = cls(hidden_channels=8, num_layers=1, heads=2, **own)
    assert getattr(model, "backbone", model).lmax_out == degree


def test_heads_of_a_given_backbone():
    backbone = E2Former(8, num_layers=1, heads=2, lmax_out=0)
    with pytest.raises(ValueError, match=r"`forces` = 'direct' .*lmax_out >= 1, got 0"):
        E2FormerPotential(backbone, forces="direct")
    with pytest.raises(ValueError, match=r"`out` must hold degrees up to .*lmax_out = 0, got 1o"):
        E2FormerProperty("1o", backbone=backbone)


@pytest.mark.parametrize("forces", ["conservative", "direct"])
def test_every_weight_has_a_gradient(lab, forces):
    model, (z, pos) = lab.make("potential", forces=forces).train(), lab.molecule()
    out = model(z, pos)
    (out.energy.square().sum() + out.forces.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("layer", [E2FormerConv, E2FormerAttention])
def test_layers_read_values_of_degrees_that_paths_lead_from(lab, layer):
    torch.manual_seed(0)
    conv = layer(8, 8, 0, lmax_in=3, order=(0, 1), cutoff=3.5).double()
    assert conv.lmax_value == 1
    z, pos = lab.molecule()
    edge_index = torch.combinations(torch.arange(8)).T
    x = torch.randn(8, 16, 8, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(conv(x, pos, edge_index, z).square().sum(), x)
    # Scores of attention come from all degrees.
    assert grad[:, :4].any() and bool(grad[:, 4:].any()) == (layer is E2FormerAttention)

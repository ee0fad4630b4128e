"""Scalars, vectors and tensors: layout, reduction, scale."""

import pytest
import torch
from e3nn import o3

OUTS = {"0e": 1, "1o": 3, "2x0e+1o+2e": 10, "2e+0e": 6, "3x1o + 0x0e": 9}


def both(lab):
    (z, pos), (w, other) = lab.molecule(8), lab.molecule(5)
    batch = torch.tensor([0] * 8 + [1] * 5)
    return torch.cat([z, w]), torch.cat([pos, 2.0 - 1.1 * other]), batch


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("reduce", ["sum", "mean", None])
def test_shapes_and_layout(lab, wigner, out, reduce):
    model = lab.make("property", out=out, reduce=reduce, num_layers=1)
    z, pos, batch = both(lab)
    value = model(z, pos, batch)
    assert value.shape == (13 if reduce is None else 2, OUTS[out]) and value.dtype == pos.dtype
    rotation = lab.rotation()
    turned = model(z, pos @ rotation.t(), batch)
    assert lab.relative(turned, value @ wigner(out, rotation).t()) < 1e-10
    assert float(value.std(0).min()) > 1e-6  # no entry is the same everywhere


def test_out_may_be_irreps(lab):
    z, pos = lab.molecule()
    expected = lab.make("property", out="0e+1o")(z, pos)
    assert torch.equal(lab.make("property", out=o3.Irreps("0e+1o"))(z, pos), expected)


def test_order_of_entries(lab):
    """Each entry reads the rows of its own degree: with one head set to zero, so is its entry."""
    model = lab.make("property", out="1o+2x0e+2e")
    z, pos = lab.molecule()
    for index, part in enumerate((slice(0, 3), slice(3, 5), slice(5, 10))):
        value = model(z, pos)
        torch.nn.init.zeros_(model.heads[index].weight)
        if model.heads[index].bias is not None:
            torch.nn.init.zeros_(model.heads[index].bias)
        changed = model(z, pos)
        assert not changed[:, part].any() and value[:, part].all()
        changed[:, part] = value[:, part]
        assert torch.equal(changed, value)


def test_reductions_agree(lab):
    z, pos, batch = both(lab)
    atoms = lab.make("property", out="0e+1o", reduce=None)(z, pos, batch)
    total = lab.make("property", out="0e+1o", reduce="sum")(z, pos, batch)
    mean = lab.make("property", out="0e+1o", reduce="mean")(z, pos, batch)
    expected = torch.stack([atoms[:8].sum(0), atoms[8:].sum(0)])
    assert lab.relative(total, expected) < 1e-14
    assert lab.relative(mean, expected / torch.tensor([[8.0], [5.0]])) < 1e-14


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_empty_graphs(lab, reduce):
    model = lab.make("property", out="0e+1o", reduce=reduce)
    z, pos, batch = both(lab)
    value = model(z, pos, 2 * batch, batch_size=4)
    assert lab.relative(value[::2], model(z, pos, batch)) < 1e-12
    assert not value[1::2].any()


def test_data(lab):
    model = lab.make("property", out="2e")
    z, pos = lab.molecule()
    assert torch.equal(model(lab.as_data(z, pos)), model(z, pos))


@pytest.mark.parametrize("reduce", ["sum", "mean", None])
def test_fit_scale(lab, reduce):
    """Scalars are shifted and scaled each on their own, tensors scaled alone."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(50, 7, dtype=torch.float64, generator=generator)
    targets = targets * torch.tensor([3.0] * 2 + [7.0] * 5) + 10
    counts = torch.randint(1, 9, (50, 1), generator=generator)
    extensive = targets * counts if reduce == "sum" else targets
    model = lab.make("property", out="2x0e+2e", reduce=reduce)
    given = {"num_atoms": counts.flatten()} if reduce == "sum" else {}
    before = model(*lab.molecule())
    assert model.fit_scale(extensive, **given) is model
    scalars, tensors = targets[:, :2], targets[:, 2:]
    mean = scalars.mean(0)
    scale = torch.cat(
        [
            (scalars - mean).square().mean().sqrt().repeat(2),
            tensors.square().mean().sqrt().repeat(5),
        ]
    )
    mean = torch.cat([mean, mean.new_zeros(5)])
    assert lab.relative(model.mean, mean) < 1e-12
    assert lab.relative(model.scale, scale) < 1e-12
    atoms = 8 if reduce == "sum" else 1
    assert lab.relative(model(*lab.molecule()), scale * before + atoms * mean) < 1e-12


def test_fit_scale_of_constant_targets(lab):
    """Rounding is no spread."""
    model = lab.make("property").fit_scale(torch.full((7,), 0.6).double(), torch.full((7,), 3))
    assert model.mean.item() == pytest.approx(0.2) and model.scale.item() == 1


def test_fit_scale_keeps_equivariance(lab, wigner):
    model = lab.make("property", out="0e+1o+2e")
    generator = torch.Generator().manual_seed(0)
    targets = 5 + torch.randn(20, 9, dtype=torch.float64, generator=generator)
    model.fit_scale(targets, torch.full((20,), 4))
    z, pos = lab.molecule()
    rotation = lab.rotation()
    expected = model(z, pos) @ wigner("0e+1o+2e", rotation).t()
    assert lab.relative(model(z, pos @ rotation.t()), expected) < 1e-10


def test_gradients_reach_all_parameters(lab):
    """A sum of tensors of each degree depends on every parameter but rows that nothing reads."""
    model = lab.make("property", out="0e+1o+2e", num_layers=1).train()
    model(*lab.molecule()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"out": "hello"}, "out"),
        ({"out": ""}, "out"),
        ({"out": "0x0e"}, "out"),
        ({"out": "3o"}, "out"),
        ({"out": "0e+1e", "parity": "o3"}, "out"),
        ({"out": 3.5}, "out"),
        ({"reduce": "max"}, "reduce"),
    ],
)
def test_bad_settings(lab, kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        lab.make("property", **kwargs)


def test_parities_are_labels_without_reflections(lab):
    z, pos = lab.molecule()
    expected = lab.make("property", out="1o")(z, pos)
    assert torch.equal(lab.make("property", out="1e")(z, pos), expected)


@pytest.mark.parametrize(
    ("targets", "num_atoms", "name"),
    [
        (torch.ones(4, 1), None, "num_atoms"),
        (torch.ones(4, 1), torch.ones(3), "num_atoms"),
        (torch.ones(4, 1), torch.tensor([1, 0, 1, 1]), "num_atoms"),
        (torch.full((4, 1), float("nan")), torch.ones(4), "targets"),
        (torch.ones(0, 1), torch.ones(0), "targets"),
        (torch.ones(4, 2), torch.ones(4), "targets"),
    ],
)
def test_bad_targets(lab, targets, num_atoms, name):
    model = lab.make("property")
    with pytest.raises(ValueError, match=f"`{name}`"):
        model.fit_scale(targets, num_atoms)
    assert model.mean.item() == 0 and model.scale.item() == 1


def test_repr(lab):
    text = "E2FormerProperty(E2Former(8, num_layers=2, lmax=2, cutoff=3.5), out='1x0e+1x1o', "
    assert repr(lab.make("property", out="0e+1o")) == text + "reduce='sum')"

"""Reference energies of elements: their fit, and their precision."""

import pytest
import torch

from e2former_pyg.models import E2Former, E2FormerPotential, ElementReferences


def compositions(counts, elements):
    """Atomic numbers and graphs of molecules with these numbers of these elements."""
    counts = torch.tensor(counts)
    z = torch.tensor(elements).repeat(counts.size(0)).repeat_interleave(counts.flatten())
    return z, torch.arange(counts.size(0)).repeat_interleave(counts.sum(1))


def test_exact_on_linear_data():
    z, batch = compositions([[4, 1, 0], [6, 2, 1], [2, 0, 1], [3, 1, 1], [0, 1, 2]], [1, 6, 8])
    true = torch.tensor([-13.6, -1030.123456789, -2041.5], dtype=torch.float64)
    by_element = torch.zeros(9, dtype=torch.float64).index_put((torch.tensor([1, 6, 8]),), true)
    energy = torch.zeros(5, dtype=torch.float64).index_add(0, batch, by_element[z])
    references = ElementReferences().fit(z, energy, batch)
    assert torch.allclose(references.energies[[1, 6, 8]], true, rtol=1e-12, atol=0)
    assert references.energies.count_nonzero() == 3


def test_least_norm_of_one_molecule():
    """Ethanol alone: the references are proportional to the numbers of atoms, (6, 2, 1)."""
    z, batch = compositions([[6, 2, 1]] * 4, [1, 6, 8])
    energy = torch.tensor([-4209.1, -4209.3, -4208.9, -4209.1], dtype=torch.float64)
    references = ElementReferences().fit(z, energy, batch)
    expected = float(energy.mean()) / 41 * torch.tensor([6.0, 2.0, 1.0], dtype=torch.float64)
    assert torch.allclose(references.energies[[1, 6, 8]], expected, rtol=1e-12, atol=0)


def test_least_squares():
    """The normal equations hold for data that no references reproduce."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 5, (20, 3), generator=generator)
    z, batch = compositions(counts.tolist(), [1, 6, 8])
    energy = 100 * torch.randn(20, dtype=torch.float64, generator=generator)
    references = ElementReferences().fit(z, energy, batch)
    rest = energy - counts.double() @ references.energies[[1, 6, 8]]
    assert rest.norm() > 1 and (counts.double().t() @ rest).norm() < 1e-10 * energy.norm()


def test_scale():
    z, batch = compositions([[6, 2, 1]] * 2, [1, 6, 8])
    energy = torch.tensor([-10.0, -12.0])
    forces = torch.full((18, 3), 2.5)
    references = ElementReferences()
    assert references.fit(z, energy, batch, forces).scale == 2.5
    # Without forces: deviations of 1 eV from the mean, of nine atoms.
    assert float(references.fit(z, energy, batch).scale) == pytest.approx(1 / 3)
    assert references.fit(z, energy, batch, torch.zeros(18, 3)).scale == 1
    assert references.fit(z, energy.new_full((2,), -11.0), batch).scale == pytest.approx(1.0)


def test_fit_forgets_the_last_fit():
    references = ElementReferences()
    references.fit(torch.tensor([1, 6]), torch.tensor([-1.0, -6.0]), torch.tensor([0, 1]))
    references.fit(torch.tensor([8]), torch.tensor([-8.0]), torch.tensor([0]))
    assert references.energies.nonzero().tolist() == [[8]] and references.energies[8] == -8


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"energy": torch.tensor([1.0, float("nan")])}, "energy"),
        ({"energy": torch.tensor([1.0, float("inf")])}, "energy"),
        ({"energy": torch.empty(0)}, "energy"),
        ({"forces": torch.full((3, 3), float("nan"))}, "forces"),
        ({"batch": torch.tensor([0, 1])}, "batch"),
        ({"z": torch.tensor([1, 6, 119])}, "z"),
        ({"batch": torch.tensor([0, 1, 2])}, "batch"),
    ],
)
def test_bad_input(lab, changes, name):
    arguments = {
        "z": torch.tensor([1, 6, 8]),
        "energy": torch.tensor([1.0, 2.0]),
        "batch": torch.tensor([0, 0, 1]),
    }
    model = lab.make("potential")
    before = model.references.energies.clone()
    with pytest.raises((ValueError, IndexError), match=f"`{name}`"):
        model.fit_references(**(arguments | changes))
    assert torch.equal(model.references.energies, before)


def test_potential_uses_the_fit(lab):
    """With a network that gives nothing, energies are those of the references."""
    model = lab.make("potential")
    torch.nn.init.zeros_(model.energy_head[2].weight)
    torch.nn.init.zeros_(model.energy_head[2].bias)
    z, pos = lab.molecule(2)  # C and H
    energy = torch.tensor([-1043.7], dtype=torch.float64)
    assert model.fit_references(z, energy, torch.zeros_like(z)) is model
    assert float(model(z, pos).energy) == pytest.approx(-1043.7, rel=1e-14)


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.float(),
        lambda model: model.double().float(),
        lambda model: model.half(),
        lambda model: model.to(torch.float32),
        lambda model: model.to("cpu", torch.bfloat16),
        lambda model: model.to(torch.empty((), dtype=torch.float32)),
    ],
)
def test_conversions_keep_references_exact(lab, convert):
    model = lab.make("potential")
    exact = torch.full((119,), -1030.123456789012, dtype=torch.float64)
    model.references.energies.copy_(exact)
    model.references.scale.fill_(1 / 3)
    assert convert(model) is model
    assert model.energy_head[0].weight.dtype != torch.float64
    assert model.references.energies.dtype == model.references.scale.dtype == torch.float64
    assert torch.equal(model.references.energies, exact)
    assert float(model.references.scale) == 1 / 3
    assert dict(model.named_buffers())["references.energies"] is model.references.energies


def test_moves_between_devices(lab):
    references = lab.make("potential").references.to("meta")
    assert references.energies.is_meta and references.energies.dtype == torch.float64


def test_made_on_the_meta_device(lab):
    """Models are made without memory, allocated, and filled from a checkpoint."""
    expected = lab.make("potential", dtype=torch.float32)
    with torch.device("meta"):
        model = E2FormerPotential(backbone=E2Former(**expected.backbone.config))
    assert model.references.energies.is_meta
    model.to_empty(device="cpu")
    assert model.references.energies.dtype == model.references.scale.dtype == torch.float64
    model.load_state_dict(expected.state_dict())
    z, pos = lab.molecule(dtype=torch.float32)
    assert torch.equal(model.eval()(z, pos).energy, expected(z, pos).energy)

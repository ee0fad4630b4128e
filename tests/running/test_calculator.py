"""The ASE calculator against the potential, against finite differences and in what it refuses."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.stress import voigt_6_to_full_3x3_stress
from torch_geometric.data import Data

from e2former_pyg import E2FormerPotential
from e2former_pyg.ase import E2FormerCalculator
from e2former_pyg.running import neighbor_list

# Central differences over four points: an error of the fourth order in the step.
POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
STEP = 2e-3


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def numeric_forces(atoms: Atoms) -> np.ndarray:
    forces = np.zeros((len(atoms), 3))
    start = atoms.positions.copy()
    for index in np.ndindex(forces.shape):
        for count, weight in POINTS:
            atoms.positions[:] = start
            atoms.positions[index] += count * STEP
            forces[index] -= weight * atoms.get_potential_energy() / STEP
    atoms.positions[:] = start
    return forces


def numeric_stress(atoms: Atoms) -> np.ndarray:
    """The full matrix, from strains of each of its nine entries."""
    stress = np.zeros((3, 3))
    cell, volume = atoms.cell.array.copy(), atoms.get_volume()
    for index in np.ndindex(3, 3):
        for count, weight in POINTS:
            strain = np.eye(3)
            strain[index] += count * STEP
            atoms.set_cell(cell @ strain, scale_atoms=True)
            stress[index] += weight * atoms.get_potential_energy() / (STEP * volume)
        atoms.set_cell(cell, scale_atoms=True)
    return stress


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_forces_are_the_gradient(lab, name, dtype, limit) -> None:
    atoms = getattr(lab, name)()
    atoms.calc = E2FormerCalculator(lab.make(dtype))
    forces = atoms.get_forces()
    # The energies of float32 are too coarse to differentiate: those of the same weights are not.
    atoms.calc = E2FormerCalculator(lab.make(dtype), dtype=torch.float64)
    assert relative(forces, numeric_forces(atoms)) < limit


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_stress_is_the_gradient(lab, dtype, limit) -> None:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make(dtype))
    voigt = atoms.get_stress()
    assert voigt.shape == (6,)
    atoms.calc = E2FormerCalculator(lab.make(dtype), dtype=torch.float64)
    assert relative(voigt_6_to_full_3x3_stress(voigt), numeric_stress(atoms)) < limit
    assert len(np.unique(np.abs(voigt).round(6))) == 6  # no symmetry hides the order


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_results_are_those_of_the_potential(lab, name) -> None:
    potential = lab.make(stress=True)
    atoms = getattr(lab, name)()
    atoms.calc = E2FormerCalculator(potential)
    periodic = name == "crystal"
    cell = torch.from_numpy(atoms.cell.array) if periodic else None
    data = Data(z=torch.from_numpy(atoms.numbers), pos=torch.from_numpy(atoms.positions), cell=cell)
    out = potential(data)
    assert atoms.get_potential_energy() == pytest.approx(float(out.energy.detach()), rel=1e-12)
    assert atoms.calc.results["free_energy"] == atoms.calc.results["energy"]
    np.testing.assert_allclose(
        atoms.get_potential_energies(), out.atomic_energies.detach(), rtol=1e-10
    )
    np.testing.assert_allclose(atoms.get_forces(), out.forces.detach(), rtol=0, atol=1e-11)
    if periodic:
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
        np.testing.assert_allclose(stress, out.stress[0].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_no_stress_without_a_cell_in_three_directions(lab, pbc) -> None:
    atoms = lab.crystal()
    atoms.pbc = pbc
    atoms.calc = E2FormerCalculator(lab.make(stress=True))
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    assert "stress" not in atoms.calc.results


def test_periodic_directions_matter(lab) -> None:
    """A slab, a wire and a molecule of the same atoms differ, and a large cell makes none."""
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make())
    energies = []
    for pbc in (True, (True, True, False), (True, False, False), False):
        atoms.pbc = pbc
        energies.append(atoms.get_potential_energy())
    assert min(abs(np.diff(energies))) > 1e-3
    atoms.set_cell(np.eye(3) * 30)
    atoms.pbc = True
    assert atoms.get_potential_energy() == pytest.approx(energies[-1], abs=1e-10)


def test_the_potential_given_stays_as_it_was(lab) -> None:
    potential = lab.make(torch.float32).train()
    before = copy.deepcopy(potential.state_dict())
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(potential, dtype=torch.float64)
    atoms.get_stress()
    assert potential.training and potential.stress is False
    assert all(parameter.requires_grad for parameter in potential.parameters())
    for name, value in potential.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_checkpoints(lab, tmp_path, dtype) -> None:
    path = tmp_path / "potential.safetensors"
    potential = lab.make(torch.float32)
    potential.save(path)
    results = []
    for source in (path, str(path), potential):
        atoms = lab.molecule()
        atoms.calc = E2FormerCalculator(source, dtype=dtype)
        assert next(atoms.calc.potential.parameters()).dtype == (dtype or torch.float32)
        results.append(atoms.get_forces())
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_float32_is_as_good_far_from_the_origin(lab) -> None:
    """Positions stay in float64 until distances are formed."""
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make(torch.float32))
    near = atoms.get_forces()
    atoms.positions += [3000.0, -700.0, 90.0]
    assert relative(atoms.get_forces(), near) < 1e-5


@pytest.mark.parametrize("algorithm", ["direct", "factorized"])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_the_skin_changes_nothing(lab, name, algorithm) -> None:
    potential = lab.make(algorithm=algorithm, repulsion=True)
    results = []
    for skin in (0.0, 0.4, 2.0):
        atoms = getattr(lab, name)()
        atoms.calc = E2FormerCalculator(potential, skin=skin)
        atoms.get_forces()
        results.append(atoms.calc.results)
        edges = atoms.calc.neighbors.update(
            torch.from_numpy(atoms.positions),
            cell=torch.from_numpy(atoms.cell.array),
            pbc=torch.from_numpy(atoms.pbc),
        )[0]
        results[-1]["edges"] = edges.size(1)
    assert results[0].pop("edges") < results[1].pop("edges") < results[2].pop("edges")
    for other in results[1:]:
        for key, value in results[0].items():
            np.testing.assert_allclose(other[key], value, rtol=1e-12, atol=1e-11)


def test_charge_and_spin(lab) -> None:
    potential = lab.make(charge=True, spin=True)
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(potential)
    neutral = atoms.get_potential_energy()
    energies = {}
    for charge, spin in ((0, 1), (1, 2), (1, 4), (-1, 2)):
        atoms.info.update(charge=charge, spin=spin)
        energies[charge, spin] = atoms.get_potential_energy()
        out = potential(
            torch.from_numpy(atoms.numbers),
            torch.from_numpy(atoms.positions),
            charge=torch.tensor([charge]),
            spin=torch.tensor([spin]),
        )
        assert energies[charge, spin] == pytest.approx(float(out.energy.detach()), rel=1e-12)
    assert energies[0, 1] == neutral
    assert len(set(energies.values())) == 4


@pytest.mark.parametrize(
    "info, message",
    [
        ({"charge": 1}, "`charge` is 1, but the potential does not read it"),
        ({"spin": 3}, "`spin` is 3, but the potential does not read it"),
        ({"charge": 0.5}, "`charge` must be an integer in -20..20, found 0.5"),
        ({"spin": 0}, "`spin` must be an integer in 1..40, found 0"),
        ({"charge": float("nan")}, "`charge` must be an integer"),
    ],
)
def test_bad_charge_and_spin(lab, info, message) -> None:
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make())
    atoms.info.update(info)
    with pytest.raises(ValueError, match=message):
        atoms.get_potential_energy()
    atoms.info.update(charge=0, spin=1)
    assert np.isfinite(atoms.get_potential_energy())


def test_potentials_with_other_forces(lab) -> None:
    atoms = lab.crystal()
    direct = lab.make(forces="direct")
    atoms.calc = E2FormerCalculator(direct)
    out = direct(
        torch.from_numpy(atoms.numbers),
        torch.from_numpy(atoms.positions),
        cell=torch.from_numpy(atoms.cell.array),
    )
    np.testing.assert_allclose(atoms.get_forces(), out.forces.detach(), rtol=0, atol=1e-11)
    atoms.calc = E2FormerCalculator(lab.make(forces=None))
    assert np.isfinite(atoms.get_potential_energy())
    assert np.isfinite(atoms.get_stress()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_forces()


def counted(calculator) -> list[bool]:
    """Whether the stress was computed in each evaluation to come."""
    calls = []
    evaluate = calculator._evaluate

    def recorded(*args, stress, **kwargs):
        calls.append(stress)
        return evaluate(*args, stress=stress, **kwargs)

    calculator._evaluate = recorded
    return calls


def test_one_evaluation_for_all_properties(lab) -> None:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make())
    calls = counted(atoms.calc)
    for _ in range(2):
        atoms.get_stress(), atoms.get_potential_energy(), atoms.get_forces()
        atoms.get_potential_energies()
    assert len(calls) == 1
    atoms.positions[0, 0] += 1e-9
    atoms.get_forces()
    atoms.set_initial_charges(np.ones(len(atoms)))  # not read
    atoms.get_forces()
    assert len(calls) == 2


def test_stress_is_computed_where_it_is_asked_for(lab) -> None:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make())
    calls = counted(atoms.calc)

    def step(*asked):
        calls.clear()
        atoms.positions[0, 0] += 0.01
        for get in asked:
            get()
        return list(calls)

    assert step(atoms.get_forces) == [False]
    assert "stress" not in atoms.calc.results
    # What writes results that are there asks for none.
    assert atoms.calc.get_property("stress", atoms, allow_calculation=False) is None
    # Once more where it was not expected, with the rest from then on.
    assert step(atoms.get_forces, atoms.get_stress) == [False, True]
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert step(atoms.get_forces, atoms.get_stress) == [True]
    assert step(atoms.get_potential_energy, atoms.get_stress) == [True]
    assert step(atoms.get_forces) == [True]
    assert step(atoms.get_forces) == [False]
    # What was given out before is kept to the last bit.
    atoms.calc.results["forces"] = marked = atoms.get_forces() + 1.0
    atoms.get_stress()
    np.testing.assert_array_equal(atoms.get_forces(), marked)
    atoms.positions[0, 0] -= 0.04
    atoms.calc.calculate(atoms, ["energy", "stress"])
    np.testing.assert_allclose(atoms.calc.results["stress"], stress, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.calc.results["forces"], forces, rtol=0, atol=1e-11)


def test_one_calculator_for_several_systems(lab) -> None:
    calculator = E2FormerCalculator(lab.make())
    systems = [lab.molecule(), lab.crystal(), lab.crystal(2), Atoms("H"), lab.molecule()[1:]]
    energies = []
    for atoms in systems + systems:
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
    assert energies[: len(systems)] == pytest.approx(energies[len(systems) :], rel=1e-13)
    assert energies[2] == pytest.approx(2 * energies[1], rel=1e-10)


def test_sum_with_another_calculator(lab) -> None:
    atoms = lab.crystal()
    ours = E2FormerCalculator(lab.make())
    other = LennardJones(sigma=1.0, epsilon=0.01, rc=5.0, smooth=True)
    parts = []
    for calculator in (ours, other, SumCalculator([ours, other])):
        atoms.calc = calculator
        parts.append(
            (atoms.get_potential_energy(), atoms.get_forces().copy(), atoms.get_stress().copy())
        )
    for first, second, total in zip(*parts, strict=True):
        np.testing.assert_allclose(total, first + second, rtol=1e-10, atol=1e-12)


def test_results_are_not_shared_with_the_caller(lab) -> None:
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make())
    forces = atoms.get_forces()
    expected = forces.copy()
    forces[:] = 0
    np.testing.assert_array_equal(atoms.get_forces(), expected)


def test_a_batch_of_one_whatever_the_grad_mode(lab) -> None:
    atoms = lab.molecule()
    calculator = E2FormerCalculator(lab.make())
    forces = []
    # A list that was built in inference mode serves outside of it.
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        atoms.calc = calculator
        calculator.reset()
        with mode():
            forces.append(atoms.get_forces())
    assert np.array_equal(forces[0], forces[1]) and np.array_equal(forces[0], forces[2])


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(lab, copy_of) -> None:
    """Some of ASE's tools copy calculators, also after they were used."""
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make())
    forces = atoms.get_forces()
    other = atoms.copy()
    other.calc = copy_of(atoms.calc)
    assert np.array_equal(other.get_forces(), forces)
    other.positions[0, 0] += 0.1
    assert not np.array_equal(other.get_forces(), forces)
    assert np.array_equal(atoms.get_forces(), forces)


def test_bad_arguments(lab, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`potential` must be an E2FormerPotential"):
        E2FormerCalculator(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"`dtype` must be torch\.float32 or torch\.float64"):
        E2FormerCalculator(lab.make(), dtype=torch.float16)
    with pytest.raises(ValueError, match="`skin` must be finite"):
        E2FormerCalculator(lab.make(), skin=-1.0)
    assert E2FormerCalculator(lab.make()).neighbors.skin == 0.5
    assert neighbor_list(4.0, None, torch.device("cuda")).skin == 1.0
    with pytest.raises(TypeError, match="cutof"):  # ASE would take any name
        E2FormerCalculator(lab.make(), cutof=3.0)
    with pytest.raises(FileNotFoundError, match="`path` must be a checkpoint file"):
        E2FormerCalculator(tmp_path / "none.safetensors")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_on_a_gpu(lab, name) -> None:
    atoms = getattr(lab, name)()
    atoms.calc = E2FormerCalculator(lab.make())
    expected = atoms.get_forces()
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        atoms.calc = E2FormerCalculator(lab.make(), device="cuda", dtype=dtype)
        assert relative(atoms.get_forces(), expected) < limit
        assert isinstance(atoms.calc.potential, E2FormerPotential)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_moves_on_a_gpu(lab, dtype, limit) -> None:
    """Atoms and cells that move a little or a lot, with and without a stress."""
    atoms, other = lab.crystal(2), lab.crystal(2)
    atoms.calc = E2FormerCalculator(lab.make(), device="cuda", dtype=dtype)
    other.calc = E2FormerCalculator(lab.make())
    rng = np.random.default_rng(0)
    for size, wants_stress in (
        (0.0, False),
        (0.02, True),
        (0.3, False),
        (0.02, False),
        (0.3, True),
    ):
        moves = rng.normal(scale=size, size=(len(atoms), 3))
        strain = np.eye(3) + rng.normal(scale=size / 20, size=(3, 3))
        for one in (atoms, other):
            one.set_cell(one.cell.array @ strain, scale_atoms=True)
            one.positions += moves
        assert relative(atoms.get_forces(), other.get_forces()) < limit
        if wants_stress:
            assert relative(atoms.get_stress(), other.get_stress()) < limit
        assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), rel=1e-5)

"""The TorchSim model: TorchSim's own validation, and the ASE calculator as the reference."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

ts = pytest.importorskip("torch_sim")
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from e2former_pyg.ase import E2FormerCalculator  # noqa: E402
from e2former_pyg.torchsim import E2FormerModel  # noqa: E402

CPU = torch.device("cpu")
NAMES = ["triclinic", "strained", "rock salt", "diamond", "outside of the cell"]


def systems(lab) -> dict[str, Atoms]:
    strained = lab.crystal()
    strained.set_cell(
        strained.cell.array @ [[1.02, 0.03, 0], [0, 0.97, 0.01], [0, 0, 1]], scale_atoms=True
    )
    rock = bulk("CO", "rocksalt", a=4.4)
    diamond = bulk("C", "diamond", a=3.6, cubic=True)
    diamond.rattle(0.1, seed=1)
    far = lab.crystal(2)
    far.positions += [40.0, -30.0, 11.0]
    return dict(zip(NAMES, (lab.crystal(), strained, rock, diamond, far), strict=True))


def state_of(atoms, dtype=torch.float64):
    return ts.io.atoms_to_state(atoms if isinstance(atoms, list) else [atoms], CPU, dtype)


def expected(potential, atoms: Atoms) -> dict[str, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = E2FormerCalculator(potential)
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    try:
        results["stress"] = voigt_6_to_full_3x3_stress(atoms.get_stress())
    except PropertyNotImplementedError:
        results["stress"] = np.zeros((3, 3))
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchsims_own_validation(lab, dtype) -> None:
    potential = lab.make(dtype)
    potential.references.energies[[12, 14, 26]] = -3.0  # the elements of the validation
    validate_model_outputs(E2FormerModel(potential), CPU, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BULK", "MOLECULE"])
def test_torchsims_own_consistency(lab, kind) -> None:
    """Its tests of models beside their ASE calculators, on all of its structures."""
    testing = pytest.importorskip("torch_sim.testing", reason="TorchSim 0.3 has them in its tests")
    potential = lab.make(repulsion=True)
    potential.references.energies.zero_()  # any element is welcome
    model = E2FormerModel(potential, compute_stress=kind == "BULK")
    generators = getattr(testing, f"SIMSTATE_{kind}_GENERATORS")
    assert len(generators) > 2
    for make_state in generators.values():
        state = make_state(CPU, torch.float64)
        testing.assert_model_calculator_consistency(model, E2FormerCalculator(potential), state)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_the_calculator(lab, name) -> None:
    """What TorchSim's tests of models ask of a model and its calculator, with tighter limits."""
    potential, atoms = lab.make(repulsion=True), systems(lab)[name]
    out = E2FormerModel(potential)(state_of(atoms))
    reference = expected(potential, atoms)
    assert float(out["energy"]) == pytest.approx(reference["energy"], rel=1e-12)
    np.testing.assert_allclose(out["forces"], reference["forces"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["stress"][0], reference["stress"], rtol=0, atol=1e-11)


def test_molecules(lab) -> None:
    potential = lab.make()
    one, other = lab.molecule(), lab.molecule()[2:7]
    out = E2FormerModel(potential)(state_of([one, other, one]))
    for index, (atoms, rows) in enumerate(
        [(one, slice(0, 9)), (other, slice(9, 14)), (one, slice(14, 23))]
    ):
        reference = expected(potential, atoms)
        assert float(out["energy"][index]) == pytest.approx(reference["energy"], rel=1e-12)
        np.testing.assert_allclose(out["forces"][rows], reference["forces"], rtol=0, atol=1e-11)
    assert out["stress"].shape == (3, 3, 3) and not out["stress"].any()


def test_a_batch_of_crystals(lab) -> None:
    potential = lab.make()
    atoms = list(systems(lab).values())
    out = E2FormerModel(potential)(state_of(atoms))
    start = 0
    for index, each in enumerate(atoms):
        reference, stop = expected(potential, each), start + len(each)
        assert float(out["energy"][index]) == pytest.approx(reference["energy"], rel=1e-12)
        np.testing.assert_allclose(out["forces"][start:stop], reference["forces"], atol=1e-10)
        np.testing.assert_allclose(out["stress"][index], reference["stress"], rtol=0, atol=1e-11)
        start = stop


def test_dynamics_is_that_of_ase(lab) -> None:
    """Velocity Verlet of two systems at a time, on a list with a skin."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    potential = lab.make(repulsion=True)
    model = E2FormerModel(potential)
    atoms = [lab.crystal(), lab.crystal(2)]
    rng = np.random.default_rng(0)
    for each in atoms:
        each.set_velocities(0.02 * rng.normal(size=(len(each), 3)))
    state = state_of(atoms)
    velocities = torch.from_numpy(np.concatenate([each.get_velocities() for each in atoms]))
    masses, pos = state.masses.unsqueeze(1), state.positions
    out, step = model(state), 0.5 * units.fs
    for _ in range(20):
        velocities = velocities + 0.5 * step * out["forces"] / masses
        pos = pos + step * velocities
        state.positions = pos
        out = model(state)
        velocities = velocities + 0.5 * step * out["forces"] / masses
    assert model.neighbors.num_builds < 20
    start = 0
    for each in atoms:
        each.calc = E2FormerCalculator(potential)
        VelocityVerlet(each, step).run(20)
        found = pos[start : start + len(each)]
        start += len(each)
        np.testing.assert_allclose(found, each.positions, rtol=0, atol=1e-9)


def test_torchsim_integrates_and_optimizes(lab) -> None:
    model = E2FormerModel(lab.make(repulsion=True))
    state = state_of([lab.crystal(), lab.crystal(2)])
    before = model(state)["energy"]
    later = hasattr(ts, "Integrator")  # since TorchSim 0.4
    final = ts.integrate(
        system=state,
        model=model,
        integrator=ts.Integrator.nve if later else ts.nve,
        n_steps=20,
        temperature=100,
        timestep=2e-4,
    )
    assert final.positions.shape == state.positions.shape
    assert not torch.equal(final.positions, state.positions)
    options = {"init_kwargs": {"cell_filter": ts.CellFilter.frechet}} if later else {}
    relaxed = ts.optimize(
        system=state,
        model=model,
        optimizer=ts.Optimizer.fire if later else ts.frechet_cell_fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=0.3),
        max_steps=60,
        **options,
    )
    assert (relaxed.energy < before).all()


def test_what_is_computed(lab) -> None:
    state = state_of(lab.crystal())
    model = E2FormerModel(lab.make(), compute_forces=False, compute_stress=False)
    energy = model(state)
    assert set(energy) == {"energy"}
    model.compute_forces = True
    assert set(model(state)) == {"energy", "forces"}
    model.compute_stress = True
    out = model(state)
    assert set(out) == {"energy", "forces", "stress"}
    assert torch.equal(out["energy"], energy["energy"])
    with pytest.raises(ValueError, match="`compute_forces` must be False"):
        E2FormerModel(lab.make(forces=None))


def test_a_dictionary_as_the_state(lab) -> None:
    model, state = E2FormerModel(lab.make()), state_of(lab.crystal())
    names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
    found = model({name: getattr(state, name) for name in names})
    assert torch.equal(found["energy"], model(state)["energy"])


def test_bad_states(lab) -> None:
    model = E2FormerModel(lab.make())
    with pytest.raises(TypeError, match="`state` must have the dtype of the model"):
        model(state_of(lab.crystal(), torch.float32))
    with pytest.raises(ValueError, match=r"`numbers` must be elements .* found \[29\]"):
        model(state_of(bulk("Cu")))
    state = state_of(lab.crystal())
    state.positions[1, 2] = float("nan")
    with pytest.raises(ValueError, match="`pos` must be finite"):
        model(state)


def test_charges_and_spins_of_later_versions(lab) -> None:
    """TorchSim 0.3 has none in its states: here they are put in."""
    potential = lab.make(charge=True, spin=True)
    model, state = E2FormerModel(potential), state_of([lab.molecule(), lab.molecule()])
    neutral = model(state)["energy"]
    assert neutral[0] == neutral[1]
    object.__setattr__(state, "charge", torch.tensor([0.0, 1.0]))
    object.__setattr__(state, "spin", torch.tensor([0.0, 2.0]))
    found = model(state)["energy"]
    atoms = lab.molecule()
    atoms.info.update(charge=1, spin=2)
    assert found[0] == neutral[0]
    assert float(found[1]) == pytest.approx(expected(potential, atoms)["energy"], rel=1e-12)
    with pytest.raises(ValueError, match=r"`charge` is 1\.0, but the potential does not read it"):
        E2FormerModel(lab.make())(state)


@pytest.mark.parametrize("pbc", [True, [True, True, False], torch.tensor([True, False, False])])
def test_periodic_directions(lab, pbc) -> None:
    """One flag, as in TorchSim 0.3, or three, as later."""
    potential, atoms = lab.make(), lab.crystal()
    state = state_of(atoms)
    state.pbc = pbc
    atoms.pbc = torch.as_tensor(pbc).numpy()
    out, reference = E2FormerModel(potential)(state), expected(potential, atoms)
    assert float(out["energy"]) == pytest.approx(reference["energy"], rel=1e-12)
    np.testing.assert_allclose(out["forces"], reference["forces"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["stress"][0], reference["stress"], rtol=0, atol=1e-11)

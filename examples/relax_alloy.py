"""Relax alloys, positions and cell, with a potential trained on energies, forces and stresses.

    python examples/relax_alloy.py

trains for two minutes on the bundled alloys (EMT energies of Cu, Ag, Au, Ni, Pd and Pt), or takes
the potential of an earlier call, relaxes crystals whose atoms and cells were displaced, and
compares energies and volumes with those that EMT itself relaxes to. Trajectories and a plot go to
``runs/relax_alloy``. More training makes better potentials; ``benchmarks/alloy.py`` measures that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from alloy_training import alloy_errors, load_alloys, train_alloys
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from matplotlib.figure import Figure
from simulation import run

from e2former_pyg import E2FormerPotential
from e2former_pyg.ase import E2FormerCalculator

OUTPUT = Path(__file__).resolve().parent.parent / "runs" / "relax_alloy"
FMAX = 0.01  # eV/Å
ROW = "{:<8}{:>16}{:>8}{:>16}{:>8}{:>10}"


def crystals() -> dict[str, Atoms]:
    """Displaced atoms in sheared cells that are three per cent too long."""
    cubic = {name: bulk(name, cubic=True) for name in ("Cu", "Ag", "Au")}
    cubic["Cu3Au"] = bulk("Cu", a=3.75, cubic=True)
    cubic["Cu3Au"].symbols[0] = "Au"
    cubic["PdNi"] = bulk("Pd", a=3.75, cubic=True)
    cubic["PdNi"].symbols[:2] = "Ni"
    shear = np.array([[1.03, 0.02, 0.0], [0.0, 1.03, 0.01], [0.01, 0.0, 1.03]])
    for seed, (name, atoms) in enumerate(cubic.items()):
        atoms = atoms.repeat(2)
        atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
        atoms.rattle(0.08, seed=seed)
        cubic[name] = atoms
    return cubic


def optimizer(atoms: Atoms, path: Path | None = None) -> FIRE:
    trajectory = None if path is None else str(path)
    return FIRE(FrechetCellFilter(atoms), trajectory=trajectory, logfile=None)


def plot(path: Path, runs: dict[str, list[Atoms]]) -> None:
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    energy, volume = figure.subplots(1, 2)
    for name, frames in runs.items():
        energies = np.array([frame.get_potential_energy() / len(frame) for frame in frames])
        energy.semilogy(1e3 * (energies - energies.min() + 1e-7), label=name)
        volume.plot([frame.get_volume() / len(frame) for frame in frames])
    energy.set_ylabel("energy − lowest (meV/atom)")
    volume.set_ylabel("volume (Å³/atom)")
    for axes in (energy, volume):
        axes.set_xlabel("step")
    energy.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(args: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Relaxes all crystals and returns energies and volumes of an atom, ours and EMT's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="training time")
    parser.add_argument("--steps", type=int, default=300, help="limit of each relaxation")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    arguments = parser.parse_args(args)
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    checkpoint = arguments.output / "alloys.safetensors"
    if not checkpoint.exists():
        potential, _ = train_alloys(arguments.seconds / 60)
        potential.save(checkpoint)
    errors = alloy_errors(E2FormerPotential.load(checkpoint), load_alloys("val"))
    print("\nErrors on unseen frames:", ", ".join(f"{k} {v:.2f}" for k, v in errors.items()), "\n")

    results, runs, calculator = {}, {}, E2FormerCalculator(checkpoint)
    rows = [ROW.format("", "energy eV/atom", "EMT", "volume Å³/atom", "EMT", "relaxed")]
    for name, atoms in crystals().items():
        reference = atoms.copy()
        reference.calc, atoms.calc = EMT(), calculator
        path = arguments.output / f"{name}.traj"
        optimizer(reference).run(fmax=FMAX, steps=1000)
        steps = optimizer(atoms, path).irun(fmax=FMAX, steps=arguments.steps)
        converged = run(steps, arguments.steps, name) < arguments.steps
        found = []
        for each in (atoms, reference):
            found += [each.get_potential_energy() / len(each), each.get_volume() / len(each)]
        results[name] = dict(
            zip(("energy", "volume", "emt_energy", "emt_volume"), found, strict=True)
        )
        values = [f"{found[index]:.3f}" for index in (0, 2, 1, 3)]
        rows.append(ROW.format(name, *values, "yes" if converged else "no"))
        runs[name] = read(path, ":")
    plot(arguments.output / "relaxation.png", runs)
    print("", *rows, f"Written to {arguments.output}", sep="\n")
    return results


if __name__ == "__main__":
    main()

"""Molecular dynamics of ethanol with the potential that the quickstart trains.

    python examples/quickstart.py && python examples/md_ethanol.py

heats the molecule to 300 K with a thermostat, lets it go at constant energy, and writes a
trajectory (`ase gui runs/md_ethanol/nve.traj` shows it), from whose last frame ``--resume`` goes
on, and a plot of the energies, whose sum stays what it is as far as forces and steps are right.
Dispersion or any other term of ASE is added to the potential by

    SumCalculator([E2FormerCalculator(checkpoint), DFTD3(method="PBE", damping="d3bj")])

with ``ase.calculators.mixing.SumCalculator`` and ``dftd3.ase.DFTD3``, where training data have
none; these do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ethanol_data import load_ethanol
from plots import energy_plot
from simulation import drift, energies, last_frame, record, run

from e2former_pyg.ase import E2FormerCalculator

RUNS = Path(__file__).resolve().parent.parent / "runs"
TIME_STEP = 0.5  # fs
EVERY = 10  # steps from one frame to the next


def thermal_start(calculator: E2FormerCalculator, temperature: float, seconds: float) -> Atoms:
    """Ethanol after a picosecond at a temperature, at rest as a whole."""
    data = load_ethanol()[0]
    atoms = Atoms(data.z.numpy(), data.pos.double().numpy(), calculator=calculator)
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    options = {"temperature_K": temperature, "friction": 0.02 / units.fs, "fixcm": False}
    dynamics = Langevin(atoms, TIME_STEP * units.fs, rng=rng, **options)
    run(dynamics.irun(1000), 1000, "heating", seconds)
    Stationary(atoms)
    ZeroRotation(atoms)
    return atoms


def main(args: list[str] | None = None) -> dict[str, float]:
    """Runs the dynamics and returns drift and fluctuation of the total energy in meV/atom."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RUNS / "quickstart" / "ethanol.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=default, help="the potential")
    parser.add_argument("--output", type=Path, default=RUNS / "md_ethanol", help="folder")
    parser.add_argument("--steps", type=int, default=2000, help="of half a femtosecond each")
    parser.add_argument("--seconds", type=float, default=25.0, help="limit of each of two parts")
    parser.add_argument("--temperature", type=float, default=300.0, help="in K")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--resume", action="store_true", help="go on from the last frame")
    arguments = parser.parse_args(args)
    if not arguments.checkpoint.exists():
        parser.error(f"no potential at {arguments.checkpoint}; run examples/quickstart.py first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are small

    dtype = torch.float64 if arguments.double else None
    calculator = E2FormerCalculator(arguments.checkpoint, dtype=dtype)
    path, plot = arguments.output / "nve.traj", arguments.output / "energies.png"
    atoms = last_frame(path) if arguments.resume else None
    resumed = atoms is not None
    if resumed:
        atoms.calc = calculator
    else:
        atoms = thermal_start(calculator, arguments.temperature, arguments.seconds)
    dynamics = VelocityVerlet(atoms, TIME_STEP * units.fs)
    record(dynamics, path, EVERY, resumed)
    run(dynamics.irun(arguments.steps), arguments.steps, "constant energy", arguments.seconds)

    values = energies(path)
    times = np.arange(len(values["total"])) * EVERY * TIME_STEP * 1e-3
    trend, spread = drift(times, values["total"], len(atoms))
    # It neither moves nor turns as a whole.
    temperature = 2 * values["kinetic"].mean() / ((3 * len(atoms) - 6) * units.kB)
    energy_plot(plot, times, values, len(atoms), "Ethanol at constant energy")
    print(
        f"\n{times[-1]:.2f} ps at {temperature:.0f} K. The total energy drifts by {trend:+.3f} and "
        f"fluctuates by {spread:.3f} meV/atom.\nWritten:\n  {path}\n  {plot}"
    )
    return {"drift": trend, "fluctuation": spread, "ps": float(times[-1])}


if __name__ == "__main__":
    main()

"""A periodic liquid: learn a water model from a short run of it, and run what was learned.

    python examples/water_box.py

No trained water potential is bundled, and a minute of training makes no good one. The reference
here is a simple classical model, TIP3P with springs for bonds and angles, both of ASE, that runs
anywhere: its radial distribution function is what the learned potential has to reproduce, not that
of real water. With labels of an electronic structure method in place of its (see
``e2former_pyg.data.ASEDataset``), the rest stays as it is. Writes trajectories, the potential and
a plot to ``runs/water_box``; a reference trajectory that an earlier call finished is used again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.geometry.rdf import get_rdf
from ase.io import read
from ase.md.langevin import Langevin
from plots import rdf_plot
from simulation import record, run
from torch_geometric.data import Data
from training import Settings, evaluate, fit_references, train
from water_reference import box, reference

from e2former_pyg import E2FormerPotential
from e2former_pyg.ase import E2FormerCalculator
from e2former_pyg.data import ASEDataset
from e2former_pyg.transforms import RadiusGraph

OUTPUT = Path(__file__).resolve().parent.parent / "runs" / "water_box"
TEMPERATURE, TIME_STEP, EVERY = 350.0, 0.5, 20  # K, fs, steps
MODEL = {
    "hidden_channels": 32,
    "num_layers": 2,
    "heads": 4,
    "cutoff": 4.5,
    "num_radial": 12,
    "avg_num_neighbors": 36.0,
    "elements": [1, 8],
    "repulsion": True,
}


def simulate(atoms: Atoms, path: Path, steps: int, seconds: float) -> list[Atoms]:
    """Runs at constant temperature and returns the frames after the first quarter."""
    if not path.exists():
        # It gets its name when it is complete: a run that was interrupted starts again.
        unfinished = path.with_suffix(".part.traj")
        options: dict = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "fixcm": False}
        rng = np.random.default_rng(1)
        dynamics = Langevin(atoms, TIME_STEP * units.fs, rng=rng, **options)
        with record(dynamics, unfinished, EVERY):
            run(dynamics.irun(steps), steps, path.stem, seconds)
        unfinished.replace(path)
    frames = read(path, ":")
    return frames[len(frames) // 4 :]


def rdf(frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Distances of oxygen atoms and how often they occur beside a gas of the same density."""
    end = 0.499 * frames[0].cell.lengths().min()
    curves = [get_rdf(atoms, end, 40, elements=(8, 8)) for atoms in frames]
    return curves[0][1], np.mean([curve[0] for curve in curves], axis=0)


def main(args: list[str] | None = None) -> dict[str, float]:
    """Learns, runs and returns the errors on unseen frames and that of the distribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="limit of each of three parts")
    parser.add_argument("--steps", type=int, default=4000, help="of dynamics, half a fs each")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    arguments = parser.parse_args(args)
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seconds, folder = arguments.seconds, arguments.output
    atoms = box()
    atoms.calc = reference(atoms)
    path = folder / "reference.traj"
    expected = simulate(atoms, path, arguments.steps, seconds)

    frames: list[Data] = list(ASEDataset(path, pre_transform=RadiusGraph(MODEL["cutoff"])))
    frames = frames[-len(expected) :]  # without the start, which is far from equilibrium
    num_test = len(frames) // 5
    train_frames, test_frames = frames[:-num_test], frames[-num_test:]
    torch.manual_seed(0)
    model = E2FormerPotential(**MODEL)
    fit_references(model, train_frames)
    settings = Settings(minutes=seconds / 60, batch_size=1, lr=3e-3, energy_weight=5e-3, ema=0.99)
    model, _ = train(model, train_frames, settings, description=f"{'training':<16}")
    errors = evaluate(model, test_frames)
    model.save(folder / "water.safetensors")

    atoms = expected[-1].copy()
    atoms.calc = E2FormerCalculator(folder / "water.safetensors")
    (folder / "learned.traj").unlink(missing_ok=True)
    found = simulate(atoms, folder / "learned.traj", arguments.steps, seconds)
    curves = {"flexible TIP3P": rdf(expected), "E2Former": rdf(found)}
    errors["rdf"] = float(np.abs(curves["E2Former"][1] - curves["flexible TIP3P"][1]).mean())
    rdf_plot(folder / "rdf.png", curves, "Oxygen atoms in water, 27 molecules, 350 K")
    print("\nErrors:", ", ".join(f"{name} {value:.3g}" for name, value in errors.items()))
    print(f"Written to {folder}")
    return errors


if __name__ == "__main__":
    main()

"""A potential for alloys after 20 minutes of a CPU's time, beside EMT, which it learns.

    python benchmarks/alloy.py                  # train, measure, write results/alloy.json
    python benchmarks/alloy.py --seconds 300    # for five minutes; the next call goes on

trains on the 630 bundled training frames (energies, forces, stresses), and measures the errors on
the 70 validation frames and the lattice constants of copper, silver and gold relaxed with both. The
state is kept in ``runs/alloy``, the potential in ``runs/alloy/alloys.safetensors``. The plot
(``results/alloy.png``) shows the errors of forces and energies of the validation frames.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from common import RESULTS, write_result
from matplotlib.figure import Figure
from torch_geometric.data import Batch, Data

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "examples"))
from alloy_training import SETTINGS, alloy_errors, load_alloys, train_alloys  # noqa: E402

from e2former_pyg import E2FormerPotential  # noqa: E402
from e2former_pyg.ase import E2FormerCalculator  # noqa: E402


def lattice_constant(element: str, calculator) -> float:
    """Of the relaxed cubic cell in Å."""
    atoms: Atoms = bulk(element, cubic=True)
    atoms.calc = calculator
    if not BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=200):
        raise RuntimeError(f"the cell of {element} was not relaxed after 200 steps")
    return float(atoms.get_volume() ** (1 / 3))


@torch.no_grad()
def plot(path: Path, potential: E2FormerPotential, frames: list[Data]) -> None:
    data = Batch.from_data_list(frames)
    out, sizes = potential(data), data.ptr.diff()
    quantities = (
        ("force (eV/Å)", "error (meV/Å)", data.forces, out.forces),
        ("energy (eV/atom)", "error (meV/atom)", data.energy / sizes, out.energy / sizes),
    )
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    for axes, (name, label, expected, found) in zip(figure.subplots(1, 2), quantities, strict=True):
        error = 1e3 * (found - expected).flatten()
        axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.plot(
            expected.flatten(), error, ".", markersize=2 if len(error) > 100 else 5, alpha=0.5
        )
        axes.set_title(f"mean absolute error {float(error.abs().mean()):.2g}", fontsize=10)
        axes.set_xlabel(f"EMT's {name}")
        axes.set_ylabel(label)
    figure.savefig(path, dpi=130)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="training time in all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of this call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "alloy")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args(args)
    torch.set_num_threads(arguments.threads)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    frames = load_alloys("train")
    potential, state = train_alloys(
        arguments.minutes,
        arguments.seed,
        arguments.directory / "training.pt",
        arguments.seconds / 60,
        frames,
        time.process_time,  # other work beside it takes nothing from it
    )
    if state["elapsed"] < 60 * arguments.minutes:
        print(f"paused after {state['elapsed'] / 60:.1f} minutes; call again to go on")
        return
    checkpoint = arguments.directory / "alloys.safetensors"
    potential.save(checkpoint)
    lattice = {}
    for element in ("Cu", "Ag", "Au"):
        ours = lattice_constant(element, E2FormerCalculator(checkpoint, dtype=torch.float64))
        theirs = lattice_constant(element, EMT())
        lattice[element] = {
            "ours_angstrom": ours,
            "emt_angstrom": theirs,
            "error_percent": 100 * (ours / theirs - 1),
        }
    validation = load_alloys("val")
    record = {
        "case": "alloy",
        "seed": arguments.seed,
        "training_frames": len(frames),
        "training_minutes": state["elapsed"] / 60,
        "clock": "cpu",
        "steps": state["step"],
        "batch_size": SETTINGS["batch_size"],
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "validation": alloy_errors(potential, validation),
        "train": alloy_errors(potential, frames),
        "lattice": lattice,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
    }
    path = write_result("alloy", [record], arguments.out)
    plot(path.with_suffix(".png"), potential, validation)
    print(f"{record['validation']}\n{lattice}\n{path}")


if __name__ == "__main__":
    main()

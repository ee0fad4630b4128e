"""What the examples of simulations share: a run with a progress bar, and where to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import Trajectory
from ase.io.trajectory import TrajectoryWriter
from training import progress_bar


def last_frame(path: Path) -> Atoms | None:
    """The last structure of a trajectory with its momenta, if there is one to go on from."""
    if not path.exists():
        return None
    with Trajectory(str(path)) as trajectory:
        return trajectory[-1].copy() if len(trajectory) > 0 else None


def record(dynamics: Any, path: Path, every: int, resumed: bool = False) -> TrajectoryWriter:
    """Writes a frame every so many steps; one that was gone on from is not repeated."""
    trajectory = TrajectoryWriter(str(path), "a" if resumed else "w", dynamics.atoms)

    def write() -> None:
        if dynamics.nsteps > 0 or not resumed:
            trajectory.write()

    dynamics.attach(write, interval=every)
    return trajectory


def run(steps: Iterable[Any], count: int, description: str, seconds: float = math.inf) -> int:
    """Takes the steps that ``irun`` of ASE's dynamics and optimizers gives, or as many as there is
    time for, and returns their number.
    """
    end = time.perf_counter() + seconds
    done = 0
    with progress_bar(count, 0, f"{description:<16}", unit="steps") as bar:
        for done, _ in enumerate(steps):  # the first is the start
            bar.update(done - bar.n)
            if time.perf_counter() > end:
                break
    return done


def energies(path: Path) -> dict[str, np.ndarray]:
    """Potential, kinetic and total energy of all frames of a trajectory in eV."""
    with Trajectory(str(path)) as trajectory:
        values = [(each.get_potential_energy(), each.get_kinetic_energy()) for each in trajectory]
    potential, kinetic = np.array(values).T
    return {"potential": potential, "kinetic": kinetic, "total": potential + kinetic}


def drift(times: np.ndarray, total: np.ndarray, num_atoms: int) -> tuple[float, float]:
    """The linear drift of the total energy over a run, and what it fluctuates about that
    (root mean square), in meV per atom.

    Args:
        times: Times in ps.
        total: Total energies in eV.
        num_atoms: Number of atoms.
    """
    slope, offset = np.polyfit(times, total, 1)
    rest = total - slope * times - offset
    scale = 1e3 / num_atoms
    return float(scale * slope * (times[-1] - times[0])), float(scale * rest.std())

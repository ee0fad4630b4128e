"""Conservation of energy in long runs: ethanol and a periodic alloy at 300 K.

    python benchmarks/nve.py                       # ethanol: results/nve_ethanol.json and .png
    python benchmarks/nve.py --system alloy        # needs runs/alloy of benchmarks/alloy.py
    python benchmarks/nve.py --seconds 600         # ten minutes of it; the next call goes on

trains by the recipe of the quickstart (ethanol), heats to 300 K with a thermostat, and from there
runs 50 ps at constant energy in float32 with steps of 0.5 fs (1 fs for the alloy, which has no
light atoms), and 5 ps in float64 with steps of half, once and twice that. Trajectories are kept in
``runs/nve``: an interrupted run goes on from its last frame. All energies in the result are in meV
per atom. How they fluctuate with the step is compared over the first half picosecond
(``early_fluctuation``), in which trajectories with other steps are still alike: those of molecules
part, and then see other forces. ``outside_of_model_percent`` is what ASE, the neighbour list and
the calculator take beside the potential.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from common import RESULTS, environment, write_result
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "examples"))
from ethanol_data import load_ethanol, split_frames  # noqa: E402
from ethanol_settings import MODEL, NUM_TRAIN, SETTINGS  # noqa: E402
from simulation import drift, energies, last_frame, record, run  # noqa: E402
from training import Settings, fit_references, train  # noqa: E402

from e2former_pyg import E2FormerPotential  # noqa: E402
from e2former_pyg.ase import E2FormerCalculator  # noqa: E402

TEMPERATURE = 300.0
TIME_STEP = {"ethanol": 0.5, "alloy": 1.0}  # fs
BLOCKS = 10
EARLY_PS = 0.5


class Clock:
    """The time that a calculator spends inside of its potential."""

    def __init__(self, calculator: E2FormerCalculator) -> None:
        self.inside = 0.0
        self.evaluate, calculator._evaluate = calculator._evaluate, self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.evaluate(*args, **kwargs)
        finally:
            self.inside += time.perf_counter() - started


def ethanol_potential(path: Path, seconds: float) -> None:
    """The quickstart's recipe, with its seed, split, settings and training time."""
    frames, _ = split_frames(load_ethanol(), NUM_TRAIN, "time", seed=0)
    torch.manual_seed(0)
    model = E2FormerPotential(**MODEL)
    fit_references(model, frames)
    settings = Settings(minutes=seconds / 60, **SETTINGS["e2former"])
    trained, _ = train(model, frames, settings, path.with_suffix(".pt"), description="training")
    trained.save(path)


def structure(system: str) -> Atoms:
    if system == "ethanol":
        data = load_ethanol()[0]
        return Atoms(data.z.numpy(), data.pos.double().numpy())
    atoms = bulk("Cu", a=3.8, cubic=True).repeat(2)  # 32 atoms, a quarter each of four elements
    symbols = np.repeat(["Cu", "Ag", "Au", "Pd"], 8)
    atoms.set_chemical_symbols(list(np.random.default_rng(0).permutation(symbols)))
    return atoms


def thermal_start(system: str, checkpoint: Path, path: Path, steps: int) -> None:
    """The structure after a time with a thermostat, at rest as a whole."""
    atoms, rng = structure(system), np.random.default_rng(0)
    atoms.calc = E2FormerCalculator(checkpoint)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng)
    options = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "fixcm": False}
    run(Langevin(atoms, 0.5 * units.fs, rng=rng, **options).irun(steps), steps, "heating")
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    write(path, atoms)


def advance(
    case: dict[str, Any], start: Path, path: Path, checkpoint: Path, seconds: float
) -> bool:
    """Goes on with a run for so many seconds at most; whether it is at its end."""
    notes = path.with_suffix(".json")
    past = json.loads(notes.read_text()) if notes.exists() else {"seconds": 0.0, "inside": 0.0}
    atoms = last_frame(path)
    resumed = atoms is not None
    done = 0
    if resumed:
        done = (len(energies(path)["total"]) - 1) * case["every"]
    else:
        atoms = read(start)
    steps = case["steps"] - done
    if steps <= 0:
        return True
    atoms.calc = calculator = E2FormerCalculator(checkpoint, dtype=getattr(torch, case["dtype"]))
    clock = Clock(calculator)
    dynamics = VelocityVerlet(atoms, case["time_step_fs"] * units.fs)
    record(dynamics, path, case["every"], resumed)
    began = time.perf_counter()
    taken = run(dynamics.irun(steps), steps, case["case"], seconds)
    past = {
        "seconds": past["seconds"] + time.perf_counter() - began,
        "inside": past["inside"] + clock.inside,
        "steps": past.get("steps", 0) + taken,
        "list_builds": past.get("list_builds", 0) + calculator.neighbors.num_builds,
    }
    notes.write_text(json.dumps(past))
    return taken == steps


def summary(case: dict[str, Any], path: Path) -> dict[str, Any]:
    values = energies(path)
    atoms = last_frame(path)
    times = np.arange(len(values["total"])) * case["every"] * case["time_step_fs"] * 1e-3
    scale, total = 1e3 / len(atoms), values["total"]
    trend, spread = drift(times, total, len(atoms))
    parts = np.array_split(total, min(BLOCKS, len(total)))
    blocks = [float(scale * (part.mean() - total[0])) for part in parts]
    # None of them moves as a whole, nor does a molecule turn.
    free = 3 * len(atoms) - (3 if atoms.pbc.any() else 6)
    notes = path.with_suffix(".json")
    timing = {}
    if notes.exists():  # not before a call came to its end
        past = json.loads(notes.read_text())
        timing = {
            "ms_per_step": 1e3 * past["seconds"] / max(past["steps"], 1),
            "outside_of_model_percent": 100 * (past["seconds"] / past["inside"] - 1),
            "steps_per_list": past["steps"] / max(past["list_builds"], 1),
        }
    return {
        **case,
        "ps": float(times[-1]),
        "atoms": len(atoms),
        "temperature_k": float(2 * values["kinetic"].mean() / (free * units.kB)),
        "drift": trend,
        "fluctuation": spread,
        "early_fluctuation": float(scale * total[times <= EARLY_PS].std()),
        "largest_deviation": float(scale * np.abs(total - total[0]).max()),
        "block_means": blocks,
        **timing,
    }


def plot(path: Path, records: list[dict[str, Any]], folder: Path) -> None:
    figure = Figure(figsize=(8.0, 2.2 * len(records)), layout="constrained")
    panels = figure.subplots(len(records), 1, squeeze=False)[:, 0]
    for axes, each in zip(panels, records, strict=True):
        total = energies(folder / f"{each['name']}.traj")["total"]
        times = np.linspace(0, each["ps"], len(total))
        axes.plot(times, 1e3 * (total - total[0]) / each["atoms"], linewidth=0.7)
        axes.set_title(f"{each['case']}: drift {each['drift']:+.3f} meV/atom", fontsize=9)
        axes.set_ylabel("meV/atom")
    panels[-1].set_xlabel("time (ps)")
    figure.savefig(path, dpi=130)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=["ethanol", "alloy"], default="ethanol")
    parser.add_argument("--checkpoint", type=Path, help="a potential, instead of training one")
    parser.add_argument("--train-seconds", type=float, default=85.0, help="as in the quickstart")
    parser.add_argument("--ps", type=float, default=50.0, help="length of the run in float32")
    parser.add_argument("--ps-double", type=float, default=5.0, help="length of those in float64")
    parser.add_argument("--heating-ps", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of dynamics in this call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "nve")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args(args)
    torch.set_num_threads(arguments.threads)
    system, folder = arguments.system, arguments.directory
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.checkpoint
    if checkpoint is None and system == "alloy":
        checkpoint = REPOSITORY / "runs" / "alloy" / "alloys.safetensors"
    elif checkpoint is None:
        checkpoint = folder / "ethanol.safetensors"
        if not checkpoint.exists():
            ethanol_potential(checkpoint, arguments.train_seconds)
    if not checkpoint.exists():
        parser.error(f"no potential at {checkpoint}; run benchmarks/alloy.py first")
    start = folder / f"{system}_start.traj"
    if not start.exists():
        thermal_start(system, checkpoint, start, round(2000 * arguments.heating_ps))

    usual = TIME_STEP[system]
    steps = [0.5 * usual, usual, 2 * usual]
    plan = [("float32", usual, arguments.ps)]
    plan += [("float64", step, arguments.ps_double) for step in steps]
    end, records, finished = time.perf_counter() + arguments.seconds, [], True
    for dtype, step, length in plan:
        # Frames at the same times whatever the step.
        case = {
            "case": f"{system}/{dtype}/{step} fs",
            "name": f"{system}_{dtype}_{step}",
            "dtype": dtype,
            "time_step_fs": step,
            "steps": round(1000 * length / step),
            "every": round(10 / step) if length >= 1 else 1,
        }
        path = folder / f"{case['name']}.traj"
        left = end - time.perf_counter()
        done = left > 0 and advance(case, start, path, checkpoint, left)
        finished = finished and done
        if path.exists():
            records.append(summary(case, path))
            print({key: records[-1][key] for key in ("case", "ps", "drift", "fluctuation")})
    if not finished:
        print("not at the end yet; call again to go on")
        return
    ratios = {}
    for key, prefix in (("early_fluctuation", "ratio"), ("fluctuation", "whole_ratio")):
        spreads = {each["time_step_fs"]: each[key] for each in records[1:]}
        ratios |= {
            f"{prefix}_{long:g}_to_{short:g}_fs": spreads[long] / spreads[short]
            for short, long in pairwise(steps)
        }
    records.append({"case": f"{system}/order", **ratios, "environment": environment()})
    path = write_result(f"nve_{system}", records, arguments.out)
    plot(path.with_suffix(".png"), records[:-1], folder)
    print(path)


if __name__ == "__main__":
    main()

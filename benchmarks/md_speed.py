"""Steps of molecular dynamics, beside evaluations of MACE.

``ase/N``: steps of ASE's ``VelocityVerlet`` with ``E2FormerCalculator`` on N atoms in a periodic
cube at 0.1/Å³, 0.5 fs, 300 K: integration, neighbour list with a skin and the calculator's checks
included. ``torchsim/N``: the same by TorchSim, with everything on the device, where that is
installed. The potential has 4 layers, 128 channels and lmax 2, float32, TF32 off, random weights;
its energies are scaled down, so that atoms move as a gas would and the list is built as often as in
a simulation.

``mace_ms`` is one evaluation of MACE (2 layers, 128x0e + 128x1o, with cuEquivariance on a GPU) on
edges that are given, without any of the rest, and ``ratio`` is ``mace_ms / step_ms``.
``outside_of_model_percent`` is what a step takes beside the potential. A plot lies beside the
result.

    python benchmarks/md_speed.py
    python benchmarks/md_speed.py --device cpu --atoms 64 --channels 16 --steps 5 --out dry
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms as Structure
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from attention_measure import Meter
from attention_systems import DENSITY
from case_loop import card_name
from common import RESULTS, write_result
from matplotlib.figure import Figure
from model_systems import LARGE, make_model, solid
from peers_cases import Case
from peers_models import mace_peer
from peers_systems import Atoms
from tqdm import tqdm

from e2former_pyg import E2FormerPotential
from e2former_pyg.ase import E2FormerCalculator

TIME_STEP, TEMPERATURE = 0.5, 300.0
# Steps after which kernels are compiled and the CUDA graph is captured.
WARMUP = 5


def make_atoms(atoms: int, device: str) -> Structure:
    system = solid(atoms, device)
    length = (atoms / DENSITY) ** (1 / 3)
    structure = Structure(system.z.cpu().numpy(), system.pos.cpu().double().numpy(), pbc=True)
    structure.set_cell(3 * [length])
    MaxwellBoltzmannDistribution(structure, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    return structure


def make_potential(channels: int, device: str) -> E2FormerPotential:
    potential = make_model(LARGE | {"hidden_channels": channels}, device).eval()
    potential.references.scale.fill_(1e-4)
    return potential


class Clock:
    """The time inside of a function, with the device waited for."""

    def __init__(self, function: Callable[..., Any], meter: Meter) -> None:
        self.function, self.meter, self.seconds = function, meter, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        out = self.function(*args, **kwargs)
        self.meter.synchronize()
        self.seconds += time.perf_counter() - started
        return out


def ase_steps(
    potential: E2FormerPotential, atoms: int, steps: int, meter: Meter
) -> dict[str, float]:
    structure = make_atoms(atoms, str(meter.device))
    structure.calc = calculator = E2FormerCalculator(potential)
    dynamics = VelocityVerlet(structure, TIME_STEP * units.fs)
    dynamics.run(WARMUP)
    builds = calculator.neighbors.num_builds
    calculator._evaluate = clock = Clock(calculator._evaluate, meter)  # type: ignore[method-assign]
    samples = []
    for _ in tqdm(range(steps), desc=f"ase/{atoms}", dynamic_ncols=True):
        started = time.perf_counter()
        dynamics.run(1)
        samples.append(time.perf_counter() - started)
    builds = calculator.neighbors.num_builds - builds
    return described(samples) | {
        "outside_of_model_percent": 100 * (sum(samples) / clock.seconds - 1),
        "steps_per_list": steps / max(builds, 1),
    }


def torchsim_steps(
    potential: E2FormerPotential, atoms: int, steps: int, meter: Meter
) -> dict[str, float]:
    import torch_sim as ts

    from e2former_pyg.torchsim import E2FormerModel

    device = str(meter.device)
    model = E2FormerModel(potential, compute_stress=False)
    state = ts.io.atoms_to_state([make_atoms(atoms, device)], device, torch.float32)
    kT = torch.tensor(TEMPERATURE * units.kB, device=device)
    dt = torch.tensor(TIME_STEP * units.fs, device=device)
    initialize, step = torchsim_nve(ts, model, dt, kT)
    state = initialize(state)
    for _ in range(WARMUP):
        state = step(state)
    samples = []
    for _ in tqdm(range(steps), desc=f"torchsim/{atoms}", dynamic_ncols=True):
        started = time.perf_counter()
        state = step(state)
        meter.synchronize()
        samples.append(time.perf_counter() - started)
    return described(samples)


def torchsim_nve(ts: Any, model: Any, dt: torch.Tensor, kT: torch.Tensor) -> tuple[Any, Any]:
    """The start and the step of a run at constant energy."""
    if not hasattr(ts, "nve_init"):  # TorchSim 0.3
        found: tuple[Any, Any] = ts.integrators.nve(model=model, dt=dt, kT=kT)
        return found
    return (
        lambda state: ts.nve_init(state=state, model=model, kT=kT),
        lambda state: ts.nve_step(state=state, model=model, dt=dt),
    )


def described(samples: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    # The mean counts the steps that build the list.
    mean = float(np.mean(samples))
    return {
        "step_ms": 1e3 * mean,
        "median_ms": 1e3 * float(median),
        "spread_ms": 1e3 * float(high - low),
        "ns_per_day": TIME_STEP * 1e-6 * 86400 / mean,
        "steps": len(samples),
    }


def mace_ms(atoms: int, channels: int, meter: Meter) -> float | None:
    try:
        case = Case("mace", "model", "energy+forces", atoms, channels)
        peer = mace_peer(Atoms.make(case, str(meter.device)), training=False)
    except ImportError as error:
        print(f"no MACE: {error}")
        return None
    return meter.times([peer.evaluate])[0].median


def plot(path: Path, records: list[dict[str, Any]]) -> None:
    atoms = sorted({record["atoms"] for record in records})
    bars = {
        f"a step with {name}": {
            r["atoms"]: r["step_ms"] for r in records if r["case"].startswith(key)
        }
        for key, name in (("ase/", "ASE"), ("torchsim/", "TorchSim"))
    }
    bars["MACE's forces alone"] = {r["atoms"]: r["mace_ms"] for r in records if r["mace_ms"]}
    bars = {name: values for name, values in bars.items() if values}
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for n, (name, values) in enumerate(bars.items()):
        places = [atoms.index(count) + (n - (len(bars) - 1) / 2) * width for count in values]
        axes.bar_label(axes.bar(places, values.values(), width, label=name), fmt="%.3g", fontsize=8)
    axes.set_xticks(range(len(atoms)), [f"{count:,}" for count in atoms])
    axes.set_xlabel("atoms")
    axes.set_ylabel("ms")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--atoms", type=int, nargs="+", default=[100, 1024, 10_240])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--no-mace", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter(args.device, 10, 0.5)
    potential, records = make_potential(args.channels, args.device), []
    for atoms in args.atoms:
        peer = None if args.no_mace else mace_ms(atoms, args.channels, meter)
        for name, steps in (("ase", ase_steps), ("torchsim", torchsim_steps)):
            try:
                found = steps(potential, atoms, args.steps, meter)
            except ImportError as error:
                print(f"no {name}: {error}")
                continue
            record = {"case": f"{name}/{atoms}", "atoms": atoms, "channels": args.channels, **found}
            record |= {
                "mace_ms": peer,
                "ratio": None if peer is None else peer / record["step_ms"],
            }
            records.append(record)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()})
    path = write_result(f"md_speed_{card_name(args.device)}", records, args.out)
    plot(path.with_suffix(".png"), records)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

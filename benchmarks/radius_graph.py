r"""Times the radius graph on the CPU, from 1,000 to 100,000 atoms, open and
periodic, beside vesin and ASE, and fits the exponent of the growth.

Writes results/radius_graph_cpu.json and .png. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

# Threads that wait busily make the times of small sizes useless as soon as
# another process runs; has to be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib
import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from common import RESULTS, median_time, write_result
from vesin import NeighborList

from e2former_pyg.graph import radius_graph

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DENSITY = 0.1  # atoms per cubic Angstrom
CUTOFF = 5.0
SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
LARGEST_ASE = 2_000


def make_runs(num_atoms: int, periodic: bool) -> dict[str, Callable[[], int]]:
    r"""The neighbour lists to compare; each returns its number of pairs."""
    length = (num_atoms / DENSITY) ** (1 / 3)
    generator = torch.Generator().manual_seed(num_atoms)
    pos = torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64) * length
    cell = length * torch.eye(3, dtype=torch.float64)
    points, box = pos.numpy(), cell.numpy()

    def ours() -> int:
        return radius_graph(pos, CUTOFF, cell=cell if periodic else None)[0].size(1)

    def vesin() -> int:
        neighbors = NeighborList(cutoff=CUTOFF, full_list=True)
        return len(neighbors.compute(points, box, periodic, "ijS")[0])

    def ase() -> int:
        flags = np.full(3, periodic)
        return len(primitive_neighbor_list("ijS", flags, box, points, CUTOFF)[0])

    runs = {"e2former_pyg": ours, "vesin": vesin}
    if num_atoms <= LARGEST_ASE:
        runs["ase"] = ase
    return runs


def exponent(records: list[dict[str, Any]], size: str) -> float:
    r"""The slope of time over size on logarithmic axes, by least squares. In
    open systems, pairs grow faster than atoms, of which fewer and fewer are at
    the surface; :obj:`size` says which of them counts.

    Taken from the fastest runs: other processes only ever add time, and do so
    more at some sizes than at others.
    """
    x = [math.log(record[size]) for record in records]
    y = [math.log(record["fastest"]) for record in records]
    return float(np.polyfit(x, y, 1)[0])


def plot(records: list[dict[str, Any]], exponents: dict[str, dict[str, float]]) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for panel, system in zip(panels, ("open", "periodic"), strict=True):
        for method in ("e2former_pyg", "vesin", "ase"):
            rows = [r for r in records if (r["system"], r["method"]) == (system, method)]
            label = f"{method}, exponent {exponents[f'{method}/{system}']['atoms']:.2f}"
            panel.errorbar(
                [row["atoms"] for row in rows],
                [row["fastest"] for row in rows],
                yerr=[[0.0] * len(rows), [row["seconds"] - row["fastest"] for row in rows]],
                marker="o",
                capsize=2,
                label=label,
            )
        panel.set(xscale="log", yscale="log", xlabel="atoms", title=system)
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("seconds (fastest run; bars to the median)")
    figure.suptitle(f"Radius graph on the CPU, {CUTOFF} Å, {DENSITY} atoms/Å³")
    figure.tight_layout()
    figure.savefig(RESULTS / "radius_graph_cpu.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each measurement")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    records: list[dict[str, Any]] = []
    for system in ("open", "periodic"):
        for num_atoms in SIZES:
            pairs = set()
            for method, run in make_runs(num_atoms, system == "periodic").items():
                pairs.add(run())
                timing = median_time(run, max_seconds=args.seconds)
                records.append(
                    {
                        "case": f"radius-graph/{method}/{system}/{num_atoms}",
                        "density": DENSITY,
                        "cutoff": CUTOFF,
                        "system": system,
                        "method": method,
                        "atoms": num_atoms,
                        "pairs": max(pairs),
                        "seconds": timing.median,
                        "spread": timing.spread,
                        "fastest": timing.fastest,
                        "runs": timing.runs,
                    }
                )
                print(
                    f"{system:9}{method:13}{num_atoms:8} atoms {max(pairs):9} pairs "
                    f"{timing.median:8.4f} s ± {timing.spread:.4f}"
                )
            if len(pairs) != 1:
                raise RuntimeError(f"The methods found different numbers of pairs: {pairs}")

    exponents: dict[str, dict[str, float]] = {}
    for system in ("open", "periodic"):
        for method in ("e2former_pyg", "vesin", "ase"):
            rows = [r for r in records if (r["system"], r["method"]) == (system, method)]
            slopes = {size: exponent(rows, size) for size in ("atoms", "pairs")}
            exponents[f"{method}/{system}"] = slopes
            print(f"{method} {system}: time ~ atoms^{slopes['atoms']:.3f}", end=", ")
            print(f"pairs^{slopes['pairs']:.3f}")
    fits = [{"case": f"radius-graph/{n}/exponent", **e} for n, e in exponents.items()]
    path = write_result("radius_graph_cpu", [*fits, *records])
    plot(records, exponents)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

"""How fast files are read, how much memory that takes, and whether training has to wait for it.

    python benchmarks/data_reading.py

writes ``results/data_reading_cpu.json``, in less than three minutes where two cores are free.

- ``read``: all records of a file of random molecules of 5 to 55 atoms, in random order, in a
  process of its own. Memory is what the process has at its peak above what it had before it opened
  the file: all of it, and without the pages of the file, which the system takes back where it needs
  to. The latter also after each quarter of the records: HDF5 fills a cache of at most 32 MiB.
- ``train``: the bundled ethanol frames in each layout, through a loader that makes the edges, into
  the eager training step of ``train_step.py`` (10 molecules, one thread). What a batch and a step
  cost in CPU time tells how many steps one worker can feed, whatever else the machine does;
  measured as well is how long steps wait for their batches with two workers, which includes taking
  the tensors over from another process. ``npz-with-edges`` keeps the edges in memory; ``alloys``
  are the bundled ones, periodic, with the same model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from data_layouts import LAYOUTS, Molecule, random_molecules
from torch_geometric.data import Dataset
from torch_geometric.loader import DataLoader

from e2former_pyg.transforms import RadiusGraph

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from alloy_training import RAW as ALLOYS
from ethanol_data import load_ethanol
from ethanol_settings import MODEL
from gradients import EagerGradients
from training import endless, fit_references, keep_freed_memory

from e2former_pyg import E2FormerPotential
from e2former_pyg.data import NPZDataset

MIB = 1 << 20
BATCH_SIZE = 10
WORKERS = 2
EVERY = 500
"""Records after which memory is looked at."""


def memory(name: str) -> float:
    """A number of this process in MiB, such as ``VmRSS``, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def read_all(layout: str, path: Path, reads: int | None = None) -> dict[str, Any]:
    """Opens a file and reads its records, or as many of them, in random order."""
    before = {name: memory(name) for name in ("VmRSS", "RssAnon")}
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    started = time.perf_counter()
    dataset = LAYOUTS[layout].read(path)
    opened = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()[:reads]
    num_atoms, anonymous, quarters = 0, memory("RssAnon"), []
    begun, cpu = time.perf_counter(), time.process_time()
    for count, index in enumerate(order):
        num_atoms += dataset[index].num_nodes
        if count % EVERY == 0:
            anonymous = max(anonymous, memory("RssAnon"))
        if (count + 1) * 4 // len(order) > len(quarters):
            quarters.append(memory("RssAnon") - before["RssAnon"])
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "records": len(dataset),
        "reads": len(order),
        "atoms_per_record": num_atoms / len(order),
        "file_mib": path.stat().st_size / MIB,
        "open_seconds": opened - started,
        "records_per_second": len(order) / seconds,
        "records_per_cpu_second": len(order) / cpu_seconds,
        "peak_rss_growth_mib": memory("VmHWM") - before["VmRSS"],
        "peak_anonymous_growth_mib": anonymous - before["RssAnon"],
        "anonymous_growth_mib_by_quarter": quarters,
    }


def read_in_process(layout: str, path: Path, reads: int | None = None) -> dict[str, Any]:
    """:func:`read_all` in a process of its own, after a small file has made it import all."""
    small = path.with_name(f"small.{LAYOUTS[layout].ending}")
    LAYOUTS[layout].write(small, random_molecules(10, 5))
    arguments = json.dumps([[layout, str(small)], [layout, str(path), reads]])
    command = [sys.executable, __file__, "--read", arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def ethanol() -> Molecule:
    """The bundled frames as conformations of one molecule."""
    frames = load_ethanol()
    arrays = ([getattr(f, name).numpy() for f in frames] for name in ("pos", "energy", "forces"))
    pos, energy, forces = (np.stack(array) for array in arrays)
    return Molecule(frames[0].z.numpy(), pos, energy[:, 0], forces)


def train(dataset: Dataset, steps: int, elements: list[int] | None) -> dict[str, Any]:
    """Times training steps, their batches, and what they wait for these with two workers."""
    torch.manual_seed(0)
    model = E2FormerPotential(**MODEL | {"elements": elements})
    fit_references(model, [dataset[index] for index in range(100)])
    model.train()
    gradients = EagerGradients(model, 0.03)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step(batch: Any) -> None:
        gradients(batch)
        optimizer.step()

    batches = endless(DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True))
    step(next(batches))
    costs: dict[str, list[float]] = {"batch": [], "step": []}
    for _ in range(steps):
        start = time.process_time()
        batch = next(batches)
        made = time.process_time()
        step(batch)
        costs["batch"].append(made - start)
        costs["step"].append(time.process_time() - made)

    options = {"num_workers": WORKERS, "persistent_workers": True, "drop_last": True}
    batches = endless(DataLoader(dataset, BATCH_SIZE, shuffle=True, **options))
    step(next(batches))
    waits, wholes = [], []
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        step(batch)
        wholes.append(time.perf_counter() - start)
    batch_cost, step_cost = (statistics.median(costs[name]) for name in ("batch", "step"))
    return {
        "molecules": BATCH_SIZE,
        "steps": steps,
        "batch_cpu_ms": 1e3 * batch_cost,
        "step_cpu_ms": 1e3 * step_cost,
        "steps_fed_by_one_worker": step_cost / batch_cost,
        "workers": WORKERS,
        "step_ms": 1e3 * statistics.median(wholes),
        "wait_ms": 1e3 * statistics.median(waits),
        "share_of_time_waiting": sum(waits) / sum(wholes),
    }


def run(records: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """All measurements, printed as they come."""
    out = []
    for layout, (ending, write, _) in LAYOUTS.items():
        path = folder / f"random.{ending}"
        size = records if layout == "spice" else records // 5
        write(path, random_molecules(size))
        record = {"case": f"data-reading/read/{layout}"} | read_in_process(layout, path)
        path.unlink()
        print(
            f"{record['case']:28}{size:7} records, {record['records_per_second']:5.0f} a second "
            f"({record['records_per_cpu_second']:.0f} in a second of the CPU), opened in "
            f"{record['open_seconds']:.2f} s; {record['file_mib']:.0f} MiB in the file, "
            f"{record['peak_rss_growth_mib']:.0f} in memory, "
            f"{record['peak_anonymous_growth_mib']:.0f} of which are not pages of the file"
        )
        out.append(record)
    edges = RadiusGraph(MODEL["cutoff"])
    for layout, (ending, write, read) in LAYOUTS.items():
        path = folder / f"ethanol.{ending}"
        write(path, [ethanol()])
        cases = {layout: {"transform": edges}}
        if layout == "npz":
            cases["npz-with-edges"] = {"pre_transform": edges}
        for name, options in cases.items():
            found = train(read(path, **options), steps, MODEL["elements"])
            out.append({"case": f"data-reading/train/{name}"} | found)
    alloys = NPZDataset(str(ALLOYS), split="train", transform=edges)
    out.append({"case": "data-reading/train/alloys"} | train(alloys, steps, None))
    for record in out[len(LAYOUTS) :]:
        print(
            f"{record['case']:34}{record['batch_cpu_ms']:6.1f} ms of the CPU for a batch, "
            f"{record['step_cpu_ms']:.1f} for a step; with {WORKERS} workers steps wait for "
            f"{100 * record['share_of_time_waiting']:.1f} % of the time"
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, help="of SPICE; others a fifth")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--read", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.read is not None:
        for case in arguments.read:
            result = read_all(case[0], Path(case[1]), *case[2:])
        print(json.dumps(result))
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        records = run(arguments.records, arguments.steps, Path(folder))
    print(f"wrote {write_result('data_reading_cpu', records)}")


if __name__ == "__main__":
    main()

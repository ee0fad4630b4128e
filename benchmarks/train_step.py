r"""Time of one force-training step on the CPU, beside PyG's SchNet.

Ten ethanol molecules, energy and forces, AdamW; the radius graph is built in the step by both. The
models take turns, so that a busy machine slows both.

    python benchmarks/train_step.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import write_result
from torch import nn
from torch_geometric.data import Batch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from ethanol import MODEL, fit_references
from ethanol_data import load_ethanol
from training import SchNetPotential, loss_function

from e2former_pyg import E2FormerPotential

MOLECULES = 10


class Step:
    """A model with its optimizer; calling it makes one training step."""

    def __init__(self, name: str, model: nn.Module, data: Batch) -> None:
        self.name = name
        self.model = model.train()
        self.data = data
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        loss = loss_function(self.model(self.data), self.data, 0.03)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        self.optimizer.step()

    def timed(self) -> None:
        start = time.perf_counter()
        self()
        self.seconds.append(time.perf_counter() - start)

    def record(self, threads: int, baseline: Step | None) -> dict[str, Any]:
        low, median, high = (
            1e3 * value for value in statistics.quantiles(self.seconds, n=4, method="inclusive")
        )
        record = {
            "case": f"train-step/{self.name}/threads={threads}",
            "molecules": MOLECULES,
            "atoms": self.data.num_nodes,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "threads": threads,
            "step_ms": median,
            "spread_ms": high - low,
            "fastest_ms": 1e3 * min(self.seconds),
            "steps": len(self.seconds),
        }
        if baseline is not None:
            pairs = zip(self.seconds, baseline.seconds, strict=True)
            record["baseline"] = baseline.name
            record["ratio"] = statistics.median(ours / other for ours, other in pairs)
        return record


def steps() -> tuple[Step, Step]:
    frames = load_ethanol()[:MOLECULES]
    for frame in frames:
        del frame.edge_index, frame.edge_cutoff
    data = Batch.from_data_list(frames)
    torch.manual_seed(0)
    models = {"e2former": E2FormerPotential(**MODEL), "schnet": SchNetPotential()}
    for model in models.values():
        fit_references(model, frames)
    ours, schnet = (Step(name, model, data) for name, model in models.items())
    return ours, schnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    records = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        ours, schnet = steps()
        for _ in range(5):
            ours()
            schnet()
        for _ in range(arguments.steps):
            ours.timed()
            schnet.timed()
        new = [ours.record(threads, schnet), schnet.record(threads, None)]
        for record in new:
            print({key: record[key] for key in ("case", "step_ms", "spread_ms", "fastest_ms")})
        print(f"ratio {new[0]['ratio']:.2f}")
        records += new
    write_result("train_step_cpu", records)


if __name__ == "__main__":
    main()

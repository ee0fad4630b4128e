r"""Time of one force-training step on the CPU, beside PyG's SchNet.

Ten ethanol molecules, energy and forces, AdamW; the radius graph is built in every step. The models
take turns, so that a busy machine slows all. "Traced" runs the graph of
``e2former_pyg.tracing.trace_gradients``, which is not compiled.

    python benchmarks/train_step.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import write_result
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from ethanol_data import load_ethanol
from ethanol_settings import MODEL
from training import SchNetPotential, fit_references, keep_freed_memory, loss_function

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.tracing import trace_gradients

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

    def gradients(self) -> None:
        loss = loss_function(self.model(self.data), self.data, 0.03)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)

    def __call__(self) -> None:
        self.gradients()
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


class TracedStep(Step):
    """The same from one traced graph; it holds while the radius graph stays the same."""

    def __init__(self, name: str, model: E2FormerPotential, data: Batch) -> None:
        super().__init__(name, model, data)
        size = (data.num_nodes, data.num_nodes)
        self.edge_index = radius_graph(data.pos, model.cutoff, data.batch)[0]
        edges = EdgeIndex(self.edge_index, sparse_size=size, sort_order="col")

        def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
            out = model(data.z, inputs["pos"], data.batch, edge_index=edges, batch_size=MOLECULES)
            return loss_function(out, Data(**inputs), 0.03)

        inputs = {key: data[key] for key in ("pos", "energy", "forces")}
        loss(model, inputs)
        self.run = trace_gradients(model, loss, inputs)

    def gradients(self) -> None:
        edge_index = radius_graph(self.data.pos, self.model.cutoff, self.data.batch)[0]
        if not torch.equal(edge_index, self.edge_index):
            raise RuntimeError("The neighbours have changed")
        self.run({key: self.data[key] for key in ("pos", "energy", "forces")})


def steps() -> list[Step]:
    """SchNet last: it is the baseline."""
    frames = load_ethanol()[:MOLECULES]
    for frame in frames:
        del frame.edge_index, frame.edge_cutoff
    data = Batch.from_data_list(frames)
    torch.manual_seed(0)
    eager, traced = E2FormerPotential(**MODEL), E2FormerPotential(**MODEL, elements=[1, 6, 8])
    schnet = SchNetPotential()
    for model in (eager, traced, schnet):
        fit_references(model, frames)
    return [
        Step("e2former", eager, data),
        TracedStep("e2former-traced", traced, data),
        Step("schnet", schnet, data),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    keep_freed_memory()
    records = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        contenders = steps()
        for _ in range(5):
            for step in contenders:
                step()
        for _ in range(arguments.steps):
            for step in contenders:
                step.timed()
        *ours, schnet = contenders
        new = [*(step.record(threads, schnet) for step in ours), schnet.record(threads, None)]
        for record in new:
            print(
                f"{record['case']:45}{record['step_ms']:8.1f} ± {record['spread_ms']:.1f} ms"
                f"{record.get('ratio', 1.0):8.2f} × SchNet"
            )
        records += new
    print(f"wrote {write_result('train_step_cpu', records)}")


if __name__ == "__main__":
    main()

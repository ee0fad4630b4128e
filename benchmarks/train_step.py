r"""Time of one force-training step on the CPU, beside PyG's SchNet.

Ten ethanol molecules, energy and forces, AdamW; the radius graph is built in every step. The models
take turns, so that a busy machine slows all.

- ``e2former``: with autograd, as any model is trained.
- ``e2former-traced``: from the graph of ``e2former_pyg.tracing.trace_gradients``, not compiled, as
  ``examples/ethanol.py`` trains.
- ``schnet``: with autograd. PyG's SchNet looks at values of tensors and cannot be traced.
- ``schnet-traced``: SchNet changed so that it can.

Ratios are to ``schnet``, and that of traced steps also to ``schnet-traced``.

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
from torch_geometric.data import Batch, Data
from torch_geometric.utils import scatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from ethanol_data import load_ethanol
from ethanol_settings import MODEL
from gradients import EagerGradients, Gradients, TracedGradients, loss_function
from training import SchNetPotential, fit_references, keep_freed_memory

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.tracing import trace_gradients

MOLECULES = 10
ENERGY_WEIGHT = 0.03


class Step:
    """A model with its optimizer; calling it makes one training step."""

    def __init__(self, name: str, model: nn.Module, data: Batch, gradients: Gradients) -> None:
        self.name = name
        self.data = data
        self.gradients = gradients
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        self.gradients(self.data)
        self.optimizer.step()

    def timed(self) -> None:
        start = time.perf_counter()
        self()
        self.seconds.append(time.perf_counter() - start)

    def ratio(self, other: Step) -> float:
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def record(self, threads: int, baselines: list[Step]) -> dict[str, Any]:
        low, median, high = (
            1e3 * value for value in statistics.quantiles(self.seconds, n=4, method="inclusive")
        )
        return {
            "case": f"train-step/{self.name}/threads={threads}",
            "molecules": MOLECULES,
            "atoms": self.data.num_nodes,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "threads": threads,
            "step_ms": median,
            "spread_ms": high - low,
            "fastest_ms": 1e3 * min(self.seconds),
            "steps": len(self.seconds),
            "ratio_to": {baseline.name: self.ratio(baseline) for baseline in baselines},
        }


def with_radius_graph(gradients: Gradients, cutoff: float) -> Gradients:
    """Builds the radius graph as well, on which the traced operations rely."""

    def run(data: Batch) -> Tensor:
        edge_index, _ = radius_graph(data.pos, cutoff, data.batch)
        if not torch.equal(edge_index, data.edge_index):
            raise RuntimeError("The neighbours have changed")
        return gradients(data)

    return run


class SumOverMolecules(nn.Module):
    """SchNet's readout without a look at the batch."""

    def forward(self, x: Tensor, index: Tensor, dim: int) -> Tensor:
        return scatter(x, index, dim, MOLECULES)


def traced_schnet(model: SchNetPotential, data: Batch) -> Gradients:
    source, target = data.edge_index

    def edges(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        vectors = pos.index_select(0, source) - pos.index_select(0, target)
        return data.edge_index, vectors.norm(dim=-1)

    def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        given = Data(**inputs, z=data.z, batch=data.batch)
        return loss_function(model(given), given, ENERGY_WEIGHT)

    def tensors(data: Batch) -> dict[str, Tensor]:
        return {key: data[key] for key in ("pos", "energy", "forces")}

    model.schnet.interaction_graph = edges
    model.schnet.readout = SumOverMolecules()
    run = trace_gradients(model, loss, tensors(data))
    return lambda data: run(tensors(data))


def steps() -> list[Step]:
    """All contenders; the last two are the baselines."""
    frames = load_ethanol()[:MOLECULES]
    data = Batch.from_data_list(frames)
    without_edges = data.clone()
    del without_edges.edge_index, without_edges.edge_cutoff
    torch.manual_seed(0)
    ours = E2FormerPotential(**MODEL), E2FormerPotential(**MODEL)
    theirs = SchNetPotential(), SchNetPotential()
    for model in (*ours, *theirs):
        fit_references(model, frames)
        model.train()
    traced = [
        with_radius_graph(gradients, MODEL["cutoff"])
        for gradients in (TracedGradients(ours[1], ENERGY_WEIGHT), traced_schnet(theirs[1], data))
    ]
    return [
        Step("e2former", ours[0], without_edges, EagerGradients(ours[0], ENERGY_WEIGHT)),
        Step("e2former-traced", ours[1], data, traced[0]),
        Step("schnet", theirs[0], without_edges, EagerGradients(theirs[0], ENERGY_WEIGHT)),
        Step("schnet-traced", theirs[1], data, traced[1]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    # As training does, without which SchNet takes four times as long.
    torch.set_flush_denormal(True)
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
        eager, traced, schnet, traced_baseline = contenders
        new = [
            eager.record(threads, [schnet]),
            traced.record(threads, [schnet, traced_baseline]),
            schnet.record(threads, []),
            traced_baseline.record(threads, [schnet]),
        ]
        for record in new:
            ratios = (f"{ratio:6.2f} × {name}" for name, ratio in record["ratio_to"].items())
            print(
                f"{record['case']:45}{record['step_ms']:8.1f} ± {record['spread_ms']:.1f} ms",
                *ratios,
            )
        records += new
    print(f"wrote {write_result('train_step_cpu', records)}")


if __name__ == "__main__":
    main()

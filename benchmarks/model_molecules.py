"""Energy and forces of a batch of aspirin molecules on the CPU, beside PyG's SchNet and ViSNet.

Edges are given to all. Ours is ``compile_for_inference``. Models take turns, so that a busy machine
slows all; ``to_schnet`` is the time over that of SchNet with four layers.

    python benchmarks/model_molecules.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from attention_measure import Meter
from common import write_result
from model_systems import ASPIRIN, SMALL, System, describe, make_model, molecules
from peers_models import GivenEdges
from torch import Tensor, nn
from torch_geometric.nn import SchNet
from torch_geometric.nn.models import ViSNet

LAYERS = {"ours": (2, 3), "SchNet": (4, 6), "ViSNet": (2, 4)}


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of a system, as the peers read them."""

    system: System

    @property
    def pos(self) -> Tensor:
        return self.system.pos

    @property
    def device(self) -> torch.device:
        return self.system.pos.device

    @property
    def edge_index(self) -> Tensor:
        return self.system.edge_index.as_tensor()

    def vectors(self, pos: Tensor) -> Tensor:
        source, target = self.edge_index
        return pos.index_select(0, source) - pos.index_select(0, target)


def forces_of(model: nn.Module, system: System) -> Callable[[], Tensor]:
    model = model.to(system.pos.device).eval().requires_grad_(False)

    def run() -> Tensor:
        pos = system.pos.detach().requires_grad_()
        out = model(system.z, pos, system.batch)
        energy = out[0] if isinstance(out, tuple) else out
        return -torch.autograd.grad(energy.sum(), pos)[0]

    return run


def schnet(system: System, channels: int, layers: int, cutoff: float) -> nn.Module:
    edges = Edges(system)

    def graph(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return edges.edge_index, edges.vectors(pos).norm(dim=-1)

    return SchNet(channels, channels, layers, cutoff=cutoff, interaction_graph=graph)


def visnet(system: System, channels: int, layers: int, cutoff: float) -> nn.Module:
    model = ViSNet(lmax=2, num_layers=layers, hidden_channels=channels, cutoff=cutoff)
    model.representation_model.distance = GivenEdges(Edges(system))  # type: ignore[arg-type]
    return model


def contenders(
    settings: dict[str, Any], system: System
) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
    """A model and its run for each name."""
    channels, cutoff = settings["hidden_channels"], settings["cutoff"]
    found: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    for layers in LAYERS["ours"]:
        model = make_model(settings | {"num_layers": layers}, "cpu").eval()
        fast = model.compile_for_inference()
        run = partial(fast, system.z, system.pos, **system.graph)
        found[f"ours, {layers} layers"] = model, run
    for name, make in (("SchNet", schnet), ("ViSNet", visnet)):
        for layers in LAYERS[name]:
            torch.manual_seed(0)
            peer = make(system, channels, layers, cutoff)
            found[f"{name}, {layers} layers"] = peer, forces_of(peer, system)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(arguments)
    # SchNet's Gaussians are full of numbers that are slow unless they are taken for zero.
    torch.set_flush_denormal(True)
    settings = SMALL | {"hidden_channels": args.channels}
    system = molecules(ASPIRIN, args.molecules, settings["cutoff"], "cpu")
    meter, records = Meter("cpu", args.repeats, 0), []
    for threads in args.threads:
        torch.set_num_threads(threads)
        models = contenders(settings, system)
        timings = meter.times([run for _, run in models.values()])
        times = dict(zip(models, timings, strict=True))
        for name, timing in times.items():
            record = describe(f"aspirin/{name}/threads={threads}", system) | {
                "channels": args.channels,
                "parameters": sum(p.numel() for p in models[name][0].parameters()),
                "threads": threads,
                "ms": timing.median,
                "spread_ms": timing.spread,
                "runs": timing.runs,
                "to_schnet": timing.median / times["SchNet, 4 layers"].median,
            }
            records.append(record)
            ratio = f"{record['to_schnet']:6.2f} × SchNet"
            print(f"{record['case']:42}{timing.median:9.1f} ± {timing.spread:.1f} ms{ratio}")
    print(f"wrote {write_result('model_cpu', records)}")


if __name__ == "__main__":
    main()

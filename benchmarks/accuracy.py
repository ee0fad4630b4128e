"""Accuracy on molecules after equal training time on a CPU: our potential, PyG's SchNet and ViSNet.

Rows: 800 frames of one molecule (``ethanol``, ``malonaldehyde``, ``paracetamol``, ``aspirin``,
``ala_dipeptide``), the others for testing, at random by the seed; ``organic``, molecules of nine
elements, tested on others. The files, in the layout of ``NPZDataset``, are in the folder ``--data``
(``xtbmd_<row>.npz``, ``xtb_organic.npz``); ``examples/make_xtb_md.py`` makes such files. Errors are
mean absolute ones, energies in meV and forces in meV/Å; training is that of
``examples/training.py``, 20 minutes a run. ViSNet's search for neighbours, which needs pyg-lib, is
replaced by ours.

Runs are processes of ``--threads`` threads, ``--jobs`` at a time. Their state is kept in
``--directory``: those interrupted, or paused by ``--pause-after`` minutes of each, go on with the
next call. Finished ones are gathered into ``results/accuracy_cpu.json``.

    python benchmarks/accuracy.py --data DATA --jobs 8 --threads 2
    python benchmarks/accuracy.py --data DATA --rows ethanol aspirin --models e2former --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import environment, write_result
from jobs import add_arguments, run_jobs
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn.models import ViSNet

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "examples"))
from training import (  # noqa: E402
    SchNetPotential,
    Settings,
    energy_and_forces,
    evaluate,
    fit_references,
    mean_predictor,
    train,
)

from e2former_pyg import E2FormerPotential, PotentialOutput  # noqa: E402
from e2former_pyg.data import NPZDataset  # noqa: E402
from e2former_pyg.graph import radius_graph  # noqa: E402
from e2former_pyg.models import ElementReferences  # noqa: E402
from e2former_pyg.transforms import RadiusGraph  # noqa: E402

CUTOFF = 5.0
MOLECULES = ("ethanol", "malonaldehyde", "paracetamol", "aspirin", "ala_dipeptide")
ROWS = (*MOLECULES, "organic")
SETTINGS: dict[str, dict[str, Any]] = {
    "e2former": {"lr": 5e-3, "energy_weight": 0.03},
    "schnet": {"lr": 1e-3},
    "visnet": {"lr": 1e-3},
}
MODELS = tuple(SETTINGS)


class OurDistance(nn.Module):
    """ViSNet's neighbours by our radius graph, with the loops that it expects."""

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        edges = radius_graph(pos.detach(), CUTOFF, batch)[0]
        vectors = pos.index_select(0, edges[0]) - pos.index_select(0, edges[1])
        atoms = torch.arange(pos.size(0), device=pos.device)
        lengths = torch.cat([vectors.norm(dim=-1), pos.new_zeros(pos.size(0))])
        vectors = torch.cat([vectors, torch.zeros_like(pos)])
        return torch.cat([edges, atoms.expand(2, -1)], dim=1), lengths, vectors


class ViSNetPotential(nn.Module):
    """PyG's ViSNet with the interface of an ``E2FormerPotential``."""

    def __init__(self, hidden_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        self.visnet = ViSNet(
            lmax=2, num_layers=num_layers, hidden_channels=hidden_channels, cutoff=CUTOFF
        )
        self.visnet.representation_model.distance = OurDistance()
        self.references = ElementReferences()

    def forward(self, data: Data) -> PotentialOutput:
        def energies(pos: Tensor) -> Tensor:
            return self.visnet(data.z, pos, data.batch)[0].reshape(-1)

        return energy_and_forces(energies, data, self.references, self.training)


def make_model(name: str, row: str, elements: list[int]) -> nn.Module:
    if name == "schnet":
        return SchNetPotential(CUTOFF)
    if name == "visnet":
        return ViSNetPotential()
    large = row == "organic"
    return E2FormerPotential(
        hidden_channels=64 if large else 48,
        num_layers=2,
        lmax=2,
        heads=4,
        cutoff=CUTOFF,
        num_radial=16,
        avg_num_neighbors=12.0,
        elements=elements,
    )


def load(row: str, folder: Path, seed: int, count: int) -> tuple[list[Data], list[Data]]:
    """Training and test frames, with edges."""
    graph = RadiusGraph(CUTOFF)
    if row == "organic":
        file = str(folder / "xtb_organic.npz")
        parts = [NPZDataset(file, split=split, pre_transform=graph) for split in ("train", "val")]
        return list(parts[0]), list(parts[1])
    frames = list(NPZDataset(str(folder / f"xtbmd_{row}.npz"), pre_transform=graph))
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed)).tolist()
    return [frames[n] for n in order[:count]], [frames[n] for n in order[count:]]


def run(row: str, name: str, seed: int, args: argparse.Namespace) -> None:
    """One run, or the next part of it."""
    torch.set_num_threads(args.threads)
    train_frames, test_frames = load(row, args.data, seed, args.train_frames)
    elements = sorted({int(z) for frame in train_frames for z in frame.z.unique()})
    torch.manual_seed(seed)
    model = make_model(name, row, elements)
    fit_references(model, train_frames)
    settings = Settings(minutes=args.minutes, seed=seed, **SETTINGS[name])
    label = f"{row}-{name}-{seed}"
    trained, state = train(
        model, train_frames, settings, args.directory / f"{label}.pt", args.pause_after, label
    )
    if state["elapsed"] < 60 * args.minutes:
        return
    record = {
        "case": f"{row}/{name}/{seed}",
        "row": row,
        "model": name,
        "seed": seed,
        "training_frames": len(train_frames),
        "test_frames": len(test_frames),
        "training_minutes": state["elapsed"] / 60,
        "steps": state["step"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": evaluate(trained, test_frames),
        "train": evaluate(trained, train_frames),
        "mean_predictor": mean_predictor(train_frames, test_frames),
        "threads": args.threads,
        "jobs": args.jobs,
        "environment": environment(),
    }
    (args.directory / f"{label}.json").write_text(json.dumps(record, indent=1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-frames", type=int, default=800, help="of a molecule")
    add_arguments(parser, "accuracy", minutes=20.0, threads=2)
    args = parser.parse_args(arguments)
    runs = list(product(args.rows, args.models, args.seeds))
    if args.single:
        run(*runs[0], args)
        return 0
    chosen = {
        f"{row}-{name}-{seed}": ["--rows", row, "--models", name, "--seeds", str(seed)]
        for row, name, seed in runs
    }
    given = sys.argv[1:] if arguments is None else arguments
    records, code = run_jobs(__file__, given, chosen, args)
    for record in records:
        test = {name: round(error, 2) for name, error in record["test"].items()}
        print(f"{record['case']:32}{record['steps']:8} steps  {test}")
    if records:
        print(f"wrote {write_result('accuracy_cpu', records, args.out)}")
    return code


if __name__ == "__main__":
    sys.exit(main())

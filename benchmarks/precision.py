"""What shorter numbers cost: trained potentials on test frames, in several precisions.

Models are those of ``accuracy.py``, from the folder of its runs (``--directory``); frames are those
that they were tested on. ``float64`` is the measure of the others: ``deviation`` is the mean
absolute difference of forces to it, ``test`` the errors to the labels.

- ``float32``: as they were trained.
- ``tf32``: matrix products rounded to TF32, on GPUs alone.
- ``autocast``: features and matrix products in bfloat16 by ``torch.autocast``; geometry, splines,
  softmax, sums over neighbours and the energy head in float32.
- ``bfloat16``: the weights in bfloat16 as well, but for references; sums in float32.

``ms`` is the time of energies and forces of 50 frames, edges given, launched one by one.

``solid/N``: a model of 4 layers, 128 channels and lmax 2 with random weights on N atoms in a
periodic cube (``--atoms``), as ``compile_for_inference`` runs it; ``relative_deviation`` is that of
all forces to float64.

    python benchmarks/accuracy.py --data DATA --rows ethanol aspirin --models e2former
    python benchmarks/precision.py --data DATA --rows ethanol aspirin
    python benchmarks/precision.py --data DATA --device cuda --atoms 1024 10240
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accuracy_models import make_model
from accuracy_rows import MOLECULES, Row, load
from attention_measure import Meter
from common import write_result
from model_systems import LARGE, relative, solid
from model_systems import make_model as make_large_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from training import labels, mean_absolute_errors, predict

from e2former_pyg import E2FormerPotential, PotentialOutput

MODES = ("float64", "float32", "tf32", "autocast", "bfloat16")
BATCH = 50


def trained(row: str, data: Row, file: Path) -> E2FormerPotential:
    """The averaged model of a run."""
    if not file.exists():
        raise FileNotFoundError(f"`--directory` has no run of this row: {file}")
    torch.manual_seed(0)
    average = AveragedModel(make_model("e2former", row, data))
    average.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["average"])
    return average.module.eval()


def modes_of(device: str) -> list[str]:
    return [mode for mode in MODES if mode != "tf32" or device == "cuda"]


def weights_in(mode: str, potential: E2FormerPotential) -> E2FormerPotential:
    """A copy of a potential."""
    dtypes = {"float64": torch.float64, "bfloat16": torch.bfloat16}
    return copy.deepcopy(potential).to(dtypes.get(mode, torch.float32))


def positions_in(mode: str, pos: Tensor) -> Tensor:
    """Positions have at least float32."""
    return pos.to(torch.float64 if mode == "float64" else torch.float32)


@contextmanager
def products_in(mode: str, device: str) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, mode == "tf32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=mode == "autocast"):
            yield
    finally:
        matmul.allow_tf32 = before


class InPrecision(nn.Module):
    """A copy of a potential that computes in one of the modes."""

    def __init__(self, mode: str, potential: E2FormerPotential) -> None:
        super().__init__()
        self.mode = mode
        self.potential = weights_in(mode, potential)

    def forward(self, data: Batch) -> PotentialOutput:
        data = copy.copy(data)
        data.pos = positions_in(self.mode, data.pos)
        with products_in(self.mode, data.pos.device.type):
            return self.potential(data)


def measure_solid(atoms: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    device, modes = args.device, modes_of(args.device)
    system = solid(atoms, device)
    potential = make_large_model(LARGE | {"hidden_channels": args.channels}, device).eval()

    def run_in(mode: str) -> Callable[[], Tensor]:
        model = weights_in(mode, potential).compile_for_inference()
        given = system.to(positions_in(mode, system.pos).dtype)

        def run() -> Tensor:
            with products_in(mode, device):
                return model(given.z, given.pos, **given.graph).forces

        return run

    runs = [run_in(mode) for mode in modes]
    found = [[run() for _ in range(3)][-1] for run in runs]  # the last one of a CUDA graph
    timings = Meter(device, args.repeats, args.seconds).times(runs)
    return [
        {
            "case": f"solid/{atoms}/{mode}",
            "atoms": atoms,
            "relative_deviation": relative(forces, found[0]),
            "ms": timing.median,
            "spread_ms": timing.spread,
        }
        for mode, forces, timing in zip(modes, found, timings, strict=True)
    ]


def measure(row: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    data, device = load(row, args.data, 0, args.train_frames), args.device
    model = trained(row, data, args.directory / f"{row}-e2former-0.pt").to(device)
    modes = modes_of(device)
    models = [InPrecision(mode, model) for mode in modes]
    found = dict(zip(modes, (predict(model, data.test) for model in models), strict=True))
    batch = next(iter(DataLoader(data.test, BATCH))).to(device)

    def run(model: nn.Module) -> Callable[[], Any]:
        return torch.no_grad()(partial(model, batch))

    timings = Meter(device, args.repeats, args.seconds).times([run(model) for model in models])
    records = []
    for mode, timing in zip(modes, timings, strict=True):
        deviation = (found[mode][1].double() - found["float64"][1]).abs().mean()
        records.append(
            {
                "case": f"{row}/{mode}",
                "test_frames": len(data.test),
                "deviation_mev_per_angstrom": 1e3 * float(deviation),
                "test": mean_absolute_errors(found[mode], labels(data.test)),
                "ms": timing.median,
                "spread_ms": timing.spread,
            }
        )
    return records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--directory", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--rows", nargs="+", choices=MOLECULES, default=["ethanol", "aspirin"])
    parser.add_argument("--train-frames", type=int, default=800)
    parser.add_argument("--atoms", type=int, nargs="*", default=[], help="of solids, timed as well")
    parser.add_argument("--channels", type=int, default=128, help="of the model on solids")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    records = [record for row in args.rows for record in measure(row, args)]
    for record in records:
        errors = {name: round(error, 3) for name, error in record["test"].items()}
        deviation = f"{record['deviation_mev_per_angstrom']:10.4f} meV/Å"
        print(f"{record['case']:24}{deviation}  {record['ms']:8.1f} ms  {errors}")
    solids = [record for atoms in args.atoms for record in measure_solid(atoms, args)]
    for record in solids:
        deviation = f"{record['relative_deviation']:10.1e} of 1  "
        print(f"{record['case']:24}{deviation}  {record['ms']:8.2f} ms")
    name = f"precision_{args.device}"
    print(f"wrote {write_result(name, records + solids, args.out)}")


if __name__ == "__main__":
    main()

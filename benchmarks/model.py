"""Energy and forces, and training steps, of whole models, and where their time goes.

``evaluate/N``: energy and forces of N atoms in a periodic cube at 0.1/Å³ (50 neighbours), 4 layers,
128 channels, lmax 2, float32, TF32 off, edges given. ``ours_ms`` is ``compile_for_inference``,
``eager_ms`` the potential itself, ``search_ms`` the neighbour search of ``radius_graph``, which the
other times leave out. The baseline is the same model with ``backend="torch"``.

``degree/R``: the same for 10,240 atoms with a cutoff of R Å.

``train/...``: one step with energies and forces, AdamW included: 20 ethanol and 64 aspirin
molecules (3 layers, 64 channels) and 5,000 atoms in a periodic cube (4 layers, 128 channels).
``ours_ms`` replays a step traced by ``trace_gradients(..., cuda_graph=True)``, ``eager_ms`` is
autograd, the baseline autograd with ``backend="torch"``.

``profile``: the shares of kernels in the time on the GPU of one evaluation.

``largest``: the largest of some sizes that fits into memory.

Forces and gradients are compared with ``backend="torch"`` in float64 first, in small systems; a
wrong result gets no ratio and a nonzero exit status. ``peak_mib`` is what a call takes beyond what
was held before, without a CUDA graph. ``feature_mib`` is one tensor of all features.

    python benchmarks/model.py
    python benchmarks/model.py --cases evaluate train
    python benchmarks/model.py --device cpu --atoms 64 --channels 16 --seconds 0 --out dry
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import ResultFile, card_name, versions
from attention_measure import Meter
from common import RESULTS, environment
from model_evaluate import evaluate, largest, shares
from model_systems import ASPIRIN, ETHANOL, LARGE, SMALL, molecules, solid
from model_train import train
from tqdm import tqdm

GROUPS = ("evaluate", "train", "profile", "degree", "largest")
ATOMS = (100, 1024, 10_240, 102_400)
# Beyond, the baseline takes seconds.
BASELINE_ATOMS = 10_240

Case = Callable[[], dict[str, Any]]


def make_cases(meter: Meter, groups: list[str], atoms: list[int], channels: int) -> dict[str, Case]:
    device = str(meter.device)
    large = LARGE | {"hidden_channels": channels}
    small = SMALL | {"hidden_channels": min(channels, SMALL["hidden_channels"])}
    cases: dict[str, Case] = {}

    def add(group: str, name: str, case: Callable[[str], dict[str, Any]]) -> None:
        if group in groups:
            cases[name] = partial(case, name)

    def evaluation(name: str, count: int, cutoff: float, baseline: bool) -> dict[str, Any]:
        settings = large | {"cutoff": cutoff}
        return evaluate(meter, settings, name, solid(count, device, cutoff), baseline)

    def molecular(name: str, text: str, count: int) -> dict[str, Any]:
        return train(meter, small, name, molecules(text, count, small["cutoff"], device))

    def periodic(name: str, count: int) -> dict[str, Any]:
        return train(meter, large, name, solid(count, device, large["cutoff"]))

    def profiled(name: str, count: int) -> dict[str, Any]:
        return shares(meter, large, name, solid(count, device, large["cutoff"]))

    for count in atoms:
        run = partial(
            evaluation, count=count, cutoff=large["cutoff"], baseline=count <= BASELINE_ATOMS
        )
        add("evaluate", f"evaluate/{count}", run)
        add("profile", f"profile/{count}", partial(profiled, count=count))
    add("train", "train/20 ethanol", partial(molecular, text=ETHANOL, count=20))
    add("train", "train/64 aspirin", partial(molecular, text=ASPIRIN, count=64))
    size = min(5000, max(atoms))
    add("train", f"train/{size} atoms", partial(periodic, count=size))
    for cutoff in (4.0, 6.0, 8.0):
        run = partial(evaluation, count=min(10_240, max(atoms)), cutoff=cutoff, baseline=False)
        add("degree", f"degree/{cutoff}", run)
    add("largest", "largest", partial(largest, meter, large))
    return cases


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    if "error" in record:
        return f"{record['case']:20} failed: {record['error']}"
    if "parts_ms" in record:
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in record["parts_ms"].items())
        return f"{record['case']:20} {record['ours_ms']:9.2f} ms, {record['launches']}: {parts}"
    row = f"{record['case']:20}{record['atoms']:9}{record['edges']:10}"
    for name in ("ours", "eager", "baseline"):
        value = record.get(f"{name}_ms")
        row += f"  {name} {'-' if value is None else format(value, '.2f')}"
    for name in ("ratio", "peak_mib", "baseline_peak_mib", "relative_error", "search_ms"):
        value = record.get(name)
        row += f"  {name} {'-' if value is None else format(value, '.3g')}"
    return row if record["right"] else f"{row}  WRONG"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--atoms", type=int, nargs="+", default=ATOMS)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="least runs behind a median")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(arguments)
    deadline = time.perf_counter() + 60 * args.minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter(args.device, args.repeats, args.seconds)
    name = card_name(args.device)
    card = environment()["cpu"] if name == "cpu" else torch.cuda.get_device_name(args.device)
    results = ResultFile(args.out / f"model_{name}.json")
    failed, skipped = [], []
    cases = make_cases(meter, args.cases, list(args.atoms), args.channels)
    for case, run in tqdm(cases.items(), file=sys.stderr, dynamic_ncols=True):
        if time.perf_counter() > deadline:
            skipped.append(case)
            continue
        try:
            record = run()
        except Exception as error:
            tqdm.write(traceback.format_exc(), file=sys.stderr)
            record = {"case": case, "error": f"{type(error).__name__}: {error}"}
        if not record.get("right", False):
            failed.append(case)
        date = environment()["date"]
        results.add({**record, "versions": versions(), "card": card, "date": date})
        tqdm.write(line(record), file=sys.stdout)
        meter.release()
    print(f"records in {results.path}")
    for what, names in (("out of time, not run", skipped), ("wrong or failed", failed)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

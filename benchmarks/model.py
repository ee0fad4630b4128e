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

``largest``: the largest of some sizes that fits into memory, as it is and with
``activation_checkpointing``.

Forces and gradients are compared with ``backend="torch"`` in float64 first, in small systems; a
wrong result gets no ratio and a nonzero exit status. ``peak_mib`` is what a call takes beyond what
was held before, without a CUDA graph. ``feature_mib`` is one tensor of all features.

    python benchmarks/model.py
    python benchmarks/model.py --cases evaluate train
    python benchmarks/model.py --device cpu --atoms 64 --channels 16 --seconds 0 --out dry
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attention_measure import Meter
from case_loop import ResultFile, about_card, add_options, card_name, run_cases
from model_evaluate import evaluate, largest, shares
from model_systems import ASPIRIN, ETHANOL, LARGE, SMALL, molecules, solid
from model_train import train

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
    for name, checkpointing in (("largest", False), ("largest/checkpointing", True)):
        add("largest", name, partial(largest, meter, large, checkpointing=checkpointing))
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
    parser.add_argument("--atoms", type=int, nargs="+", default=ATOMS)
    parser.add_argument("--match", default="", metavar="PATTERN", help="only cases with such names")
    add_options(parser, repeats=20, seconds=1.0)
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter(args.device, args.repeats, args.seconds)
    results = ResultFile(args.out / f"model_{card_name(args.device)}.json")
    cases = make_cases(meter, args.cases, list(args.atoms), args.channels)
    cases = {name: case for name, case in cases.items() if re.search(args.match, name)}
    about = partial(about_card, args.device)
    return run_cases(cases, results, meter, line, about, args.minutes)


if __name__ == "__main__":
    sys.exit(main())

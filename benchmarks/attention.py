"""Time, memory and accuracy of the attention, the convolution and the layer on a GPU, beside the
same formulas with edge tensors and PyG's TransformerConv.

Each result is compared with float64 first; a wrong one gets no speed-up and a nonzero exit status.
Every record is written as soon as it is measured, into results/attention_<card>.json, where those
of other cases stay. See NOTES.md.

    python benchmarks/attention.py
    python benchmarks/attention.py --cases op layer --minutes 5
    python benchmarks/attention.py --backend torch --device cpu --atoms 64 --repeats 2 --out DIR
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attention_cases import GROUPS, all_cases
from attention_measure import Meter
from attention_runner import Runner
from common import RESULTS, environment
from tqdm import tqdm

COLUMNS = f"{'case':42}{'atoms':>9}{'edges':>10}{'ours ms':>10}{'± ':>8}{'baseline':>17}{'ms':>9}"
COLUMNS += f"{'ratio':>8}{'MiB':>9}{'its MiB':>9}{'floor':>8}{'TFLOP/s':>8}{'error':>9}"


class ResultFile:
    """The list of records, one for each case; a new one takes the place of the old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        records = json.loads(path.read_text()) if path.exists() else []
        self.records = {record["case"]: record for record in records}

    def add(self, record: dict[str, Any]) -> None:
        self.records[record["case"]] = record
        text = json.dumps(list(self.records.values()), indent=1, allow_nan=False)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(self.path)


def card_name(device: str) -> str:
    """``h100`` from ``NVIDIA H100 80GB HBM3``."""
    if torch.device(device).type != "cuda":
        return "cpu"
    words = torch.cuda.get_device_name(device).lower().split()
    return next(word for word in words if word != "nvidia")


def versions() -> dict[str, str | None]:
    names = ("python", "torch", "torch_geometric", "e2former_pyg")
    here = environment()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {**{name: here[name] for name in names}, "triton": triton, "cuda": torch.version.cuda}


def table_row(record: dict[str, Any]) -> str:
    def cell(name: str, form: str, width: int) -> str:
        value = record[name]
        return f"{'-' if value is None else format(value, form):>{width}}"

    if "error" in record:
        return f"{record['case']:42} failed: {record['error'].splitlines()[0]}"
    row = f"{record['case']:42}{record['atoms']:9}{record['edges']:10}"
    row += cell("ours_ms", ".3f", 10) + cell("spread", ".3f", 8) + cell("baseline", "", 17)
    row += cell("baseline_ms", ".2f", 9) + cell("ratio", ".1f", 8) + cell("peak_mib", ".1f", 9)
    row += cell("baseline_peak_mib", ".0f", 9) + cell("floor_ms", ".3f", 8)
    row += cell("tflops", ".2f", 8) + cell("relative_error", ".1e", 9)
    if record["python_ms"] is not None:
        row += "  Python" + cell("python_ms", ".3f", 7) + cell("baseline_python_ms", ".3f", 7)
    return row if record["right"] else f"{row}  WRONG {record['relative_errors']}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=("triton", "torch"), default="triton")
    parser.add_argument("--atoms", type=int, default=10_240)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="least runs behind a median")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--no-plots", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    deadline = time.perf_counter() + 60 * args.minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    runner = Runner(Meter(args.device, args.repeats, args.seconds), args.backend)
    name = card_name(args.device)
    results = ResultFile(args.out / f"attention_{name}.json")
    machine = environment()
    card = machine["cpu"] if name == "cpu" else torch.cuda.get_device_name(args.device)
    print(f"{card}, copies at {1e-12 * runner.bandwidth:.2f} TB/s")

    cases = [case for case in all_cases(args.atoms, args.channels) if case.group in args.cases]
    if name == "cpu":
        cases = [case for case in cases if case.mode != "graph"]
    failed, skipped = [], []
    print(COLUMNS)
    for case in tqdm(cases, file=sys.stderr, dynamic_ncols=True):
        if time.perf_counter() > deadline:
            skipped.append(case.name)
            continue
        try:
            record = runner(case)
        except Exception as error:
            tqdm.write(traceback.format_exc(), file=sys.stderr)
            record = {"case": case.name, "error": f"{type(error).__name__}: {error}"}
        if not record.get("right", False):
            failed.append(case.name)
        date = environment()["date"]
        results.add({**record, "versions": versions(), "card": card, "date": date})
        tqdm.write(table_row(record), file=sys.stdout)
        runner.meter.release()
    if results.records:
        print(f"records in {results.path}")
        if not args.no_plots:
            plot(results)
    if skipped:
        print(f"out of time, not run: {', '.join(skipped)}")
    if failed:
        print(f"wrong or failed: {', '.join(failed)}")
    return 1 if failed else 0


def plot(results: ResultFile) -> None:
    try:
        from attention_plots import plot_all
    except ModuleNotFoundError as error:
        print(f"no plots without {error.name}; later: attention_plots.py {results.path}")
        return
    for path in plot_all(results.path):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())

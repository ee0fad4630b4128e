"""Our layers and our potential beside those of other libraries, on the same atoms and edges.

Where two libraries compute the same, their results are compared first; a wrong one gets no ratio.
Each record is written as soon as it is measured, into results/peers_<card>.json, where those of
other cases stay. Libraries that fail give a record with an ``error``; so do those that are not
there, unless there is a record from where they were. See NOTES.md.

    python benchmarks/peers.py
    python benchmarks/peers.py --cases potential mace --minutes 3
    python benchmarks/peers.py --device cpu --atoms 64 --channels 16 --repeats 2 --seconds 0 \\
        --out DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attention import ResultFile, card_name, versions
from attention_measure import Meter, Timing
from common import RESULTS, environment
from peers_cases import GROUPS, PACKAGES, Case, all_cases
from peers_contest import Contest, Run
from peers_convolutions import LIBRARIES, convolution_contest
from peers_layers import LAYERS
from peers_models import MODELS
from tqdm import tqdm

CONTESTS = {**MODELS, **LAYERS, **dict.fromkeys(LIBRARIES, convolution_contest)}
WIDTHS = (("peer_ms", ".3f"), ("ours_ms", ".3f"), ("ratio", ".2f"))
WIDTHS += (("peer_peak_mib", ".0f"), ("ours_peak_mib", ".0f"), ("worst_error", ".1e"))
COLUMNS = f"{'case':52}{'edges':>9}" + "".join(f"{name:>14}" for name, _ in WIDTHS)


@cache
def installed(group: str) -> str | None:
    """The names and versions of the distributions that are compared."""
    found = []
    for name in PACKAGES[group]:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found) or None


def measure(meter: Meter, contest: Contest) -> dict[str, Any]:
    """Memory and time of both sides; of one, if the other does not fit into memory."""
    finite: dict[str, bool] = {}
    peaks: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    sides: dict[str, Run | None] = {"peer": contest.peer, "ours": contest.ours}
    for side, run in sides.items():
        if run is None:
            continue
        meter.release()
        try:
            results, peaks[side] = meter.peak(run)
        except torch.OutOfMemoryError:
            continue
        finite[side] = all(bool(value.isfinite().all()) for value in results.values())
        runs[side] = run
        del results
    if peaks.get("ours") is not None:
        peaks["ours"] += contest.ours_kept_mib
    lacking = [side for side, run in sides.items() if run is not None and side not in runs]
    if not runs:
        raise torch.OutOfMemoryError(f"{' and '.join(lacking)} out of memory")
    meter.release()
    timings = times(meter, runs)
    worst = max(contest.errors.values(), default=None)
    right = "ours" in runs and all(finite.values()) and (worst is None or worst <= contest.bar)
    record: dict[str, Any] = {"edges": contest.edges, **contest.about, "right": right}
    for side in sides:
        timing = timings.get(side)
        record[f"{side}_ms"] = None if timing is None else timing.median
        record[f"{side}_spread"] = None if timing is None else timing.spread
        record[f"{side}_runs"] = None if timing is None else timing.runs
        record[f"{side}_peak_mib"] = peaks.get(side)
    record["ratio"] = record["memory_ratio"] = None
    if right and "peer" in timings:
        record["ratio"] = record["peer_ms"] / record["ours_ms"]
        if record["peer_peak_mib"] is not None and record["ours_peak_mib"]:
            record["memory_ratio"] = record["peer_peak_mib"] / record["ours_peak_mib"]
    record["out_of_memory"] = lacking
    record["worst_error"] = _finite(worst)
    record["errors"] = {name: _finite(error) for name, error in contest.errors.items()}
    return record


def _finite(error: float | None) -> float | None:
    """JSON has no infinity."""
    return error if error is not None and math.isfinite(error) else None


def times(meter: Meter, runs: dict[str, Run]) -> dict[str, Timing]:
    """In turns; one after the other where both do not fit into memory together."""
    try:
        return dict(zip(runs, meter.times(list(runs.values())), strict=True))
    except torch.OutOfMemoryError:
        if len(runs) == 1:
            raise
    timings = {}
    for side, run in runs.items():
        meter.release()
        (timings[side],) = meter.times([run])
    return timings


def table_row(record: dict[str, Any]) -> str:
    row = f"{record['case']:52}"
    if "error" in record:
        return f"{row} failed: {(record['error'].splitlines() or ['?'])[0]}"
    row += f"{record['edges']:9}"
    for name, form in WIDTHS:
        value = record[name]
        row += f"{'-' if value is None else format(value, form):>14}"
    return row if record["right"] else f"{row}  WRONG {record['errors']}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--atoms", type=int, default=10_240)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="+", help="only cases with so many atoms")
    parser.add_argument("--repeats", type=int, default=10, help="least runs behind a median")
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each measurement")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--no-plots", action="store_true")
    return parser.parse_args(arguments)


def run_case(meter: Meter, case: Case) -> dict[str, Any]:
    """The record of a case."""
    record: dict[str, Any] = {
        "case": case.name,
        "peer": None if case.group == "potential" else case.group,
        "version": installed(case.group),
        "part": case.part,
        "pass": case.which,
        "atoms": case.atoms,
        "channels": case.channels,
    }
    start = time.perf_counter()
    try:
        record |= measure(meter, CONTESTS[case.group](case, meter))
    except Exception as error:
        tqdm.write(traceback.format_exc(), file=sys.stderr)
        record["error"] = f"{type(error).__name__}: {error}"
        record["missing"] = isinstance(error, ImportError)
    record["seconds"] = time.perf_counter() - start  # with imports, compilers and warm-up
    return record


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    deadline = time.perf_counter() + 60 * args.minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter(args.device, args.repeats, args.seconds)
    name = card_name(args.device)
    results = ResultFile(args.out / f"peers_{name}.json")
    cases = [case for case in all_cases(args.atoms, args.channels) if case.group in args.cases]
    if args.sizes:
        cases = [case for case in cases if case.atoms in args.sizes]
    failed, skipped = [], []
    print(COLUMNS)
    for case in tqdm(cases, file=sys.stderr, dynamic_ncols=True):
        if time.perf_counter() > deadline:
            skipped.append(case.name)
            continue
        record = run_case(meter, case)
        if not record.get("right", False):
            failed.append(case.name)
        here = {**versions(), **{key: environment()[key] for key in ("date", "cpu", "gpu")}}
        if not (record.pop("missing", False) and case.name in results.records):
            results.add({**record, "environment": here})
        tqdm.write(table_row(record), file=sys.stdout)
        meter.release()  # after the record of a failure, whose frames held tensors
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
        from peers_plots import plot_all
    except ModuleNotFoundError as error:
        print(f"no plots without {error.name}; later: peers_plots.py {results.path}")
        return
    for path in plot_all(results.path):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())

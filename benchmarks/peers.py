"""Our layers and our potential beside those of other libraries, on the same atoms and edges.

Where two libraries compute the same, their results are compared first; a wrong one gets no ratio.
Each record is written as soon as it is measured, into results/peers_<card>.json, where those of
other cases stay. Libraries that fail give a record with an ``error``; so do those that are not
there, unless there is a record from where they were. See NOTES.md.

    python benchmarks/peers.py
    python benchmarks/peers.py --cases potential mace --minutes 3
    python benchmarks/peers.py --series training degree lmax
    python benchmarks/peers.py --device cpu --atoms 64 --channels 16 --repeats 2 --seconds 0 \\
        --out DIR
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attention_measure import Meter, Timing
from case_loop import (
    ResultFile,
    add_options,
    attempted,
    card_name,
    plot,
    run_cases,
    versions,
)
from common import environment
from peers_cases import GROUPS, PACKAGES, SERIES, TRAINED, TRAINING, Case, all_cases
from peers_contest import Contest, Run
from peers_convolutions import LIBRARIES, convolution_contest
from peers_evaluation import evaluation_contest
from peers_layers import LAYERS
from peers_training import training_contest

CONTESTS = {
    **dict.fromkeys(TRAINED, evaluation_contest),
    **LAYERS,
    **dict.fromkeys(LIBRARIES, convolution_contest),
}
TIME_STEP = 1.0  # fs, of the simulation whose speed the evaluations alone would allow
FS_PER_NS, MS_PER_DAY = 1e6, 86_400_000
WIDTHS = (("peer_ms", ".3f"), ("ours_ms", ".3f"), ("ratio", ".2f"))
WIDTHS += (("peer_peak_mib", ".0f"), ("ours_peak_mib", ".0f"), ("worst_error", ".1e"))
COLUMNS = f"{'case':60}{'edges':>9}" + "".join(f"{name:>14}" for name, _ in WIDTHS)


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
    row = f"{record['case']:60}"
    if "error" in record:
        return f"{row} failed: {(record['error'].splitlines() or ['?'])[0]}"
    row += f"{record['edges']:9}"
    for name, form in WIDTHS:
        value = record[name]
        row += f"{'-' if value is None else format(value, form):>14}"
    return row if record["right"] else f"{row}  WRONG {record['errors']}"


def rates(record: dict[str, Any]) -> dict[str, Any]:
    """What the times of whole models come to: simulated time in a day, or steps in a second."""
    found: dict[str, Any] = {}
    for side in ("peer", "ours"):
        ms = record[f"{side}_ms"]
        if record["pass"] == TRAINING:
            found[f"{side}_steps_per_s"] = None if ms is None else 1e3 / ms
        elif record["pass"].endswith("energy+forces"):
            nanoseconds = TIME_STEP / FS_PER_NS
            found["time_step_fs"] = TIME_STEP
            found[f"{side}_ns_per_day"] = None if ms is None else nanoseconds * MS_PER_DAY / ms
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=SERIES, metavar="SERIES")
    parser.add_argument("--atoms", type=int, default=10_240)
    parser.add_argument("--sizes", type=int, nargs="+", help="only cases with so many atoms")
    parser.add_argument("--match", metavar="PATTERN", help="only cases with such names")
    parser.add_argument("--limit", type=float, help="each case in a process of so many seconds")
    parser.add_argument("--no-plots", action="store_true")
    add_options(parser, repeats=10, seconds=0.5)
    return parser.parse_args(arguments)


def about_case(case: Case) -> dict[str, Any]:
    return {
        "peer": None if case.group == "potential" else case.group,
        "version": installed(case.group),
        "part": case.part,
        "pass": case.which,
        "series": case.series,
        "atoms": case.atoms,
        "channels": case.channels,
        "cutoff": case.cutoff,
        "lmax": case.lmax,
    }


def run_case(meter: Meter, case: Case) -> dict[str, Any]:
    """The record of a case."""
    record = about_case(case)
    start = time.perf_counter()
    contest = training_contest if case.which == TRAINING else CONTESTS[case.group]
    record |= attempted(lambda: measure(meter, contest(case, meter)))
    if "error" not in record:
        record |= rates(record)
    record["seconds"] = time.perf_counter() - start  # with imports, compilers and warm-up
    return record


def run_apart(args: argparse.Namespace, case: Case) -> dict[str, Any]:
    """The record of a case from a process of its own, which is ended when its time is over: no
    compiler of a library can be stopped otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {key: getattr(args, key) for key in ("device", "atoms", "channels", "repeats")}
        options |= {"seconds": args.seconds, "match": f"^{re.escape(case.name)}$", "out": folder}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, __file__, *words, "--no-plots"]
        try:
            subprocess.run(command, timeout=args.limit, stdout=subprocess.DEVNULL, check=False)
        except subprocess.TimeoutExpired:
            return about_case(case) | {"error": f"TimeoutError: not done after {args.limit:g} s"}
        return ResultFile(Path(folder) / f"peers_{card_name(args.device)}.json").records[case.name]


def about_run() -> dict[str, Any]:
    here = environment()
    return {"environment": {**versions(), **{key: here[key] for key in ("date", "cpu", "gpu")}}}


def chosen(args: argparse.Namespace) -> list[Case]:
    cases = all_cases(args.atoms, args.channels)
    cases = (case for case in cases if case.group in args.cases and case.series in args.series)
    cases = (case for case in cases if not args.sizes or case.atoms in args.sizes)
    return [case for case in cases if re.search(args.match or "", case.name)]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter(args.device, args.repeats, args.seconds)
    results = ResultFile(args.out / f"peers_{card_name(args.device)}.json")
    run = partial(run_case, meter) if args.limit is None else partial(run_apart, args)
    runs = {case.name: partial(run, case) for case in chosen(args)}
    print(COLUMNS)
    status = run_cases(runs, results, meter, table_row, about_run, args.minutes)
    if not args.no_plots:
        plot("peers_plots", results)
    return status


if __name__ == "__main__":
    sys.exit(main())

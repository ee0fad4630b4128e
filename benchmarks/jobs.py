"""Training runs as processes, some at a time, each with its state, log and record in files.

A script that uses them has the arguments below. It calls itself with ``--single`` for each run,
which keeps its state in ``<directory>/<label>.pt`` and, when it is done, writes ``<label>.json``.
Runs that were interrupted or paused go on with the next call, finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import RESULTS, environment
from tqdm import tqdm

RUNS = Path(__file__).resolve().parent.parent / "runs"


def add_arguments(
    parser: argparse.ArgumentParser, name: str, *, minutes: float, threads: int
) -> None:
    """Adds the arguments of runs; ``name`` is that of their folder."""
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of a run")
    parser.add_argument("--pause-after", type=float, default=float("inf"), help="minutes")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--directory", type=Path, default=RUNS / name)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)


def write_record(label: str, record: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Keeps the record of a finished run, with where and beside how many others it ran."""
    conditions = {"threads": args.threads, "jobs": args.jobs, "environment": environment()}
    text = json.dumps({**record, **conditions}, indent=1)
    (args.directory / f"{label}.json").write_text(text)


def run_jobs(
    script: str, given: Sequence[str], runs: Mapping[str, Sequence[str]], args: argparse.Namespace
) -> tuple[list[dict[str, Any]], int]:
    """Runs what has no record yet.

    Args:
        script: The script that is called.
        given: The arguments of this call, which all runs get.
        runs: The label of each run and the arguments that choose it.
        args: ``given``, parsed.

    Returns:
        All records in the folder, of other calls as well, and the exit status.
    """
    args.directory.mkdir(parents=True, exist_ok=True)

    def launch(label: str) -> int:
        if (args.directory / f"{label}.json").exists():
            return 0
        command = [sys.executable, str(Path(script).resolve()), *given, *runs[label], "--single"]
        with (args.directory / f"{label}.log").open("a") as log:
            return subprocess.run(command, stdout=log, stderr=log, check=False).returncode

    with ThreadPoolExecutor(args.jobs) as pool:
        codes = list(tqdm(pool.map(launch, runs), total=len(runs), unit="run", dynamic_ncols=True))
    failed = [label for label, code in zip(runs, codes, strict=True) if code != 0]
    if failed:
        print(f"failed, see their logs in {args.directory}: {', '.join(failed)}")
    records = [json.loads(path.read_text()) for path in sorted(args.directory.glob("*.json"))]
    return records, 1 if failed else 0

"""Runs the cases of a benchmark one after the other and keeps their records."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attention_measure import Meter
from common import RESULTS, environment
from tqdm import tqdm

Record = dict[str, Any]


class ResultFile:
    """The list of records, one for each case; a new one takes the place of the old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        records = json.loads(path.read_text()) if path.exists() else []
        self.records = {record["case"]: record for record in records}

    def add(self, record: Record) -> None:
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


def full_name(device: str) -> str:
    """Of the card, or of the processor."""
    return (
        environment()["cpu"] if card_name(device) == "cpu" else torch.cuda.get_device_name(device)
    )


def versions() -> dict[str, str | None]:
    names = ("python", "torch", "torch_geometric", "e2former_pyg")
    here = environment()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {**{name: here[name] for name in names}, "triton": triton, "cuda": torch.version.cuda}


def add_options(parser: argparse.ArgumentParser, *, repeats: int, seconds: float) -> None:
    """What all of these benchmarks can be told."""
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=repeats, help="least runs behind a median")
    parser.add_argument("--seconds", type=float, default=seconds, help="time of each measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")


def attempted(run: Callable[[], Record]) -> Record:
    """The record of a run, or what it failed with."""
    try:
        return run()
    except Exception as error:
        tqdm.write(traceback.format_exc(), file=sys.stderr)
        text = f"{type(error).__name__}: {error}"
        return {"error": text, "missing": isinstance(error, ImportError)}


def run_cases(
    cases: Mapping[str, Callable[[], Record]],
    results: ResultFile,
    meter: Meter,
    row: Callable[[Record], str],
    about_run: Callable[[], Record],
    minutes: float,
) -> int:
    """Each record is written as soon as it is there, and its row of the table printed.

    What is not installed takes the place of no earlier measurement.

    Args:
        cases (dict): What is run, by the names of the records.
        results (ResultFile): Where records are kept.
        meter (Meter): Gives memory back after each case.
        row (callable): A record as a row of a table.
        about_run (callable): What each record says of the machine and its software.
        minutes (float): No case begins after this time.

    Returns:
        int: The exit status, 1 if a case failed or is wrong.
    """
    deadline = time.perf_counter() + 60 * minutes
    failed, skipped = [], []
    for name, run in tqdm(cases.items(), file=sys.stderr, dynamic_ncols=True):
        if time.perf_counter() > deadline:
            skipped.append(name)
            continue
        record = {"case": name, **attempted(run)}
        if not record.get("right", False):
            failed.append(name)
        if not (record.pop("missing", False) and name in results.records):
            results.add({**record, **about_run()})
        tqdm.write(row(record), file=sys.stdout)
        meter.release()  # after the record of a failure, whose frames held tensors
    if results.records:
        print(f"records in {results.path}")
    for what, names in (("out of time, not run", skipped), ("wrong or failed", failed)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if failed else 0


def about_card(device: str) -> Record:
    return {"versions": versions(), "card": full_name(device), "date": environment()["date"]}


def plot(module: str, results: ResultFile) -> None:
    """Draws all plots of a module for which there are records."""
    if not results.records:
        return
    try:
        plots = importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"no plots without {error.name}; later: {module}.py {results.path}")
        return
    for path in plots.plot_all(results.path):
        print(f"wrote {path}")

r"""What all benchmarks share: timing, the description of the machine, and the
format of the results."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

import e2former_pyg

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    r"""Seconds that some runs took."""

    median: float
    spread: float  # between the quartiles
    fastest: float  # what other processes on the machine disturb least
    runs: int


def median_time(
    fn: Callable[[], Any],
    *,
    warmup: int = 1,
    min_runs: int = 3,
    max_runs: int = 50,
    max_seconds: float = 5.0,
    device: torch.device | str = "cpu",
) -> Timing:
    r"""Times a function that takes no arguments.

    Args:
        fn (callable): The function.
        warmup (int): Runs before the first one that counts.
        min_runs (int): The least number of runs, at least 2.
        max_runs (int): The largest number of runs.
        max_seconds (float): No further run is started after this time.
        device (torch.device or str): The device that has to be waited for.
    """
    is_cuda = torch.device(device).type == "cuda"

    def run() -> float:
        start = time.perf_counter()
        fn()
        if is_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(warmup):
        run()
    seconds: list[float] = []
    deadline = time.perf_counter() + max_seconds
    while len(seconds) < min_runs or (len(seconds) < max_runs and time.perf_counter() < deadline):
        seconds.append(run())
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median=median, spread=high - low, fastest=min(seconds), runs=len(seconds))


def environment() -> dict[str, Any]:
    r"""Describes the machine and the versions of what is measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": _version("torch-geometric"),
        "e2former_pyg": e2former_pyg.__version__,
    }


def write_result(
    name: str, records: Sequence[dict[str, Any]], folder: Path | None = None, *, add: bool = False
) -> Path:
    r"""Writes :obj:`results/<name>.json`, a list of records, and returns its path.

    Args:
        name (str): The name of the file, without its ending.
        records (list of dict): The numbers, as JSON takes them. Records without an
            :obj:`environment` get the present one.
        folder (Path, optional): Where to write instead.
        add (bool): Whether the file keeps its records of other cases.
    """
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    here = environment()
    complete = [{**record, "environment": record.get("environment", here)} for record in records]
    if add and path.exists():
        present = {record["case"] for record in complete}
        old = json.loads(path.read_text())
        complete = [record for record in old if record["case"] not in present] + complete
    path.write_text(json.dumps(complete, indent=1, allow_nan=False) + "\n")
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # Run from a plain checkout.


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

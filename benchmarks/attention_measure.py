"""Time and memory on a GPU, or on a CPU for dry runs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

MIB = 2**20
Run = Callable[[], Any]
T = TypeVar("T")


class Timing(NamedTuple):
    """Milliseconds."""

    median: float
    spread: float  # between the quartiles
    runs: int


class Meter:
    """Measures on one device.

    Args:
        device (str): The device.
        repeats (int): The least number of runs behind a median.
        seconds (float): The time in which more of them are made, if it suffices.
    """

    def __init__(self, device: str, repeats: int = 20, seconds: float = 2.0) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.repeats = repeats
        self.seconds = seconds

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def times(self, runs: Sequence[Run], wait: bool = False) -> list[Timing]:
        """Times functions that take turns, so that a change of clocks meets all of them.

        Args:
            runs (sequence): The functions.
            wait (bool): Whether each run begins when the device is idle, so that the time of
                launches counts as it does where nothing runs ahead.
        """
        for run in runs:
            run()
        self.synchronize()
        start = time.perf_counter()
        for run in runs:
            run()
        self.synchronize()
        estimate = time.perf_counter() - start
        repeats = max(self.repeats, min(10 * self.repeats, int(self.seconds / max(estimate, 1e-6))))
        measure = self._cuda_times if self.is_cuda else self._cpu_times
        samples = measure(runs, repeats, wait)
        timings = []
        for column in zip(*samples, strict=True):
            low, median, high = statistics.quantiles(column, n=4, method="inclusive")
            timings.append(Timing(median, high - low, repeats))
        return timings

    def _cuda_times(self, runs: Sequence[Run], repeats: int, wait: bool) -> list[list[float]]:
        events = []
        for _ in range(repeats):
            row = []
            for run in runs:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                if wait:
                    self.synchronize()
                begin.record()
                run()
                end.record()
                row.append((begin, end))
            events.append(row)
        self.synchronize()
        return [[begin.elapsed_time(end) for begin, end in row] for row in events]

    def _cpu_times(self, runs: Sequence[Run], repeats: int, wait: bool) -> list[list[float]]:
        samples = []
        for _ in range(repeats):
            row = []
            for run in runs:
                start = time.perf_counter()
                run()
                row.append(1e3 * (time.perf_counter() - start))
            samples.append(row)
        return samples

    def host_time(self, run: Run) -> float:
        """Milliseconds until the call returns, with the device idle before: Python's share."""
        samples = []
        for _ in range(self.repeats + 2):
            self.synchronize()
            start = time.perf_counter()
            run()
            samples.append(1e3 * (time.perf_counter() - start))
        self.synchronize()
        return statistics.median(samples[2:])

    def peak(self, run: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], float | None]:
        """What a run returns, and MiB at its peak beyond that and what was held before.

        What the first call leaves in caches (the transposed edges, tables) counts as held.
        """
        run()
        if not self.is_cuda:
            return run(), None
        self.release()
        held = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        results = run()
        self.synchronize()
        storages = [value.untyped_storage() for value in results.values()]
        returned = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
        peak = torch.cuda.max_memory_allocated(self.device) - held - returned
        return results, peak / MIB

    def bandwidth(self) -> float:
        """Bytes per second of a copy, those read and those written."""
        size = 2**30 if self.is_cuda else 2**26
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        (timing,) = self.times([lambda: target.copy_(source)])
        return 2 * size / (1e-3 * timing.median)

    def captured(self, run: Callable[[], T]) -> tuple[Run, T]:
        """A CUDA graph of a run, as a function, and what it writes."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        return graph.replay, out

    def release(self) -> None:
        """Gives unused memory back."""
        gc.collect()
        self.synchronize()
        if self.is_cuda:
            torch.cuda.empty_cache()

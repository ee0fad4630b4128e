"""Capturing CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# The first run compiles kernels and fills caches, which a capture must not do.
_WARMUP_RUNS = 2


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collects before instead: a CUDA graph that is destroyed while another one is captured
    invalidates that capture.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Captured(Generic[T]):
    """A function without arguments as a CUDA graph. Each call replays it and returns the same
    tensors with new content.
    """

    def __init__(self, run: Callable[[], T], device: torch.device) -> None:
        # What it refers to is what the graph reads, and must live as long.
        self._run = run
        with torch.cuda.device(device):
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARMUP_RUNS):
                    run()
            current.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads, such as the one of a DataLoader that pins memory, may use the GPU.
            capture = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
            with _without_garbage_collection(), capture:
                self._out = run()

    def __call__(self) -> T:
        self._graph.replay()
        return self._out

"""What else goes on in a process must not disturb a capture."""

import gc
import threading

import pytest
import torch

from e2former_pyg.cuda_graphs import Captured


@pytest.mark.cuda
def test_graphs_are_not_destroyed_meanwhile():
    """The garbage collector may find one at any time."""
    x = torch.randn(64, 64, device="cuda")

    class Holder:
        def __init__(self) -> None:
            self.me, self.captured = self, Captured(lambda: x @ x, x.device)

    def run():
        junk.extend([] for _ in range(10_000))  # enough for it to run
        return x @ x

    junk = []
    gc.collect()
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        Holder()
        gc.set_threshold(100, 1, 1)
        gc.enable()
        captured = Captured(run, x.device)
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    torch.testing.assert_close(captured(), x @ x)


@pytest.mark.cuda
def test_other_threads_may_use_the_gpu():
    x = torch.randn(64, 64, device="cuda")
    done, meanwhile = threading.Event(), threading.Event()

    def pin():
        size = 1 << 16
        while not done.is_set():
            size += 1 << 12  # none that is cached
            torch.empty(size, pin_memory=True).to(x.device, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            meanwhile.set()

    def run():
        meanwhile.clear()
        assert meanwhile.wait(10)
        return x @ x

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        captured = Captured(run, x.device)
    finally:
        done.set()
        thread.join()
    torch.testing.assert_close(captured(), x @ x)

"""Puts the scripts of examples/ on the path, which import each other by their plain names."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))


@pytest.fixture
def step_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for the training loop by which every step takes a second, however busy the machine:
    ``--seconds`` is then a number of steps.
    """
    import training

    ticks = itertools.count()
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))

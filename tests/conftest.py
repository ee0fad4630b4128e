"""Settings of the whole suite: without a GPU its tests are skipped and kernels are interpreted;
workers use one thread.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():
    # Before any test module imports Triton, which reads it once.
    os.environ.setdefault("TRITON_INTERPRET", "1")


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

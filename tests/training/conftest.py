"""Puts the module of small runs on the path, which is a script as well: some runs need processes
of their own.
"""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def quiet():
    """Lightning comments on small runs."""
    with warnings.catch_warnings():
        for package in ("lightning", "torch", "torchmetrics"):
            warnings.filterwarnings("ignore", module=package)
        yield

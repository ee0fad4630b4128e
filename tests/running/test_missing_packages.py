"""Interfaces say what to install where their program is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module, missing", [("ase", "ase"), ("torchsim", "torch_sim")])
def test_what_to_install_is_said(module, missing) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try:\n    import e2former_pyg.{module}\nexcept ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert f"pip install 'e2former-pyg[{module}]'" in done.stdout, done.stdout + done.stderr

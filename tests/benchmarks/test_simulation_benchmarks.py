"""The benchmarks of simulations, in tiny settings."""

import json
import sys
from pathlib import Path

import alloy
import nve
import pytest
import torch
from ase.calculators.emt import EMT
from ase.io import read

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from ethanol_settings import MODEL

from e2former_pyg import E2FormerPotential


def test_lattice_constants_of_emt() -> None:
    assert alloy.lattice_constant("Cu", EMT()) == pytest.approx(3.590, abs=2e-3)
    assert alloy.lattice_constant("Au", EMT()) == pytest.approx(4.056, abs=2e-3)


@pytest.mark.slow
def test_alloy_pauses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alloy.main(["--seconds=2", f"--directory={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert "call again to go on" in capsys.readouterr().out
    assert (tmp_path / "training.pt").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nve_pauses_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    potential = E2FormerPotential(**MODEL, repulsion=True)
    potential.references.scale.fill_(0.1)
    potential.save(tmp_path / "potential.safetensors")
    options = [
        f"--checkpoint={tmp_path / 'potential.safetensors'}",
        "--ps=0.02",
        "--ps-double=0.008",
        "--heating-ps=0.005",
        f"--directory={tmp_path}",
        f"--out={tmp_path / 'out'}",
    ]
    nve.main([*options, "--seconds=0.1"])
    assert "call again to go on" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    nve.main(options)
    *runs, order = json.loads((tmp_path / "out" / "nve_ethanol.json").read_text())
    assert [run["case"] for run in runs] == [
        "ethanol/float32/0.5 fs",
        "ethanol/float64/0.25 fs",
        "ethanol/float64/0.5 fs",
        "ethanol/float64/1.0 fs",
    ]
    for run in runs:
        frames = read(tmp_path / f"{run['name']}.traj", ":")
        assert len(frames) == run["steps"] // run["every"] + 1
        assert run["ps"] == pytest.approx(run["steps"] * run["time_step_fs"] / 1000)
        assert run["ms_per_step"] > 0 and run["outside_of_model_percent"] > 0
        assert len(run["block_means"]) == min(nve.BLOCKS, len(frames))
        assert run["fluctuation"] < 5.0
    assert order["ratio_1_to_0.5_fs"] == pytest.approx(
        runs[3]["early_fluctuation"] / runs[2]["early_fluctuation"]
    )
    assert (tmp_path / "out" / "nve_ethanol.png").exists()

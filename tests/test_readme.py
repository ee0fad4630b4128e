"""Every Python example of the README runs as pasted and prints what its comments say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_examples_are_found() -> None:
    assert len(BLOCKS) == 2
    assert "E2FormerAttention(" in BLOCKS[0]
    assert "E2FormerPotential(" in BLOCKS[1]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"E2Former\w+", block)[0])
def test_example_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = re.findall(r"^print\(.*\)  # (.+)$", block, re.M)
    assert expected
    exec(compile(block, str(README), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    "case", ["e2former/random", "e2former/time", "schnet/random", "schnet/time"]
)
def test_accuracy_is_that_of_the_result_file(case: str) -> None:
    records = json.loads((ROOT / "benchmarks/results/ethanol_cpu.json").read_text())
    runs = [record for record in records if record["case"] == case]
    energy = sum(run["test"]["energy_mae_mev"] for run in runs) / len(runs)
    forces = sum(run["test"]["force_mae_mev_per_angstrom"] for run in runs) / len(runs)
    split = {"random": "at random", "time": "in time blocks"}[case.split("/")[1]]
    assert f"| {split} | {energy:.2f} | {forces:.1f} |" in README.read_text(encoding="utf-8")

"""Every Python example of the README runs as pasted and prints what its comments say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_examples_are_found() -> None:
    assert len(BLOCKS) == 3
    assert "E2FormerAttention(" in BLOCKS[0]
    assert "E2FormerPotential(" in BLOCKS[1]
    assert "E2FormerCalculator(" in BLOCKS[2]


@pytest.mark.parametrize("block", BLOCKS, ids=["layer", "potential", "simulation"])
def test_example_runs(
    block: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
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


@pytest.mark.parametrize(
    "name, case",
    [
        ("attention", "op/forward/float32"),
        ("attention with backward", "op/forward+backward/float32"),
        ("attention, second order", "op/second-order/float32"),
        ("attention, bfloat16 features", "op/forward/bfloat16"),
        ("convolution, order 1", "conv/forward/float32"),
        ("convolution with backward", "conv/forward+backward/float32"),
        ("attention layer", "layer/forward/float32/edge-tensors"),
        ("attention layer with backward", "layer/forward+backward/float32/edge-tensors"),
    ],
)
def test_times_are_those_of_the_result_file(name: str, case: str) -> None:
    records = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    run = next(record for record in records if record["case"] == case)
    assert run["right"]
    numbers = f"{run['ours_ms']:.2f} | {run['baseline_ms']:.1f} | {run['ratio']:.0f}"
    memory = f"{run['peak_mib']:.0f} | {run['baseline_peak_mib']:.0f}"
    assert f"| {name} | {numbers} | {memory} |" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_layer_beside_transformer_conv(which: str) -> None:
    records = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    run = next(record for record in records if record["case"] == f"layer/{which}/float32")
    text = " ".join(README.read_text(encoding="utf-8").split())
    ours, theirs = f"{run['ours_ms']:.1f}", f"{run['baseline_ms']:.1f}"
    expected = {
        "forward": f"takes {ours} ms, PyG's TransformerConv",
        "forward+backward": f"with backward {ours} and {theirs} ms",
    }
    assert expected[which] in text

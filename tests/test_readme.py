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
    if "from ase" in block:
        pytest.importorskip("ase")
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


def test_numbers_in_the_text() -> None:
    records = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    runs = {record["case"]: record for record in records}
    text = " ".join(README.read_text(encoding="utf-8").split())
    op = runs["op/forward/float32"]
    assert f"{op['atoms']:,} atoms, {op['edges']:,} edges, {op['channels']} channels" in text
    large = runs["atoms/forward+backward/102400"]
    assert f"{large['atoms']:,} atoms take {large['ours_ms']:.0f} ms with backward" in text
    layer = runs["atoms/layer/forward/1024000"]
    size = f"{layer['ours_ms']:.0f} ms and {layer['peak_mib'] / 1024:.0f} GiB"
    assert f"a layer's forward pass on {layer['atoms']:,} atoms {size}" in text


def test_training_runs_in_the_text() -> None:
    runs = json.loads((ROOT / "benchmarks/results/ethanol_cpu.json").read_text())
    text = " ".join(README.read_text(encoding="utf-8").split())
    minutes = round(runs[0]["training_minutes"])
    for run in runs:
        assert run["clock"] == "cpu" and run["threads"] == 1
        assert abs(run["training_minutes"] - minutes) < 0.1
        assert f"({run['parameters']:,} parameters)" in text
        assert f"on {run['training_frames']} frames for {minutes} minutes of one core" in text


def test_memory_does_not_grow_with_neighbours() -> None:
    records = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    for which in ("forward", "forward+backward", "second-order"):
        sweep = [r for r in records if r["group"] == "degree" and r["pass"] == which]
        peaks = [record["peak_mib"] for record in sweep]
        assert len(sweep) >= 5
        assert max(peaks) < 1.05 * min(peaks)


def test_speedups_in_the_changelog() -> None:
    records = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    ratio = {record["case"]: record["ratio"] for record in records}
    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    forward, backward, second = (
        f"{ratio[f'op/{which}/float32']:.0f}"
        for which in ("forward", "forward+backward", "second-order")
    )
    assert f"attention is {forward} times as fast as with edge tensors" in text
    assert f"{backward} times with backward and {second} times in second order" in text
    conv = [f"{ratio[f'conv/{which}/float32']:.0f}" for which in ("forward", "forward+backward")]
    assert f"the convolution {conv[0]} and {conv[1]} times" in text
    layer = [f"{ratio[f'layer/{which}/float32']:.1f}" for which in ("forward", "forward+backward")]
    assert f"{layer[0]} times as fast as TransformerConv, {layer[1]} times with backward" in text


def test_times_of_models_in_the_changelog() -> None:
    runs = {
        run["case"]: run
        for run in json.loads((ROOT / "benchmarks/results/model_h200.json").read_text())
    }
    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    sizes = (100, 1024, 10240, 102400)
    times = [float(f"{runs[f'evaluate/{size}']['ours_ms']:.2g}") for size in sizes]
    first, rest = [f"{time:g}" for time in times], [f"{size:,}" for size in sizes]
    found = (
        f"{', '.join(first[:3])} and {first[3]} ms for {', '.join(rest[:3])} and {rest[3]} atoms"
    )
    assert found in text
    step = runs["train/20 ethanol"]
    ours, eager = f"{step['ours_ms']:.1f}", f"{step['eager_ms']:.0f}"
    assert f"20 ethanol molecules takes {ours} ms on an H200, with autograd {eager} ms" in text


def test_dynamics_and_mace_in_the_readme() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    results = ROOT / "benchmarks/results"
    steps = {run["case"]: run for run in json.loads((results / "md_speed_h200.json").read_text())}
    ase, torchsim = steps["ase/10240"], steps["torchsim/10240"]
    times = f"takes {ase['step_ms']:.0f} ms with ASE and {torchsim['step_ms']:.0f} ms with TorchSim"
    launched = f"factors of {ase['ratio']:.1f} and {torchsim['ratio']:.1f} as Python launches them"
    peers = json.loads((results / "peers_h200.json").read_text())
    (mace,) = (r["peer_ms"] for r in peers if r["case"] == "mace/model/energy+forces/10240")
    hidden = f"{mace / ase['step_ms']:.1f} and {mace / torchsim['step_ms']:.1f}"
    assert times in text and f"{launched} and of {hidden} with most of the launches hidden" in text
    models = {r["case"]: r for r in json.loads((results / "model_h200.json").read_text())}
    large = models["largest/checkpointing"]
    size = f"{large['ours_ms'] / 1e3:.1f} s and {large['peak_mib'] / 1024:.0f} GiB"
    assert f"{size} ({large['atoms']:,}, with" in text


def test_ratios_to_other_libraries_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def ratios(card: str, *cases: str) -> str:
        records = json.loads((ROOT / f"benchmarks/results/peers_{card}.json").read_text())
        found = {run["case"]: run["peer_ms"] / run["ours_ms"] for run in records if run["peer"]}
        return ", ".join(
            f"{found[case]:.1f}" if found[case] < 9.5 else f"{found[case]:.0f}" for case in cases
        )

    def models(peer: str, *sizes: int) -> list[str]:
        return [f"{peer}/model/energy+forces/{size}" for size in sizes]

    def layer(name: str) -> list[str]:
        return [f"{name}/{which}/10240" for which in ("forward", "forward+backward")]

    for row, found in (
        ("energy and forces: NequIP, 4 layers as ours", ratios("h100", *models("nequip", 10240))),
        ("energy and forces: ViSNet, 4 layers", ratios("h100", *models("visnet", 10240))),
        ("energy and forces: MACE, 2 layers, vectors", ratios("h100", *models("mace", 10240))),
        ("the same, 1,024 and 102,400 atoms", ratios("h100", *models("mace", 1024, 102400))),
        (
            "the same on an H200, 1,024, 10,240 and 102,400 atoms",
            ratios("h200", *models("mace", 1024, 10240, 102400)),
        ),
        ("layer: block of eSCN-MD, forward, with backward", ratios("h100", *layer("escn/block"))),
        (
            "layer: attention of EquiformerV2, forward, with backward",
            ratios("h100", *layer("equiformer/attention")),
        ),
    ):
        assert f"| {row} | {found} |\n" in text

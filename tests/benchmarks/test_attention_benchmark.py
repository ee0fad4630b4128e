"""The attention benchmark runs, and gives a wrong result no speed."""

import json
from pathlib import Path

import attention
import attention_problems
import pytest
import torch
from attention_cases import all_cases
from attention_measure import Meter
from attention_runner import Runner

FIELDS = {"case", "atoms", "edges", "ours_ms", "baseline", "baseline_ms", "ratio", "peak_mib"}
FIELDS |= {"floor_ms", "relative_error", "versions", "card", "date", "spread", "tflops"}
SMALL = ["--device", "cpu", "--backend", "torch", "--channels", "16", "--repeats", "2"]
SMALL += ["--seconds", "0"]


def run(out: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    status = attention.main([*SMALL, "--out", str(out), *arguments])
    records = json.loads((out / "attention_cpu.json").read_text())
    return status, {record["case"]: record for record in records}


def test_dry_run(tmp_path: Path) -> None:
    status, records = run(tmp_path, "--atoms", "16", "--cases", "op", "layer", "conv", "degree")
    assert status == 0
    named = {f"op/{which}/float32" for which in ("forward", "forward+backward", "second-order")}
    named |= {"op/forward/bfloat16", "layer/forward/float32", "layer/forward+backward/float32"}
    assert named <= records.keys()
    for record in records.values():
        assert record.keys() >= FIELDS
        assert record["ratio"] == pytest.approx(record["baseline_ms"] / record["ours_ms"])
        assert record["right"] and 0 < record["relative_error"] < 1e-2
        assert record["floor_ms"] > 0
    assert records["layer/forward/float32"]["baseline"] == "TransformerConv"
    assert (tmp_path / "attention_cpu_degree.png").stat().st_size > 1000

    _, more = run(tmp_path, "--atoms", "16", "--cases", "small", "--no-plots")
    assert more.keys() > records.keys()  # earlier records stay


@pytest.mark.parametrize("factor", [1 + 1e-5, float("nan")])
def test_a_wrong_result_has_no_speed(tmp_path: Path, monkeypatch, capsys, factor) -> None:
    right = attention_problems.equivariant_convolution

    def wrong(*args, backend, **kwargs):
        out = right(*args, backend=backend, **kwargs)
        return out * factor if out.dtype == torch.float32 else out

    monkeypatch.setattr(attention_problems, "equivariant_convolution", wrong)
    status, records = run(tmp_path, "--atoms", "12", "--cases", "conv")
    assert status == 1
    record = records["conv/forward/float32"]
    assert record["ratio"] is None and record["tflops"] is None and not record["right"]
    assert record["baseline_ms"] > 0
    assert "wrong or failed: conv/forward/float32" in capsys.readouterr().out


def test_a_failure_is_recorded(tmp_path: Path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(attention_problems, "equivariant_convolution", fail)
    status, records = run(tmp_path, "--atoms", "12", "--cases", "conv")
    assert status == 1
    assert records["conv/forward/float32"]["error"] == "RuntimeError: no kernel"


def test_no_case_begins_out_of_time(tmp_path: Path, capsys) -> None:
    status = attention.main([*SMALL, "--out", str(tmp_path), "--cases", "conv", "--minutes", "0"])
    assert status == 0 and not (tmp_path / "attention_cpu.json").exists()
    assert "not run: conv/forward/float32" in capsys.readouterr().out


def test_the_largest_size_that_fits_is_found(monkeypatch) -> None:
    right = attention_problems.edge_operation

    def limited(graph, setting, leaves):
        if graph.num_edges > 500:
            raise torch.OutOfMemoryError("too large")
        return right(graph, setting, leaves)

    monkeypatch.setattr(attention_problems, "edge_operation", limited)
    runner = Runner(Meter("cpu", repeats=2, seconds=0), "torch")
    cases = {case.name: case for case in all_cases(16, 8)}
    record = runner(cases["op/second-order/largest"])  # begins with 32 atoms
    assert record["atoms"] == 8 and record["baseline_ms"] > 0 and record["ratio"] > 0
    record = runner(cases["op/second-order/float32"])
    assert record["atoms"] == 16 and record["baseline_ms"] is None and record["ratio"] is None
    assert record["ours_ms"] > 0 and record["right"]

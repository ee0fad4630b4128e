"""What the benchmark of the paper's algebra compares is the same function, and a wrong one is
refused.
"""

import json

import common
import pytest
import torch
import wigner6j
from wigner6j_edges import EdgeCase
from wigner6j_nodes import NodeCase, coefficient_counts

CASES = [
    NodeCase(2, (1,), 5, 4),
    NodeCase(3, (0, 1, 2, 3), 5, 4),
    EdgeCase(2, (0, 1), 27, 8),
    EdgeCase(2, (2,), 27, 8, groups=2),
]
SMALL = ["--lmax", "2", "--nodes", "4", "--atoms", "27", "--channels", "8", "--repeats", "2"]


@pytest.fixture
def float64_default():
    """e3nn builds the tables of its products in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_methods_agree(case, float64_default):
    methods, inputs = case.methods("cpu"), case.inputs(torch.float64, "cpu")
    expected = wigner6j.make_run(methods[case.reference], inputs, "forward+backward")()
    assert len(expected) == 1 + len(wigner6j.leaves(inputs))
    for name, method in methods.items():
        found = wigner6j.make_run(method, inputs, "forward+backward")()
        assert max(wigner6j.errors(found, expected)) < 1e-12, name


def test_counts():
    counts = coefficient_counts(NodeCase(2, (0, 1, 2), 1, 1))
    assert counts == {"nonzero_coefficients": 137, "aligned_coefficients": 37}


def test_dry_run(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    wigner6j.main([*SMALL, "--seconds", "0", "--out", "dry"])
    records = json.loads((tmp_path / "dry.json").read_text())
    assert len(records) == 2 * (2 * 4 + 3 * 3)
    for record in records:
        assert record["ms"] > 0
        assert record["peak_mib"] > 0
        assert 0 < record["relative_error"] < wigner6j.TOLERANCE
        assert record["fastest"] in {record["method"], *record["ratio_to"]}
        assert record["environment"]["torch"] == torch.__version__


def test_a_wrong_result_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(NodeCase, "_full_tensor", lambda case, device: lambda x, r, weight: 2 * x)
    with pytest.raises(RuntimeError, match="full tensor has a relative error of"):
        wigner6j.main([*SMALL, "--seconds", "0"])
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_has_no_time(tmp_path, monkeypatch):
    def full(x, r, weight):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(NodeCase, "_full_tensor", lambda case, device: full)
    wigner6j.main([*SMALL, "--seconds", "0", "--out", "dry"])
    records = json.loads((tmp_path / "dry.json").read_text())
    without = {record["method"] for record in records if record["ms"] is None}
    assert without == {"full tensor"}
    assert not any("full tensor" in record.get("ratio_to", {}) for record in records)

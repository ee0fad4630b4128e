"""The comparison with other libraries runs, and gives a wrong result no ratio."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import peers
import peers_convolutions
import peers_evaluation
import peers_models
import peers_systems
import peers_training
import pytest
import torch
from attention_measure import Meter
from attention_problems import Contender, Operation
from attention_systems import Setting
from peers_cases import GROUPS, PACKAGES, SERIES, TRAINING, all_cases
from peers_contest import Contest, bare_package

from e2former_pyg import E2FormerPotential

FIELDS = {"case", "peer", "version", "atoms", "edges", "peer_ms", "ours_ms", "ratio"}
FIELDS |= {"peer_peak_mib", "ours_peak_mib", "peer_spread", "ours_spread", "environment"}
SMALL = ["--device", "cpu", "--channels", "16", "--repeats", "2", "--seconds", "0"]


@pytest.fixture(autouse=True)
def forget_errors() -> None:
    peers_convolutions.errors_of.cache_clear()


def run(out: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    status = peers.main([*SMALL, "--out", str(out), *arguments])
    path = out / "peers_cpu.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return status, {record["case"]: record for record in records}


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    groups = ("potential", "e3nn", "transformer", "schnet", "visnet")
    some = ["--atoms", "24", "--sizes", "24", "--series", "atoms"]
    status, records = run(tmp_path, *some, "--cases", *groups)
    assert status == 0
    assert {record["case"].split("/")[0] for record in records.values()} == set(groups)
    assert len(records) == 2 + 4 + 2 + 1 + 1
    for record in records.values():
        assert record.keys() >= FIELDS
        assert record["right"] and record["ours_ms"] > 0 and record["edges"] > 0
        if record["peer"] is None:
            assert record["peer_ms"] is None and record["ratio"] is None
        else:
            assert record["ratio"] == pytest.approx(record["peer_ms"] / record["ours_ms"])
            assert record["version"].startswith(PACKAGES[record["peer"]][0])
    assert 0 < records["e3nn/orders012/forward/24"]["worst_error"] < 1e-5
    for name in ("bars", "atoms", "ns_per_day"):
        assert (tmp_path / f"peers_cpu_{name}.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "peer"])
def test_a_wrong_result_has_no_ratio(tmp_path: Path, monkeypatch, capsys, side: str) -> None:
    def wrong(contender: Contender) -> Contender:
        return Contender(lambda: contender.call() * (1 + 1e-3), contender.leaves)

    if side == "ours":
        right = Operation.ours
        monkeypatch.setattr(Operation, "ours", lambda self, backend: wrong(right(self, backend)))
    else:
        other = peers_convolutions.Library(
            lambda inputs: wrong(peers_convolutions.e3nn_convolution(inputs)), True, "wrong"
        )
        monkeypatch.setitem(peers_convolutions.LIBRARIES, "e3nn", (other,))
    status, records = run(tmp_path, "--atoms", "12", "--sizes", "12", "--cases", "e3nn")
    assert status == 1
    record = records["e3nn/order1/forward/12"]
    assert record["ratio"] is None and not record["right"]
    assert record["errors"][f"{side}.out"] == pytest.approx(1e-3, rel=1e-2)
    assert "wrong or failed: e3nn/order1/forward/12" in capsys.readouterr().out


def test_a_result_that_is_not_finite_has_no_ratio(tmp_path: Path, monkeypatch) -> None:
    right = peers_models.by_autograd

    def nan(*args):
        energies, forces = right(*args)
        forces[3, 1] = float("nan")
        return energies, forces

    monkeypatch.setattr(peers_models, "by_autograd", nan)
    status, records = run(
        tmp_path, "--atoms", "12", "--sizes", "12", "--series", "atoms", "--cases", "schnet"
    )
    assert status == 1 and records["schnet/model/energy+forces/12"]["ratio"] is None


@pytest.mark.slow
def test_what_fails_is_recorded_and_the_rest_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openequivariance", None)
    groups = ["--cases", "openequivariance", "transformer"]
    sizes = ["--atoms", "12", "--sizes", "12"]
    status, records = run(tmp_path, *sizes, *groups)
    assert status == 1
    assert "openequivariance" in records["openequivariance/order1/forward/12"]["error"]
    assert records["transformer/scalars/forward/12"]["right"]

    def fail(case, meter):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(peers.CONTESTS, "transformer", fail)
    _, records = run(tmp_path, *sizes, *groups)
    assert records["transformer/scalars/forward/12"]["error"] == "RuntimeError: no kernel"


def test_a_missing_library_takes_the_place_of_no_measurement(tmp_path: Path, monkeypatch) -> None:
    arguments = ["--atoms", "12", "--sizes", "12", "--cases", "transformer"]
    _, before = run(tmp_path, *arguments)

    def missing(case, meter):
        raise ModuleNotFoundError("No module named 'torch_geometric'")

    monkeypatch.setitem(peers.CONTESTS, "transformer", missing)
    status, after = run(tmp_path, *arguments)
    assert status == 1 and after == before


def test_no_case_begins_out_of_time(tmp_path: Path, capsys) -> None:
    status, records = run(tmp_path, "--atoms", "12", "--cases", "transformer", "--minutes", "0")
    assert status == 0 and not records
    assert "not run: transformer/scalars/forward/12" in capsys.readouterr().out


def test_a_compiled_potential_is_used_and_checked(tmp_path: Path, monkeypatch) -> None:
    factors = [1.01, 1.0]

    def compile_for_inference(self):
        factor = factors.pop()

        def compiled(**inputs):
            out = self(**inputs)
            return out._replace(forces=out.forces * factor)

        return compiled

    arguments = ["--atoms", "12", "--sizes", "12", "--series", "atoms", "--cases", "schnet"]
    name = peers_evaluation.COMPILE
    monkeypatch.setattr(E2FormerPotential, name, compile_for_inference, raising=False)
    for right in (True, False):
        _, records = run(tmp_path, *arguments)
        record = records["schnet/model/energy+forces/12"]
        assert record["ours_what"].endswith("compile_for_inference")
        assert record["right"] == right and (record["ratio"] is not None) == right


@pytest.mark.parametrize("large", ["peer", "ours"])
def test_one_side_without_memory_leaves_the_other(large: str) -> None:
    def fits() -> dict[str, torch.Tensor]:
        return {"out": torch.ones(3)}

    def fails() -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("too large")

    sides = {"peer": fits, "ours": fits, large: fails}
    record = peers.measure(Meter("cpu", repeats=2, seconds=0), Contest(edges=1, about={}, **sides))
    other = {"peer": "ours", "ours": "peer"}[large]
    assert record["out_of_memory"] == [large] and record["ratio"] is None
    assert record[f"{large}_ms"] is None and record[f"{other}_ms"] > 0
    assert record["right"] == (other == "ours")
    with pytest.raises(torch.OutOfMemoryError, match="peer and ours"):
        peers.measure(Meter("cpu"), Contest(fails, fails, 1, {}))


def test_memory_that_is_kept_between_calls_counts(monkeypatch) -> None:
    meter = Meter("cpu", repeats=2, seconds=0)
    monkeypatch.setattr(meter, "peak", lambda run: (run(), 5.0))

    def out() -> dict[str, torch.Tensor]:
        return {"out": torch.ones(3)}

    record = peers.measure(meter, Contest(out, out, 1, {}, ours_kept_mib=20.0))
    assert record["ours_peak_mib"] == 25.0 and record["peer_peak_mib"] == 5.0
    assert record["memory_ratio"] == pytest.approx(0.2)


def test_cases_are_named_once_and_cover_every_library() -> None:
    names = [case.name for case in all_cases(10_240, 128)]
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names} == set(GROUPS) == peers.CONTESTS.keys()
    cases = list(all_cases(10_240, 128))
    assert {case.series for case in cases} == set(SERIES)
    ours = [case for case in cases if case.group == "potential"]
    sizes = {series: {case.atoms for case in ours if case.series == series} for series in SERIES}
    assert sizes["atoms"] == {100, 1_024, 10_240, 102_400}
    assert sizes["training"] == {20 * 9, 64 * 21, 5_000}


@pytest.mark.slow
def test_training_steps_are_compared_and_checked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(peers_systems.SMALL, "num_layers", 1)
    peers_training.our_step.cache_clear()
    arguments = ["--atoms", "9", "--series", "training", "--match", "ethanol", "--cases"]
    status, records = run(tmp_path, *arguments, "potential", "schnet")
    assert status == 0
    record = records["schnet/ethanol/training step/9"]
    assert record["right"] and record["graphs"] == 1 and record["edges"] == 72
    assert 0 < record["worst_error"] < 1e-5
    for side in ("peer", "ours"):
        assert record[f"{side}_steps_per_s"] == pytest.approx(1e3 / record[f"{side}_ms"])
    assert records["potential/ethanol/training step/9"]["ours_steps_per_s"] > 0
    assert (tmp_path / "peers_cpu_training.png").stat().st_size > 1000

    peers_training.our_step.cache_clear()
    monkeypatch.setattr(peers_training, "gradient_error", lambda *args: 2e-3)
    status, records = run(tmp_path, *arguments, "schnet")
    peers_training.our_step.cache_clear()
    record = records["schnet/ethanol/training step/9"]
    assert status == 1 and not record["right"] and record["ratio"] is None


def test_times_become_rates() -> None:
    times = {"peer_ms": 86.4, "ours_ms": None}
    for which in ("energy+forces", "neighbours+energy+forces"):
        found = peers.rates({"pass": which, **times})
        assert found["peer_ns_per_day"] == pytest.approx(1.0) and found["time_step_fs"] == 1.0
        assert found["ours_ns_per_day"] is None
    found = peers.rates({"pass": TRAINING, "peer_ms": 500.0, "ours_ms": 4.0})
    assert found == {"peer_steps_per_s": 2.0, "ours_steps_per_s": 250.0}
    assert peers.rates({"pass": "forward", **times}) == {}


@pytest.mark.slow
def test_degrees_and_lmax_are_swept(tmp_path: Path) -> None:
    arguments = ["--atoms", "30", "--series", "degree", "lmax", "--cases", "e3nn", "transformer"]
    status, records = run(tmp_path, *arguments, "--match", "cutoff=[45]|lmax=[13]")
    assert status == 0
    names = [f"e3nn/order1/forward+backward/12/{end}" for end in ("cutoff=4", "cutoff=5")]
    few, many = (records[name] for name in names)
    assert few["edges"] < many["edges"] and (few["cutoff"], many["cutoff"]) == (4.0, 5.0)
    names = [f"e3nn/order1/forward+backward/12/{end}" for end in ("lmax=1", "lmax=3")]
    assert [records[name]["paths"] for name in names] == [3, 9]
    assert len(records) == 2 + 2 + 2  # the transformer has no degrees
    for name in ("degree", "lmax"):
        assert (tmp_path / f"peers_cpu_{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_case_can_have_a_limit(tmp_path: Path) -> None:
    arguments = ["--atoms", "12", "--match", "^transformer/scalars/forward/12$", "--limit"]
    status, records = run(tmp_path, *arguments, "0.1")
    (record,) = records.values()
    assert status == 1 and record["peer"] == "transformer" and record["atoms"] == 12
    assert record["error"] == "TimeoutError: not done after 0.1 s"
    status, records = run(tmp_path, *arguments, "300")
    (record,) = records.values()
    assert status == 0 and record["right"] and record.keys() >= FIELDS


@pytest.mark.parametrize("library", [n for n in peers_convolutions.LIBRARIES if n != "e3nn"])
def test_libraries_compute_the_convolution(library: str) -> None:
    distribution = {"cuequivariance": "cuequivariance_torch"}.get(library, library)
    pytest.importorskip(distribution)
    for way in peers_convolutions.LIBRARIES[library]:
        errors = peers_convolutions.errors_of(way, Setting(channels=8), 20, "cpu")
        assert errors.keys() == {f"{s}.{n}" for s in ("peer", "ours") for n in ("out", "features")}
        assert max(errors.values()) < peers_convolutions.BAR


def test_bare_package_skips_the_init_alone(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "outer_for_test" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imports too much')")
    (package / "part.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match=r"outer_for_test\.other"):
        bare_package("outer_for_test.other")
    bare_package("outer_for_test.inner")
    try:
        from outer_for_test.inner.part import VALUE

        assert VALUE == 7
        module = sys.modules["outer_for_test.inner"]
        bare_package("outer_for_test.inner")
        assert isinstance(module, types.ModuleType)
        assert sys.modules["outer_for_test.inner"] is module
    finally:
        for name in [name for name in sys.modules if name.startswith("outer_for_test")]:
            del sys.modules[name]

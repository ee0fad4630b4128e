"""The benchmark of swapped layers pairs runs of the same data, and its jobs go on and report."""

import argparse
import json

import jobs
import pytest
import swap


def size(swapped: str, name: str) -> int:
    return sum(parameter.numel() for parameter in swap.MODELS[swapped][name]().parameters())


@pytest.mark.parametrize("swapped", swap.MODELS)
def test_wide_baselines_have_about_as_many_parameters(swapped):
    narrow, wide, ours = (size(swapped, name) for name in swap.MODELS[swapped])
    assert narrow < 0.6 * ours
    assert ours <= wide < 1.1 * ours


def test_pairs_are_of_the_same_swap_and_seed():
    def run(kind, model, seed, error):
        rest = dict.fromkeys(("mean_predictor", "training_graphs", "test_graphs", "threads"))
        rest |= dict.fromkeys(("parameters", "steps", "minutes", "jobs", "environment"))
        return {"swap": kind, "model": model, "seed": seed, "errors": {"mae": error}, **rest}

    runs = [run("schnet", "SchNet", seed, 2.0 + seed) for seed in range(2)]
    runs += [run("schnet", "SchNet-wide", 0, 8.0), run("attention", "TransformerConv", 0, 1.0)]
    runs += [run("schnet", "E2FormerConv", 0, 4.0)]
    found = {pair["case"]: pair for pair in swap.pairs(runs)}
    assert found.keys() == {"schnet/SchNet/0", "schnet/SchNet-wide/0"}
    assert found["schnet/SchNet/0"]["ratio"] == {"mae": 2.0}
    wide = found["schnet/SchNet-wide/0"]
    assert wide["errors"] == {"baseline": {"mae": 8.0}, "swapped": {"mae": 4.0}}


def test_jobs_report_failures_and_skip_what_is_done(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "folder, label = sys.argv[1:3]\n"
        "if label == 'bad': sys.exit('no such thing')\n"
        "assert sys.argv[3] == '--single'\n"
        "(pathlib.Path(folder) / f'{label}.json').write_text('{\"label\": \"' + label + '\"}')\n"
    )
    args = argparse.Namespace(directory=tmp_path / "runs", jobs=2)
    runs = {label: [label] for label in ("good", "bad", "done")}
    args.directory.mkdir()
    (args.directory / "done.json").write_text('{"label": "of an earlier call"}')
    records, code = jobs.run_jobs(str(script), [str(args.directory)], runs, args)
    assert code == 1
    assert [record["label"] for record in records] == ["of an earlier call", "good"]
    assert "bad" in capsys.readouterr().out
    assert "no such thing" in (args.directory / "bad.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swapped", "baseline", "error"),
    [
        ("schnet", "SchNet", "force_mae_mev_per_angstrom"),
        ("attention", "TransformerConv", "gap_mae_ev"),
    ],
)
def test_runs_are_paused_go_on_and_are_gathered(tmp_path, swapped, baseline, error):
    ours = list(swap.MODELS[swapped])[-1]
    arguments = ["--cases", swapped, "--models", baseline, ours, "--seeds", "1"]
    arguments += ["--minutes", "0.01", "--directory", str(tmp_path / "runs"), "--out"]
    arguments += [str(tmp_path)]
    assert swap.main([*arguments, "--pause-after", "0.001"]) == 0
    assert not (tmp_path / "swap.json").exists()
    assert swap.main(arguments) == 0
    (record,) = json.loads((tmp_path / "swap.json").read_text())
    assert record["case"] == f"{swapped}/{baseline}/1"
    assert record["swapped"] == ours
    errors = {side: values[error] for side, values in record["errors"].items()}
    assert record["ratio"][error] == pytest.approx(errors["swapped"] / errors["baseline"])
    for side in ("baseline", "swapped"):
        assert record["steps"][side] > 0
        assert 0.01 <= record["minutes"][side] < 0.1
        assert errors[side] < 3 * record["mean_predictor"][error]

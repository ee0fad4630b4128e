"""The command, and the configurations of the repository."""

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import Frames

import e2former_pyg.data
from e2former_pyg import E2FormerPotential, E2FormerProperty
from e2former_pyg.data import NPZDataset
from e2former_pyg.training import E2FormerModule, E2FormerPropertyModule
from e2former_pyg.training.cli import make_cli

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STAGE_TWO = [
    "--model.init_args.model.init_args.forces=conservative",
    "--model.init_args.fit_references=false",
    "--model.init_args.lr=6e-4",
    "--model.init_args.energy_weight=10",
    "--model.init_args.forces_weight=10",
]


def build(path, *options):
    if "OMol25Dataset" in path.read_text() and not hasattr(e2former_pyg.data, "OMol25Dataset"):
        pytest.skip("e2former_pyg.data has no OMol25Dataset")
    return make_cli(["--config", str(path), "--trainer.accelerator=cpu", *options], run=False)


def test_all_are_there():
    names = {path.stem for path in CONFIGS}
    assert names == {"quickstart", "rmd17", "qm9", "spice", "omol25", "alloy"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_build(path, tmp_path, monkeypatch):
    """Each setting in the file arrives, and no data are looked for."""
    monkeypatch.chdir(tmp_path)
    cli = build(path)
    config = yaml.safe_load(path.read_text())
    settings = config["model"]["init_args"]
    model = settings.pop("model")["init_args"]
    assert {key: cli.model.model.config[key] for key in model} == model
    for key, value in settings.items():
        if key.endswith("_weight"):
            assert cli.model.weights[key.removesuffix("_weight")] == value
        else:
            assert getattr(cli.model, key) == value
    callbacks = {type(callback).__name__: callback for callback in cli.trainer.callbacks}
    assert callbacks["ExponentialAverage"].decay == config["ema"]["decay"]
    assert callbacks["BestCheckpoint"].monitor == config["best"]["monitor"]
    assert cli.trainer.gradient_clip_val == config["trainer"]["gradient_clip_val"]
    assert cli.trainer.default_root_dir == config["trainer"]["default_root_dir"]
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == [
        "TensorBoardLogger",
        "CSVLogger",
    ]
    assert callable(cli.datamodule.sources["train"]) and not cli.datamodule.datasets
    assert not list(tmp_path.rglob("*.npz"))


def test_parameters_of_omol25_in_the_guide():
    model = build(ROOT / "configs" / "omol25.yaml").model
    count = sum(parameter.numel() for parameter in model.parameters())
    guide = " ".join((ROOT / "docs" / "guides" / "train.rst").read_text().split())
    found = f"The {count / 1e6:.1f} million parameters of ``configs/omol25.yaml`` make"
    assert f"{found} {16 * count / 1e6:.0f} MB" in guide


def test_second_stage_of_omol25():
    cli = build(ROOT / "configs" / "omol25.yaml", *STAGE_TWO)
    assert cli.model.model.forces == "conservative" and cli.model.lr == 6e-4
    assert cli.model.weights == {"energy": 10, "forces": 10, "stress": 0}
    text = " ".join((ROOT / "configs" / "omol25.yaml").read_text().split())
    assert all(option.replace("=", " ") in text for option in STAGE_TWO)


@pytest.fixture
def config(tmp_path):
    """A small run on a file in this project's layout."""
    frames = Frames(24).frames
    arrays = {key: np.concatenate([frame[key] for frame in frames]) for key in frames[0].to_dict()}
    arrays["ptr"] = np.cumsum([0, *(frame.num_nodes for frame in frames)])
    arrays["split"] = np.arange(24) % 4 == 3
    np.savez(tmp_path / "frames.npz", **arrays)

    def source(split):
        arguments = {"path": str(tmp_path / "frames.npz"), "split": split}
        return {"class_path": "e2former_pyg.data.NPZDataset", "init_args": arguments}

    model = {"hidden_channels": 8, "num_layers": 1, "lmax": 1, "heads": 2, "num_radial": 6}
    settings = {
        "model": {
            "class_path": "e2former_pyg.training.E2FormerModule",
            "init_args": {
                "model": {"class_path": "e2former_pyg.E2FormerPotential", "init_args": model},
                "warmup_steps": 2,
                "total_steps": 6,
            },
        },
        "data": {
            "train": source("train"),
            "val": source("val"),
            "test": source("val"),
            "batch_size": 6,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "run"),
            "enable_progress_bar": False,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def rows(root):
    """What the CSV logs hold, by step and column."""
    found = {}
    for path in sorted(root.glob("csv/*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            for key, value in row.items():
                if value and key not in ("epoch", "step"):
                    found[int(row["step"]), key] = float(value)
    return found


def test_fit_stop_go_on_validate_test_predict(config, tmp_path):
    root = tmp_path / "run"
    start = ["--config", str(config)]
    make_cli(["fit", *start, f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    # `last` starts where there is nothing yet.
    make_cli(["fit", *start, "--ckpt_path=last", "--trainer.max_steps=4"])
    make_cli(["fit", *start, "--ckpt_path=last"])
    assert rows(root) == rows(tmp_path / "whole")
    assert {step for step, key in rows(root) if key == "train/loss"} == set(range(6))
    assert list(root.glob("tensorboard/*/events.*")) and list(root.glob("**/config.yaml"))
    validated = make_cli(["validate", *start, "--ckpt_path=best"]).trainer.callback_metrics
    tested = make_cli(["test", *start, "--ckpt_path=best"]).trainer.callback_metrics
    assert float(validated["val/loss"]) == float(tested["test/loss"])
    assert float(validated["val/loss"]) == min(
        value for (_, key), value in rows(tmp_path / "whole").items() if key == "val/loss"
    )
    make_cli(["predict", *start, "--ckpt_path=best", "--return_predictions=false"])
    predicted = NPZDataset(root / "predictions.npz")
    model = E2FormerPotential.load(root / "checkpoints" / "best.safetensors")
    frames = NPZDataset(tmp_path / "frames.npz", split="val")
    error = 0.0
    for frame, found in zip(frames, predicted, strict=True):
        energy = model(frame).energy.detach()
        assert float(found.energy) == pytest.approx(float(energy), rel=1e-6)
        error += float((energy - frame.energy).abs()) / len(frames)
    assert float(tested["test/energy_mae_meV"]) == pytest.approx(1e3 * error, rel=1e-5)
    with pytest.raises(FileNotFoundError, match="`ckpt_path` = best: there is no"):
        make_cli(["test", *start, "--ckpt_path=best", "--trainer.default_root_dir=/nowhere"])


def test_the_quickstart_trains(tmp_path):
    """On the frames of the repository, for two steps of two batches."""
    raw = tmp_path / "ethanol" / "raw"
    shutil.copytree(ROOT / "examples" / "data" / "ethanol" / "raw", raw)
    sizes = {"train_size": 20, "val_size": 4, "test_size": 4, "train.init_args.root": tmp_path}
    options = [f"--data.{name}={value}" for name, value in sizes.items()]
    options += ["--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    options += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    make_cli(["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *options])
    assert {step for step, key in rows(tmp_path / "run") if key == "train/loss"} == set(range(4))
    model = E2FormerPotential.load(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert model.elements == [1, 6, 8]


def test_the_command(monkeypatch, capsys):
    text = (ROOT / "pyproject.toml").read_text()
    module, function = re.search(r'^e2former = "(.+):(.+)"$', text, re.M).groups()
    monkeypatch.setattr(sys, "argv", ["e2former"])
    with pytest.raises(SystemExit) as stopped:
        getattr(importlib.import_module(module), function)()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("fit", "validate", "test", "predict"))


@pytest.mark.parametrize(
    "option, named",
    [
        ("--model.init_args.lrr=1", "lrr"),
        ("--data.max_atoms=many", "max_atoms"),
        ("--model.init_args.lr=-1", "`lr` must lie in"),
        ("--data.max_atoms=100", "one of `max_atoms`, `max_edges` and `batch_size`"),
    ],
)
def test_mistakes_are_named(config, capsys, option, named):
    with pytest.raises((SystemExit, ValueError)) as stopped:
        make_cli(["fit", "--config", str(config), option])
    assert named in capsys.readouterr().err + str(stopped.value)


def test_training_without_lightning():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('lightning', 'torchmetrics')))\n"
        "import e2former_pyg\n"
        "try:\n    import e2former_pyg.training\nexcept ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "pip install 'e2former-pyg[train]'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "module, model, kwargs",
    [
        (E2FormerModule, E2FormerPotential, {"forces": "conservative"}),
        (E2FormerModule, E2FormerPotential, {"forces": "direct"}),
        (E2FormerPropertyModule, E2FormerProperty, {"out": "1o"}),
    ],
)
def test_models_are_those_of_a_program(module, model, kwargs):
    """Also what they take from the arguments of the backbone when these are not given."""
    ((name, value),) = kwargs.items()
    command = [
        f"--model={module.__module__}.{module.__name__}",
        f"--model.init_args.model={model.__module__}.{model.__name__}",
        f"--model.init_args.model.init_args.{name}={value}",
        "--data.batch_size=3",
    ]
    assert make_cli(command, run=False).model.model.config == model(**kwargs).config

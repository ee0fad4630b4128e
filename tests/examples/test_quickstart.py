"""The quickstart as a newcomer runs it: a process of its own, output to a file, no display."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ethanol_data import load_ethanol, split_frames
from ethanol_settings import NUM_TRAIN
from matplotlib.image import imread
from training import evaluate, mean_predictor

from e2former_pyg import E2FormerPotential

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def run_quickstart(folder: Path, seconds: int) -> str:
    """Runs the script from another folder and returns what it wrote to a file."""
    command = [sys.executable, str(SCRIPT), f"--seconds={seconds}", f"--output={folder}"]
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    log = folder / "log"
    with log.open("w") as file:
        run = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment, timeout=200
        )
    text = log.read_text(encoding="utf-8")
    assert run.returncode == 0, text
    return text


def read_table(text: str) -> dict[str, list[float]]:
    """The numbers in each row of the printed table."""
    lines = text.splitlines()
    rule = next(index for index, line in enumerate(lines) if re.fullmatch("-+", line))
    assert len({len(line) for line in lines[rule : rule + 4]}) == 1  # aligned
    rows = [re.split(r"\s{2,}", line) for line in lines[rule + 1 : rule + 4]]
    return {
        name: [float(value.replace(",", "")) for value in values if value != "-"]
        for name, *values in rows
    }


# One test, since parallel workers would each need a run of their own.
@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    checkpoint, plot = tmp_path / "ethanol.safetensors", tmp_path / "parity.png"
    checkpoint.write_text("of an earlier run")
    text = run_quickstart(tmp_path, seconds=2)

    assert "Traceback" not in text
    assert "E2Former     100%" in text  # the progress bar
    assert [Path(line.strip()) for line in text.splitlines()[-2:]] == [checkpoint, plot]

    rows = read_table(text)
    assert list(rows) == ["mean predictor", "SchNet (PyG)", "E2Former"]
    for name in ("SchNet (PyG)", "E2Former"):
        seconds, steps, parameters = rows[name][2:]
        assert seconds >= 2
        assert steps >= 1
        assert parameters > 10_000

    # The checkpoint is the model of the table.
    train_frames, test_frames = split_frames(load_ethanol(), NUM_TRAIN, "time", seed=0)
    errors = evaluate(E2FormerPotential.load(checkpoint), test_frames)
    assert rows["E2Former"][:2] == pytest.approx(list(errors.values()), abs=0.051)
    trivial = mean_predictor(train_frames, test_frames)
    assert rows["mean predictor"] == pytest.approx(list(trivial.values()), abs=0.051)

    height, width, _ = imread(plot).shape
    assert width > height > 500

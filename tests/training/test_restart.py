"""A run that is stopped goes on as if it had not been."""

import itertools
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from small_runs import STEPS, Record, last, make_module, make_trainer, run
from torch_geometric.data import Batch

from e2former_pyg import E2FormerPotential
from e2former_pyg.training import load_model
from e2former_pyg.training.random_state import random_state, set_random_state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption."""
    return run(tmp_path_factory.mktemp("whole"))


def assert_same(whole, first, second, module):
    record, expected = whole
    steps = dict(zip([step[0] for step in first], first, strict=True))
    steps |= dict(zip([step[0] for step in second], second, strict=True))
    assert [steps[step[0]] for step in record.steps] == record.steps
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_run_is_worth_it(whole):
    """Several epochs with other orders and the validations between them; it learns."""
    record, _ = whole
    assert [step[0] for step in record.steps] == list(range(1, STEPS + 1))
    assert [step for step, _ in record.validations] == [6, 12]
    epochs = [[energies for *_, energies in record.steps[i : i + 6]] for i in (0, 6)]
    assert epochs[0] != epochs[1]
    first, second = (sorted(itertools.chain(*energies)) for energies in epochs)
    assert first == second
    assert sum(step[1] for step in record.steps[6:12]) < sum(step[1] for step in record.steps[:6])


@pytest.mark.parametrize("pause", [2, 6, 9, 12])
def test_pause(whole, tmp_path, pause):
    """Amid an epoch, at its end, and before and after the middle of the warm-up."""
    first, _ = run(tmp_path, max_steps=pause)
    second, module = run(tmp_path, resume=True, seed=77)
    assert first.steps[-1][0] == pause and second.steps[0][0] == pause + 1
    assert_same(whole, first.steps, second.steps, module)
    assert first.validations + second.validations == whole[0].validations


def test_pause_with_muon(tmp_path):
    whole = run(tmp_path / "whole", optimizer="muon")
    first, _ = run(tmp_path / "parts", max_steps=7, optimizer="muon")
    second, module = run(tmp_path / "parts", resume=True, seed=77, optimizer="muon")
    assert [group["muon"] for group in module.optimizers().param_groups] == [True, False]
    assert_same(whole, first.steps, second.steps, module)


def test_stop_amid_an_epoch(whole, tmp_path):
    """As a limit of the time does it."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 9

    first, _ = run(tmp_path, callbacks=[Stop()])
    second, module = run(tmp_path, resume=True, seed=77)
    assert [record.steps[-1][0] for record in (first, second)] == [9, STEPS]
    assert_same(whole, first.steps, second.steps, module)


def test_sigkill(whole, tmp_path):
    kill_at = random.SystemRandom().randint(4, STEPS - 1)
    command = [sys.executable, small_runs.__file__, str(kill_at), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record, module = run(tmp_path, resume=True, seed=77)
    print(f"killed at {kill_at}, goes on with step {record.steps[0][0]}")
    assert 4 < record.steps[0][0] <= kill_at + 1
    assert_same(whole, whole[0].steps[:kill_at], record.steps, module)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(whole, tmp_path):
    class Full(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            if checkpoint["global_step"] > 4:
                Path(path).write_bytes(b"half")
                raise OSError("no space left on device")
            super().save_checkpoint(checkpoint, path, storage_options)

    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, plugins=[Full()])
    record, module = run(tmp_path, resume=True, seed=77)
    assert record.steps[0][0] == 5
    assert_same(whole, whole[0].steps[:4], record.steps, module)


def test_workers(whole, tmp_path):
    """What workers have loaded ahead is not lost."""
    first, _ = run(tmp_path, max_steps=8, workers=1)
    second, module = run(tmp_path, resume=True, seed=77, workers=1)
    assert_same(whole, first.steps, second.steps, module)


def test_killed_in_a_validation(tmp_path):
    """The validation is not left out."""

    class Interrupt(Record):
        def on_validation_start(self, trainer, module):
            if trainer.global_step == 8:
                raise RuntimeError("interrupted")

    options = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    expected, _ = run(tmp_path / "whole", **options)
    assert [step for step, _ in expected.validations] == [4, 8, 12]
    data = small_runs.GraphDataModule(small_runs.Frames(), val_size=6, max_atoms=24)
    torch.manual_seed(1)
    record = Interrupt()
    trainer = make_trainer(tmp_path / "parts", record, **options)
    with pytest.raises(RuntimeError, match="interrupted"):
        small_runs.seed_everything(1, verbose=False)
        trainer.fit(make_module(), data)
    second, _ = run(tmp_path / "parts", resume=True, **options)
    assert record.validations + second.validations == expected.validations


def test_files(whole, tmp_path):
    _, module = run(tmp_path, max_steps=7)
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    frames = Batch.from_data_list(small_runs.Frames(5).frames)
    # The average is what is saved for use, and what the trained module holds.
    expected = module.model.eval()(frames)
    name = "model.energy_head.0.weight"
    assert not torch.equal(checkpoint["current_model_state"][name], checkpoint["state_dict"][name])
    for model in (
        load_model(last(tmp_path)),
        E2FormerPotential.load(last(tmp_path).with_suffix(".safetensors")),
    ):
        assert not model.training
        out = model(frames)
        assert torch.equal(out.energy, expected.energy)
        assert torch.equal(out.forces, expected.forces)
    best = load_model(last(tmp_path).with_name("best.ckpt"))
    assert not torch.equal(best(frames).energy, expected.energy)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "best.safetensors",
        "last.ckpt",
        "last.safetensors",
    ]


def test_a_new_run_spares_the_old(tmp_path):
    run(tmp_path, max_steps=1)
    before = last(tmp_path).read_bytes()
    with pytest.raises(FileExistsError, match=r"last.ckpt' is the checkpoint of another run"):
        run(tmp_path)
    assert last(tmp_path).read_bytes() == before


def test_weights_that_are_not_finite_end_a_run(tmp_path):
    run(tmp_path, max_steps=2)
    before = last(tmp_path).read_bytes()
    frames = small_runs.Frames()
    for frame in frames:
        frame.forces = frame.forces * float("nan")
    module = make_module()
    data = small_runs.GraphDataModule(frames, val_size=6, max_atoms=24)
    trainer = make_trainer(tmp_path, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"weights are not finite after step \d+, .* is kept"):
        trainer.fit(module, data, ckpt_path=last(tmp_path))
    assert last(tmp_path).read_bytes() == before


def test_other_batches_amid_an_epoch_are_refused(tmp_path):
    run(tmp_path, max_steps=2)
    data = small_runs.GraphDataModule(small_runs.Frames(), val_size=6, max_atoms=30)
    with pytest.raises(ValueError, match="`max_size` was 24, got 30"):
        make_trainer(tmp_path).fit(make_module(), data, ckpt_path=last(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "last.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` is damaged or no checkpoint of a run"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_model(Path(tmp_path, "other.ckpt"))


def test_random_states():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    np.random.standard_normal()  # keeps its other half for the next call
    state = random_state()
    expected = draw(), np.random.standard_normal()
    set_random_state(state)
    assert (draw(), np.random.standard_normal()) == expected


@pytest.mark.parametrize("every", [1, 2])
def test_runs_without_validation_are_kept(tmp_path, every):
    frames = small_runs.Frames(12)
    data = small_runs.GraphDataModule(frames, batch_size=3)
    trainer = small_runs.make_trainer(
        tmp_path, max_steps=-1, max_epochs=2, check_val_every_n_epoch=every
    )
    module = small_runs.make_module()
    trainer.fit(module, data)
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == trainer.global_step == 8
    batch = Batch.from_data_list(frames.frames)
    assert torch.equal(load_model(last(tmp_path))(batch).energy, module.model.eval()(batch).energy)

"""Two processes that share parameters, gradients or the optimizer's state find what one finds.

Forces and stresses are derivatives taken within the forward pass, and the loss differentiates them
again, which is not what FSDP was made for.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_runs
import torch

from e2former_pyg import E2FormerPotential

pytestmark = pytest.mark.slow


def launch(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch(*torchrun, sharded_runs.__file__, str(folder))
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one():
    return sharded_runs.train("one", sharded_runs.make_graphs())


def close(ours, theirs):
    return (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("way", sharded_runs.WAYS)
def test_steps_are_those_of_one_process(ranks, one, way):
    """Energies, forces, stresses, gradients and, after some steps, weights."""
    assert len(one["steps"]) == sharded_runs.STEPS
    for n, theirs in enumerate(one["steps"]):
        steps = [rank[way]["steps"][n] for rank in ranks]
        for name in ("energy", "forces", "stress"):
            assert theirs[name].abs().max() > 1e-4
            assert close(torch.cat([step[name] for step in steps]), theirs[name]), (n, name)
        for step in steps:
            assert len(step["gradients"]) == len(theirs["gradients"]) > 50
            for ours, expected in zip(step["gradients"], theirs["gradients"], strict=True):
                assert close(ours, expected), n
    for rank in ranks:
        for ours, expected in zip(rank[way]["weights"], one["weights"], strict=True):
            assert close(ours, expected)


def test_what_each_process_holds_between_steps(ranks, one):
    """Bytes of parameters, of gradients and of the moments of AdamW."""
    parameters, gradients, moments = one["bytes"]
    assert gradients <= parameters and moments == 2 * gradients
    for rank in ranks:
        assert rank["ddp"]["bytes"] == one["bytes"]
        assert rank["zero"]["bytes"][:2] == one["bytes"][:2]
        for way in ("fsdp", "fsdp-blocks"):
            for ours, all_of_it in zip(rank[way]["bytes"], one["bytes"], strict=True):
                assert 0.3 * all_of_it < ours < 0.7 * all_of_it
    shared = [rank["zero"]["bytes"][2] for rank in ranks]
    assert sum(shared) == moments and min(shared) > 0.3 * moments


@pytest.mark.parametrize("way", ["fsdp", "fsdp-blocks"])
def test_sharded_models_are_saved_whole(folder, one, way):
    potential = E2FormerPotential.load(folder / f"{way}.safetensors")
    assert len(list(folder.glob(f"*{way}.safetensors*"))) == 1
    for ours, expected in zip(potential.parameters(), one["weights"], strict=True):
        assert close(ours.detach(), expected)


def test_lightning(tmp_path):
    """The same losses as with DDP, also after a restart, and a model for use in the end."""
    pytest.importorskip("lightning")
    launch(sharded_runs.__file__, "lightning", str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"lightning{rank}.pt", weights_only=True)
        assert len(found["ddp"]) == 5
        assert found["parts"] == found["sharded"]
        for ours, theirs in zip(found["sharded"], found["ddp"], strict=True):
            assert ours[:3] == pytest.approx(theirs[:3], rel=1e-6)
            assert ours[3] == theirs[3]
    models = [
        E2FormerPotential.load(Path(tmp_path, way, "checkpoints", "last.safetensors"))
        for way in ("ddp", "sharded")
    ]
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)

"""The property model of QM9, with some steps of training."""

from pathlib import Path

import pytest
import qm9
import torch
from e3nn.o3 import rand_matrix
from matplotlib.image import imread
from molecules_data import load_molecules, targets
from torch_geometric.data import Batch

from e2former_pyg import E2FormerProperty
from e2former_pyg.transforms import RandomRotation


@pytest.mark.parametrize("target", ["gap", "mu"])
def test_model(target: str) -> None:
    """Invariant values; scalars begin at the mean, a vector turns with the molecule."""
    molecules = load_molecules(target)[0][:6]
    model = qm9.make_model(target, molecules)
    rotation = rand_matrix()
    turned = [RandomRotation(rotation)(data.clone()) for data in molecules]
    before = qm9.predict(model, molecules)
    assert before.shape == (6,)
    torch.testing.assert_close(qm9.predict(model, turned), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        qm9.predict(model, molecules[2:3]), before[2:3], rtol=1e-4, atol=1e-4
    )
    if target == "gap":
        assert model.mean.tolist() == pytest.approx([float(targets(molecules).mean())])
        return
    with torch.no_grad():
        out = model(Batch.from_data_list(molecules))
        moved = model(Batch.from_data_list(turned))
    assert float(out.norm(dim=-1).median()) > 1e-3
    torch.testing.assert_close(moved, out @ rotation.t(), rtol=1e-4, atol=1e-4)


def test_loss() -> None:
    molecules = load_molecules("mu")[0][:2]
    data = Batch.from_data_list(molecules)
    y = targets(molecules)
    vectors = torch.stack([torch.tensor([0.0, 3.0, 4.0]), torch.zeros(3)]).requires_grad_()
    expected = ((5.0 - y[0]).abs() + y[1].abs()) / 2
    loss = qm9.loss(vectors, data)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-3)
    loss.backward()
    assert bool(vectors.grad.isfinite().all())  # at length zero too
    assert float(qm9.loss(y[:, None] + 0.25, data)) == pytest.approx(0.25)


@pytest.mark.slow
@pytest.mark.usefixtures("step_clock")
@pytest.mark.parametrize("target", ["gap", "mu"])
def test_runs(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = qm9.main(["--seconds=40", f"--target={target}", f"--output={tmp_path / 'new'}"])
    # Scalars start at the mean, and vectors near zero.
    test_set = load_molecules(target)[1]
    no_vectors = float(targets(test_set).mean())
    start = no_vectors if target == "mu" else 1.1 * errors["mean predictor"]
    assert errors["E2FormerProperty"] < start
    captured = capsys.readouterr()
    assert f"{target} 100%" in captured.err  # the progress bar
    lines = captured.out.splitlines()
    for name, error in errors.items():
        (line,) = (line for line in lines if line.startswith(name))
        assert f"{error:.3f}" in line
    checkpoint, plot = (Path(line.strip()) for line in lines[-2:])
    # The checkpoint is the model of the table.
    predicted = qm9.predict(E2FormerProperty.load(checkpoint), test_set)
    error = float((predicted - targets(test_set)).abs().mean())
    assert error == pytest.approx(errors["E2FormerProperty"], rel=1e-5)
    height, width, _ = imread(plot).shape
    assert min(height, width) > 500

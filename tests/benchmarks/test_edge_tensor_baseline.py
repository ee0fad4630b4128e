"""The baseline of the attention benchmark computes what the package computes."""

import pytest
import torch
from attention_passes import PASSES, Cotangents, relative_error
from attention_problems import make_problem
from attention_systems import Setting, make_atoms, part_of

SETTINGS = {
    "usual": Setting(channels=8, heads=2, qk_channels=4),
    "one-order": Setting(lmax=1, orders=(1,), channels=6, heads=3, qk_channels=2),
    "gap": Setting(lmax=1, orders=(0, 2), channels=8, heads=2, qk_channels=4, cutoff=4.0),
    "scalars": Setting(lmax=0, orders=(0,), channels=8, heads=2, qk_channels=4),
    "high": Setting(lmax=3, orders=(0, 1, 2, 3), channels=4, heads=2, qk_channels=2, cutoff=4.0),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["attention", "convolution", "layer"])
@pytest.mark.parametrize("which", ["forward", "forward+backward", "second-order"])
def test_baseline_is_the_operation(kind: str, name: str, which: str) -> None:
    problem = make_problem(kind, SETTINGS[name], 12, "cpu").double()
    ours, baseline = problem.ours("torch"), problem.baseline("edge-tensors")
    cotangents = Cotangents.make(ours, which)
    expected = PASSES[which](ours, cotangents)
    results = PASSES[which](baseline, cotangents)
    assert expected.keys() == results.keys()
    for key, value in expected.items():
        # Without a direction, positions act through lengths alone: never zero here.
        assert float(value.norm()) > 0, key
        assert relative_error(results[key], value) < 1e-11, key


def test_part_has_the_rows_of_its_targets() -> None:
    targets = torch.tensor([7, 0, 11])
    for kind in ("attention", "convolution", "layer"):
        problem = make_problem(kind, SETTINGS["usual"], 30, "cpu")
        out = problem.double().ours("torch").call()
        part = problem.part(targets).ours("torch").call()
        assert relative_error(part.detach(), out.detach()[targets]) < 1e-12, kind


def test_part_keeps_the_edges_of_its_targets() -> None:
    _, graph = make_atoms(50, 3.0, "cpu")
    targets = torch.tensor([40, 3])
    part = part_of(graph, targets)
    edges, few = graph.edge_index.as_tensor(), part.graph.edge_index.as_tensor()
    expected = [edges[0, edges[1] == target] for target in targets]
    found = [part.sources[few[0, few[1] == row]] for row in range(2)]
    for left, right in zip(found, expected, strict=True):
        assert left.tolist() == right.tolist()
    shifts = torch.cat([graph.edge_shift[edges[1] == target] for target in targets])
    assert torch.equal(part.graph.edge_shift, shifts)


def test_atoms_have_the_neighbours_that_their_density_gives() -> None:
    pos, graph = make_atoms(10_240, 4.924, "cpu")
    assert graph.num_edges == pytest.approx(512_000, rel=0.005)
    source, target = graph.edge_index.as_tensor()
    distance = (pos[target] - pos[source] - graph.edge_shift).norm(dim=1)
    spacing = 0.1 ** (-1 / 3)
    assert float(distance.min()) > 0.4 * spacing
    assert float(pos.abs().max()) <= 0.5 * (10_240 / 0.1) ** (1 / 3)
    # Neighbours are not near each other in memory.
    assert float((source - target).abs().double().mean()) > 3000

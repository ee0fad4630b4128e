"""Memory: what is kept for the backward is node-sized, what is used on the way is a chunk."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from e2former_pyg.functional import chunks, coupled_sums

KINDS = pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
BUDGET = 2**15
CHANNELS = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", BUDGET // 4)  # several: a single one is kept
    monkeypatch.setattr(coupled_sums, "BLOCK_ELEMENTS", BUDGET)


def regular_case(reference, convolution, nodes, degree):
    """Every node has ``degree`` neighbours, nearly all within the cutoff."""
    case = reference.make_case(
        nodes=nodes, edges=8, channels=CHANNELS, convolution=convolution, lmax_in=2
    )
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(nodes).repeat_interleave(degree)
    source = torch.randint(nodes, (nodes * degree,), generator=generator)
    return case.replace(edge_index=torch.stack([source, target]), pos=case.pos * 0.5)


def force(case, inputs):
    """The forward and a backward that can be differentiated again."""
    out = case.run()
    return out, *torch.autograd.grad(out.square().sum(), inputs["pos"], create_graph=True)


def step(case, inputs):
    """A step of force training: forward, backward, double backward."""
    _, gradient = force(case, inputs)
    return torch.autograd.grad(gradient.square().sum(), list(inputs.values()))


def allocated_bytes(function, case):
    """Memory held at the end, with the results of ``function`` alive, and the peak on the way."""
    case, inputs = case.leaves()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = function(case, inputs)
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    total = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        total += size
        peak = max(peak, total)
    assert peak >= total > sum(result.nbytes for result in results) * 0.99
    return total, peak


@KINDS
def test_saved_memory_does_not_depend_on_the_degree(reference, convolution):
    few, _ = allocated_bytes(force, regular_case(reference, convolution, nodes=64, degree=16))
    many, _ = allocated_bytes(force, regular_case(reference, convolution, nodes=64, degree=64))
    # Neighbour lists are edge-sized, 24 bytes an edge; one number for each channel takes 128.
    assert many <= few + 24 * 64 * (64 - 16)
    # It is a few node tensors: path rows, values in their own layout, and their like.
    node_tensor = 64 * 9 * CHANNELS * 8
    assert few < 10 * node_tensor


@KINDS
def test_saved_memory_is_linear_in_nodes(reference, convolution):
    few, _ = allocated_bytes(force, regular_case(reference, convolution, nodes=64, degree=16))
    many, _ = allocated_bytes(force, regular_case(reference, convolution, nodes=256, degree=16))
    assert many < 4.1 * few


@KINDS
@pytest.mark.parametrize("nodes, degree", [(32, 32), (128, 32), (32, 128)])
def test_largest_tensor_is_a_chunk(reference, convolution, nodes, degree):
    case, inputs = regular_case(reference, convolution, nodes, degree).leaves()
    with reference.Largest() as largest:
        out = case.run()
        step(case, inputs)
    assert nodes * degree * 9 * CHANNELS > 4 * BUDGET  # what an edge tensor would hold
    assert largest.elements <= max(BUDGET, out.numel())


@KINDS
def test_peak_is_set_by_the_chunk(reference, convolution):
    """Four times the neighbours: the same chunks, more of them."""
    step(*regular_case(reference, convolution, 8, 8).leaves())  # caches are filled
    _, few = allocated_bytes(step, regular_case(reference, convolution, nodes=32, degree=32))
    _, many = allocated_bytes(step, regular_case(reference, convolution, nodes=32, degree=128))
    edge_tensor = 32 * 128 * 9 * CHANNELS * 8
    assert many < 1.2 * few
    assert many < 0.5 * edge_tensor

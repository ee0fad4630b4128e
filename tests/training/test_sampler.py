"""Batches are bounded, whole and the same on all processes."""

import copy
import itertools

import pytest
import torch
from small_runs import Frames
from torch.utils.data import Subset
from torch_geometric.data import Data, Dataset, InMemoryDataset

from e2former_pyg.training import GraphLoader, SizeBatchSampler
from e2former_pyg.training.sizes import graph_sizes
from e2former_pyg.transforms import RadiusGraph


def draw_sizes(count=200, high=30, seed=0):
    return torch.randint(0, high, (count,), generator=torch.Generator().manual_seed(seed))


SIZES = {
    "mixed": (draw_sizes(), 64),
    "just fits": (draw_sizes(high=65), 64),
    "halves": (torch.full((40,), 33), 64),
    "graphs": (torch.ones(45, dtype=torch.long), 10),
    "one batch": (torch.ones(12, dtype=torch.long), 100),
}


@pytest.mark.parametrize("sizes, bound", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_graph_once(sizes, bound, world_size):
    samplers = [
        SizeBatchSampler(sizes, bound, rank=rank, world_size=world_size, seed=3)
        for rank in range(world_size)
    ]
    lengths = {len(sampler) for sampler in samplers}
    orders = set()
    for epoch in range(20):
        seen = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert {len(batches)} == lengths  # of all processes and epochs
            assert all(batch and int(sizes[batch].sum()) <= bound for batch in batches)
            seen += itertools.chain(*batches)
        assert sorted(seen) == list(range(len(sizes)))
        orders.add(tuple(seen))
    assert len(orders) == 20


@pytest.mark.parametrize("world_size", [1, 3])
def test_full_batches(world_size):
    """Batches are nearly as large as they may be."""
    sizes = draw_sizes(5000)
    sampler = SizeBatchSampler(sizes, 1000, world_size=world_size)
    assert sampler.num_batches <= 1.05 * float(sizes.sum()) / 1000 + world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_order_is_kept_without_shuffling(world_size):
    sizes = draw_sizes(20)
    samplers = [
        SizeBatchSampler(sizes, 64, shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert all(batches)
    dealt = [batches[i % world_size][i // world_size] for i in range(sum(map(len, batches)))]
    assert list(itertools.chain(*dealt)) == list(range(20))


def test_place():
    """It goes on from any place, and rolls over to the next epoch."""
    sizes = draw_sizes()
    expected = []
    sampler = SizeBatchSampler(sizes, 64)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    sampler.set_epoch(0)
    for place in range(2 * len(sampler)):
        other = SizeBatchSampler(sizes, 64)
        other.load_state_dict(copy.deepcopy(sampler.state_dict()))
        rest = list(other)
        assert rest == expected[place : (place // len(sampler) + 1) * len(sampler)]
        sampler.advance()
    assert (sampler.epoch, sampler.batch) == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_counts_what_it_hands_out(workers):
    frames = Frames(20)
    sizes = torch.tensor([frame.num_nodes for frame in frames])
    loader = GraphLoader(frames, SizeBatchSampler(sizes, 16), num_workers=workers)
    whole = [batch.energy.tolist() for batch in loader]
    assert loader.state_dict()["epoch"] == 1
    loader.sampler.set_epoch(0)
    iterator = iter(loader)
    first = [next(iterator).energy.tolist() for _ in range(3)]
    state = loader.state_dict()
    assert state["batch"] == 3
    other = GraphLoader(frames, SizeBatchSampler(sizes, 16), num_workers=workers)
    other.load_state_dict(state)
    assert first + [batch.energy.tolist() for batch in other] == whole


def test_settings_may_change_between_epochs_only():
    sampler = SizeBatchSampler(draw_sizes(), 64)
    state = sampler.state_dict()
    SizeBatchSampler(draw_sizes(), 100, world_size=2).load_state_dict(state)
    sampler.advance()
    state = sampler.state_dict()
    for other, name in (
        (SizeBatchSampler(draw_sizes(), 100), "max_size"),
        (SizeBatchSampler(draw_sizes(), 64, world_size=2), "world_size"),
        (SizeBatchSampler(draw_sizes(seed=1), 64), "total_size"),
        (SizeBatchSampler(draw_sizes(), 64, seed=1), "seed"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` was"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    "sizes, kwargs, message",
    [
        ([3, 11, 2], {}, "`max_size` = 10 must hold each graph, got one of size 11 at index 1"),
        ([3], {"world_size": 2}, "`sizes` must hold at least one graph for each of 2 processes"),
        ([3.0], {}, r"`sizes` must be integers of shape \[G\], got torch.float32 \[1\]"),
        ([3, 4], {"rank": 2, "world_size": 2}, r"`rank` must lie in 0..1, got 2"),
        ([9] * 5, {"world_size": 2}, "cannot be shared among 2 processes evenly"),
    ],
)
def test_bad_arguments(sizes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SizeBatchSampler(torch.tensor(sizes), 10, **kwargs)


class Kept(InMemoryDataset):
    def __init__(self, frames, transform=None):
        super().__init__(None, transform)
        self._data, self.slices = self.collate(frames)


def test_sizes():
    frames = Frames(8)
    atoms = torch.tensor([frame.num_nodes for frame in frames])
    with_edges = [RadiusGraph(2.0)(frame) for frame in frames]
    edges = torch.tensor([frame.num_edges for frame in with_edges])
    chosen = torch.tensor([6, 1, 3])
    for dataset, expected in (
        (frames, atoms),
        (Kept(frames.frames), atoms),
        (Kept(frames.frames)[chosen], atoms[chosen]),
        (Subset(Kept(frames.frames), chosen.tolist()), atoms[chosen]),
    ):
        assert torch.equal(graph_sizes(dataset, "atoms"), expected)
        assert torch.equal(graph_sizes(dataset, "graphs"), torch.ones_like(expected))
    for dataset, expected in (
        (Kept(with_edges), edges),
        (Kept(with_edges)[chosen], edges[chosen]),
        (Kept(frames.frames, RadiusGraph(2.0)), edges),
        # Those that are kept are not those that the model gets.
        (Kept([RadiusGraph(5.0)(frame) for frame in frames], RadiusGraph(2.0)), edges),
    ):
        assert torch.equal(graph_sizes(dataset, "edges"), expected)
    with pytest.raises(ValueError, match="`edge_index` for their edges to be counted"):
        graph_sizes(frames, "edges")


def test_sizes_that_a_dataset_gives():
    class Known(Frames):
        num_atoms = torch.arange(3, 33, dtype=torch.int32)

        def __getitem__(self, index: int) -> Data:
            raise AssertionError("it must not be read")

    assert graph_sizes(Known(), "atoms").tolist() == list(range(3, 33))
    assert graph_sizes(Subset(Known(), [4, 0]), "atoms").tolist() == [7, 3]
    with pytest.raises(ValueError, match=r"`num_atoms` of the dataset must have shape \[29\]"):
        graph_sizes(Known(29), "atoms")


def test_sizes_are_kept(tmp_path):
    """Those of files that change are counted again."""
    raw = tmp_path / "raw.txt"
    reads = []

    class OnDisk(Dataset):
        raw_paths = (str(raw),)
        processed_file_names = ()

        def len(self) -> int:
            return int(raw.read_text())

        def get(self, idx: int) -> Data:
            reads.append(idx)
            return Data(z=torch.ones(idx + 1, dtype=torch.long))

    for count, expected in ((4, 4), (4, 0), (6, 6)):
        if not raw.exists() or raw.read_text() != str(count):
            raw.write_text(str(count))
        reads.clear()
        dataset = OnDisk(str(tmp_path))
        assert graph_sizes(dataset, "atoms").tolist() == list(range(1, count + 1))
        assert len(reads) == expected
    reads.clear()
    assert graph_sizes(dataset[2:4], "atoms").tolist() == [3, 4]
    assert graph_sizes(Subset(dataset, [5]), "atoms").tolist() == [6]
    assert reads == [2, 3]

import copy
import pickle

import pytest
import torch
from torch_geometric import EdgeIndex

from e2former_pyg.graph import CSRNeighborhood


def random_edges(num_sources=13, num_targets=9, num_edges=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(num_sources, (num_edges,), generator=generator)
    target = torch.randint(num_targets, (num_edges,), generator=generator)
    return torch.stack((source, target))


def sort_by_target(edge_index):
    return edge_index[:, edge_index[1].argsort(stable=True)].contiguous()


def check(neighborhood, edge_index):
    """Compares with lists made in plain Python, edge by edge."""
    expected = [[] for _ in range(neighborhood.num_targets)]
    for edge, (source, target) in enumerate(edge_index.t().tolist()):
        expected[target].append((source, edge))
    perm = neighborhood.perm
    if perm is None:
        perm = torch.arange(neighborhood.num_edges)
    ptr = neighborhood.rowptr.tolist()
    slots = list(zip(neighborhood.col.tolist(), perm.tolist(), strict=True))
    assert [slots[ptr[i] : ptr[i + 1]] for i in range(neighborhood.num_targets)] == expected
    assert neighborhood.degree.tolist() == [len(row) for row in expected]
    assert neighborhood.row.tolist() == edge_index[1][perm].tolist()
    for name in ("rowptr", "col", "row", "degree"):
        assert getattr(neighborhood, name).dtype == torch.int32
    assert neighborhood.perm is None or neighborhood.perm.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_unsorted(dtype):
    edge_index = random_edges().to(dtype)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (13, 9))
    check(neighborhood, edge_index)
    assert neighborhood.perm is not None
    assert (neighborhood.num_sources, neighborhood.num_targets) == (13, 9)
    assert str(neighborhood) == (
        "CSRNeighborhood(num_targets=9, num_sources=13, num_edges=60, device='cpu')"
    )


def test_sorted_needs_no_permutation():
    edge_index = sort_by_target(random_edges())
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (13, 9))
    check(neighborhood, edge_index)
    assert neighborhood.perm is None


def test_transpose():
    edge_index = random_edges()
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (13, 9))
    transpose = neighborhood.transpose()
    assert transpose is neighborhood.transpose()
    slots = torch.stack((neighborhood.row, neighborhood.col)).long()
    check(transpose, slots)
    assert (transpose.num_sources, transpose.num_targets) == (9, 13)


@pytest.mark.parametrize("size", [None, 0, 4, (0, 3), (3, 0)])
def test_no_edges(size):
    edge_index = torch.empty(2, 0, dtype=torch.int64)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, size)
    check(neighborhood, edge_index)
    check(neighborhood.transpose(), edge_index)
    sources, targets = size if isinstance(size, tuple) else (size or 0, size or 0)
    assert (neighborhood.num_sources, neighborhood.num_targets) == (sources, targets)


def test_self_loops_multi_edges_and_isolated_targets():
    edge_index = torch.tensor([[2, 2, 5, 2, 0], [2, 2, 0, 0, 5]])
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, 8)
    check(neighborhood, edge_index)
    assert neighborhood.degree.tolist() == [2, 0, 2, 0, 0, 1, 0, 0]


def test_not_contiguous():
    edge_index = random_edges().t().contiguous().t()
    assert not edge_index.is_contiguous()
    check(CSRNeighborhood.from_edge_index(edge_index, (13, 9)), edge_index)


def test_size_is_inferred():
    edge_index = torch.tensor([[0, 6], [3, 1]])
    neighborhood = CSRNeighborhood.from_edge_index(edge_index)
    assert (neighborhood.num_sources, neighborhood.num_targets) == (7, 7)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (9, None))
    assert (neighborhood.num_sources, neighborhood.num_targets) == (9, 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("sort_order", [None, "row", "col"])
def test_edge_index(sort_order, fill, dtype):
    data = random_edges().to(dtype)
    if sort_order is not None:
        data = data[:, data[0 if sort_order == "row" else 1].argsort(stable=True)].contiguous()
    edge_index = EdgeIndex(data, sparse_size=(13, 9), sort_order=sort_order)
    if fill:
        edge_index.fill_cache_()
    neighborhood = CSRNeighborhood.from_edge_index(edge_index)
    check(neighborhood, data)
    assert (neighborhood.num_sources, neighborhood.num_targets) == (13, 9)
    # The size asked for wins over the cached pointers.
    check(CSRNeighborhood.from_edge_index(edge_index, (20, 30)), data)


def test_edge_index_cache():
    edge_index = EdgeIndex(sort_by_target(random_edges()), sparse_size=(13, 9), sort_order="col")
    neighborhood = CSRNeighborhood.from_edge_index(edge_index)
    assert CSRNeighborhood.from_edge_index(edge_index) is neighborhood
    assert CSRNeighborhood.from_edge_index(edge_index, (14, 9)).num_sources == 14

    for other in (copy.deepcopy(edge_index), pickle.loads(pickle.dumps(edge_index))):
        assert isinstance(other, EdgeIndex)
        assert CSRNeighborhood.from_edge_index(other) is not neighborhood
        check(CSRNeighborhood.from_edge_index(other), other.as_tensor())

    flipped = edge_index.flip(0)
    check(CSRNeighborhood.from_edge_index(flipped), flipped.as_tensor())


@pytest.mark.parametrize("view", [False, True])
def test_edge_index_cache_notices_changes_in_place(view):
    edge_index = EdgeIndex(sort_by_target(random_edges()), sparse_size=(20, 20), sort_order="col")
    assert CSRNeighborhood.from_edge_index(edge_index).col.max() < 13
    (edge_index.as_tensor() if view else edge_index).add_(7)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, 27)
    check(neighborhood, edge_index.as_tensor())
    assert neighborhood.col.min() >= 7


def test_edge_index_in_inference_mode():
    with torch.inference_mode():
        edge_index = EdgeIndex(random_edges(), sparse_size=(13, 9))
        check(CSRNeighborhood.from_edge_index(edge_index), edge_index.as_tensor())
        edge_index.as_tensor().zero_()
        check(CSRNeighborhood.from_edge_index(edge_index), edge_index.as_tensor())


def test_pickle_and_to():
    neighborhood = CSRNeighborhood.from_edge_index(random_edges(), (13, 9))
    neighborhood.transpose()
    check(pickle.loads(pickle.dumps(neighborhood)), random_edges())
    check(copy.deepcopy(neighborhood), random_edges())
    assert neighborhood.to("cpu") is neighborhood
    assert neighborhood.to("meta").rowptr.device.type == "meta"


def test_compiles_in_one_graph():
    edge_index = sort_by_target(random_edges())

    def rowptr(edge_index):
        return CSRNeighborhood.from_edge_index(edge_index, (13, 9)).rowptr

    compiled = torch.compile(rowptr, backend="eager", fullgraph=True)
    assert torch.equal(compiled(edge_index), rowptr(edge_index))


@pytest.mark.parametrize(
    ("edge_index", "size", "message"),
    [
        ([[0, 5], [1, 2]], (5, 3), r"`edge_index`.* 5 in row 0.*\[0, 5\)"),
        ([[0, 4], [1, 3]], (5, 3), r"`edge_index`.* 3 in row 1.*\[0, 3\)"),
        ([[0, -1], [1, 2]], None, r"`edge_index`.* -1 in row 0"),
        ([[0, 1], [1, -2]], (2, 2), r"`edge_index`.* -2 in row 1"),
    ],
)
def test_index_out_of_range(edge_index, size, message):
    with pytest.raises(IndexError, match=message):
        CSRNeighborhood.from_edge_index(torch.tensor(edge_index), size)


def test_bad_input():
    build = CSRNeighborhood.from_edge_index
    with pytest.raises(TypeError, match=r"`edge_index`.*float32"):
        build(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"`edge_index`.*list"):
        build([[0], [1]])
    with pytest.raises(ValueError, match=r"`edge_index`.*\[2, num_edges\].*\[3, 2\]"):
        build(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`edge_index`.*sort_order='col'"):
        build(EdgeIndex([[0, 1], [1, 0]], sort_order="col"))
    for size in (-1, (1, 2, 3), "ab", 2**31):
        with pytest.raises(ValueError, match="`size`"):
            build(torch.zeros(2, 3, dtype=torch.int64), size)


@pytest.mark.parametrize("sparse_size", [(6, 3), (5, 4), (None, 4), (6, None)])
def test_sparse_size_that_contradicts_the_size(sparse_size):
    edge_index = EdgeIndex([[0, 1], [1, 0]], sparse_size=sparse_size)
    with pytest.raises(ValueError, match=r"`edge_index`.*sparse_size=.*\(5, 3\)"):
        CSRNeighborhood.from_edge_index(edge_index, (5, 3))


@pytest.mark.parametrize("sparse_size", [(None, None), (5, None), (None, 3), (5, 3), (2, 2)])
def test_sparse_size_that_fits_the_size(sparse_size):
    edge_index = EdgeIndex([[0, 1], [1, 0]], sparse_size=sparse_size)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (5, 3))
    assert (neighborhood.num_sources, neighborhood.num_targets) == (5, 3)

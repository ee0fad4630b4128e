"""How rows are shared between the programs that collect radial gradients."""

import pytest
import torch

triton = pytest.importorskip("triton")
spans = pytest.importorskip("e2former_pyg.kernels.spans")


@triton.jit
def rows_kernel(firsts, out, num_types, span):
    program = triton.language.program_id(0).to(triton.language.int64)
    start, stop = spans.rows_of(program, firsts, num_types, span)
    triton.language.store(out + 2 * program, start)
    triton.language.store(out + 2 * program + 1, stop)


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="tensors on the CPU")
@pytest.mark.parametrize("ordered", [False, True])
def test_every_row_has_one_program_of_its_type(ordered):
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(5, (1000,), generator=generator)
    types[types == 3] = 2  # one without rows
    given = torch.randperm(1000, generator=generator).int() if ordered else None
    order, firsts = spans.by_type(types, given, 5)
    bounds = torch.empty(1000 // 7 + 6, 2, dtype=torch.int64)
    rows_kernel[(len(bounds),)](firsts, bounds, 5, 7)

    kinds, visited = [], []
    for start, stop in bounds.tolist():
        rows = order[start:stop].long()
        assert stop - start <= 7 and types[rows].unique().numel() <= 1
        visited.append(rows)
        kinds += types[rows[:1]].tolist()
    assert torch.equal(torch.cat(visited).sort().values, torch.arange(1000))

    slabs = torch.randn(len(bounds), 3, 100, generator=generator)
    like = torch.empty(5, 3, 100)
    shares = spans.Spans(len(bounds), 7, firsts, None, slabs)
    expected = torch.zeros_like(like).index_add(0, torch.tensor(kinds), slabs[: len(kinds)])
    torch.testing.assert_close(shares.total(like), expected)

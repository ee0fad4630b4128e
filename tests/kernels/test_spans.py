"""How rows are shared between the programs that collect radial gradients."""

import pytest
import torch

spans = pytest.importorskip("e2former_pyg.kernels.spans")


def arranged(types, order, num_types=5, span=7):
    return spans._by_type(types, order, num_types, span)


@pytest.mark.parametrize("ordered", [False, True])
def test_every_row_has_one_program_of_its_type(ordered):
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(5, (1000,), generator=generator)
    types[types == 3] = 2  # one without rows
    given = torch.randperm(1000, generator=generator).int() if ordered else None
    order, bounds, kind = arranged(types, given)
    visited = []
    for (start, stop), of in zip(bounds.tolist(), kind.tolist(), strict=True):
        rows = order[start:stop].long()
        assert stop - start <= 7 and (types[rows] == of).all()
        visited.append(rows)
    assert torch.equal(torch.cat(visited).sort().values, torch.arange(1000))

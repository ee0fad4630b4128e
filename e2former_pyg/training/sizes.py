"""The sizes of the graphs of a dataset, read as cheaply as it allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_geometric.data import Data, InMemoryDataset

KEYS = {"atoms": "z", "edges": "edge_index"}


def graph_sizes(dataset: Any, count: str) -> Tensor:
    r"""The number of atoms or edges of each graph.

    A dataset may give its :obj:`num_atoms` (an integer tensor, one entry for each graph) itself.
    Those in memory know them; of others each graph is read once.

    Args:
        dataset (Dataset): The graphs.
        count (str): :obj:`"atoms"`, :obj:`"edges"` or :obj:`"graphs"`, which is one each.
    """
    if count == "graphs":
        return torch.ones(len(dataset), dtype=torch.long)
    if isinstance(dataset, Subset):
        return graph_sizes(dataset.dataset, count)[torch.as_tensor(dataset.indices)]
    key = KEYS[count]
    # Edges that a transform makes are not those that are kept.
    kept = isinstance(dataset, InMemoryDataset) and (count == "atoms" or dataset.transform is None)
    if kept and dataset.slices is not None and key in dataset.slices:
        sizes = torch.as_tensor(dataset.slices[key]).diff()
        return sizes[torch.as_tensor(list(dataset.indices()))]
    known = getattr(dataset, "num_atoms", None)
    if count == "atoms" and isinstance(known, Tensor):
        if known.shape != (len(dataset),):
            raise ValueError(
                f"`num_atoms` of the dataset must have shape [{len(dataset)}], "
                f"got {list(known.shape)}"
            )
        return known.long()
    return torch.tensor([_size(dataset[index], count, index) for index in range(len(dataset))])


def _size(data: Data, count: str, index: int) -> int:
    value = data.get(KEYS[count])
    if value is None:
        raise ValueError(
            f"`dataset` must hold graphs with `{KEYS[count]}` for their {count} to be counted, "
            f"found {sorted(data.keys())} at index {index}"
        )
    return value.size(-1)

"""The sizes of the graphs of a dataset, read as cheaply as it allows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_geometric.data import Data, Dataset, InMemoryDataset

from ..data.cache import cached, processed_name

KEYS = {"atoms": "z", "edges": "edge_index"}


def graph_sizes(dataset: Any, count: str) -> Tensor:
    r"""The number of atoms or edges of each graph.

    A dataset may give its :obj:`num_atoms` (an integer tensor, one entry for each graph) itself.
    Those in memory know them. Of others each graph is read once; numbers of atoms are kept in the
    :obj:`processed` folder of datasets that have a :obj:`root`.

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
    place = _place(dataset) if count == "atoms" else None
    return cached(place, partial(_read, dataset, count), force_reload=False)


def _place(dataset: Any) -> Path | None:
    """Where numbers of atoms are kept: by the files that the graphs come from."""
    whole = isinstance(dataset, Dataset) and dataset._indices is None
    if not whole or getattr(dataset, "root", None) is None or not dataset.raw_paths:
        return None
    files = [Path(path) for path in dataset.raw_paths]
    if not all(file.is_file() for file in files):
        return None
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = {
        "sizes": type(dataset).__name__,
        "length": len(dataset),
        "processed": dataset.processed_file_names,
        "raw": stats,
    }
    return Path(dataset.processed_dir) / processed_name(files[0], settings)


def _read(dataset: Any, count: str) -> Tensor:
    return torch.tensor([_size(dataset[index], count, index) for index in range(len(dataset))])


def _size(data: Data, count: str, index: int) -> int:
    value = data.get(KEYS[count])
    if value is None:
        raise ValueError(
            f"`dataset` must hold graphs with `{KEYS[count]}` for their {count} to be counted, "
            f"found {sorted(data.keys())} at index {index}"
        )
    return value.size(-1)

"""A data loader that goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from .sampler import SizeBatchSampler


class GraphLoader:
    r"""Loads the batches of a :class:`SizeBatchSampler`, from its place in the epoch onwards.

    It is no :class:`~torch.utils.data.DataLoader` but makes one, so that Lightning does not put a
    sampler of its own into it. A batch counts as used when it is handed out, not when a worker
    has prepared it.

    Args:
        dataset (torch.utils.data.Dataset): The graphs.
        sampler (SizeBatchSampler): Which graphs make a batch.
        keep_place (bool, optional): If set to :obj:`False`, each iteration starts at the
            beginning of the epoch, as validations do. (default: :obj:`True`)
        **kwargs (optional): Additional arguments of :class:`torch_geometric.loader.DataLoader`,
            such as :obj:`num_workers`.
    """

    def __init__(
        self, dataset: Any, sampler: SizeBatchSampler, keep_place: bool = True, **kwargs: Any
    ) -> None:
        self.dataset = dataset
        self.keep_place = keep_place
        self.num_workers = kwargs.get("num_workers", 0)
        # Lightning sets the epoch of the first and looks at both for their kind.
        self.sampler = self.batch_sampler = sampler
        # Workers draw their seeds from a generator of their own, so that making them anew after a
        # restart leaves the other random numbers alone.
        self.generator = torch.Generator()
        self.loader = DataLoader(dataset, batch_sampler=sampler, generator=self.generator, **kwargs)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self.generator.manual_seed(hash((self.sampler.seed, self.sampler.epoch)))
        for batch in self.loader:
            if self.keep_place:
                self.sampler.advance()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, to go on from."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Ends persistent workers; the garbage collector waits seconds for each."""
        iterator = self.loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            self.loader._iterator = None

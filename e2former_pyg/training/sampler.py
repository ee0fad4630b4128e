"""Batches of graphs that are bounded by their atoms or edges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

TRIALS = 8
"""Orders that are tried to find how many batches an epoch needs."""


class SizeBatchSampler(Sampler[list[int]]):
    r"""Draws batches of graphs of which none is larger than :obj:`max_size`, in atoms, edges or
    whatever the sizes count.

    Each epoch has every graph exactly once and the same number of batches, a multiple of
    :obj:`world_size` of which each process gets its share: graphs are packed in random order, and
    where this takes fewer batches than other epochs do, the largest ones are halved.

    The place in the epoch is its state: :meth:`advance` moves it on by one batch, and iteration
    starts there.

    Args:
        sizes (torch.Tensor): The size of each graph, :math:`(G)`.
        max_size (int): The largest sum of sizes in a batch.
        shuffle (bool, optional): If set to :obj:`False`, graphs keep their order, and batch
            :math:`i` goes to process :math:`i \bmod W`, without being halved to equal numbers.
            (default: :obj:`True`)
        seed (int, optional): Seed of the order, together with the epoch. (default: :obj:`0`)
        rank (int, optional): The index of this process. (default: :obj:`0`)
        world_size (int, optional): The number of processes. (default: :obj:`1`)

    Raises:
        ValueError: If a graph is larger than :obj:`max_size`, or there are fewer graphs than
            processes.
    """

    def __init__(
        self,
        sizes: Tensor,
        max_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        sizes = torch.as_tensor(sizes)
        if sizes.dim() != 1 or sizes.is_floating_point():
            raise ValueError(
                f"`sizes` must be integers of shape [G], got {sizes.dtype} {list(sizes.shape)}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must lie in 0..{world_size - 1}, got {rank}")
        if sizes.numel() < world_size:
            raise ValueError(
                f"`sizes` must hold at least one graph for each of {world_size} processes, "
                f"got {sizes.numel()}"
            )
        largest = int(sizes.argmax())
        if int(sizes[largest]) > max_size:
            raise ValueError(
                f"`max_size` = {max_size} must hold each graph, got one of size "
                f"{int(sizes[largest])} at index {largest}"
            )
        self.sizes = sizes.cpu().numpy().astype(np.int64)
        self.max_size = max_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.batch = 0
        if shuffle:
            needed = max(len(self._pack(self._order(0, trial))) for trial in range(TRIALS))
            self.num_batches = -(-needed // world_size) * world_size
            if self.num_batches > len(self.sizes):  # a rest of single graphs cannot be shared
                raise ValueError(
                    f"`sizes`: {len(self.sizes)} graphs in batches of {max_size} cannot be shared "
                    f"among {world_size} processes evenly; raise `max_size` or leave graphs out"
                )
        else:
            self.num_batches = max(len(self._pack(np.arange(len(self.sizes)))), world_size)

    def __len__(self) -> int:
        """The number of batches of this process in an epoch."""
        return len(range(self.rank, self.num_batches, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        start = self.rank + self.batch * self.world_size
        for batch in self.global_batches(self.epoch)[start :: self.world_size]:
            yield batch.tolist()

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of all processes in an epoch."""
        if not self.shuffle:
            return self._split(self._pack(np.arange(len(self.sizes))), self.num_batches)
        for trial in itertools.count():
            # A tried order always fits in the end, but hardly ever must.
            order = self._order(epoch, trial) if trial < 100 else self._order(0, trial % TRIALS)
            batches = self._pack(order)
            if len(batches) <= self.num_batches:
                break
        batches = self._split(batches, self.num_batches)
        shuffled = self._generator(epoch, TRIALS + trial).permutation(len(batches))
        return [batches[index] for index in shuffled]

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, unless it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def advance(self) -> None:
        """Goes to the next batch, which may be the first of the next epoch."""
        self.batch += 1
        if self.batch >= len(self):
            self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The place, and what has to be the same for it to mean the same."""
        return {"epoch": self.epoch, "batch": self.batch, "settings": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place of :meth:`state_dict`.

        Raises:
            ValueError: If that is amid an epoch with other batches than here.
        """
        settings = self._settings()
        if state["batch"] > 0 and state["settings"] != settings:
            changed = [key for key in settings if state["settings"].get(key) != settings[key]]
            raise ValueError(
                "a run can go on amid an epoch only with the same batches; "
                + ", ".join(
                    f"`{key}` was {state['settings'].get(key)}, got {settings[key]}"
                    for key in changed
                )
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def _settings(self) -> dict[str, int | bool]:
        return {
            "num_graphs": len(self.sizes),
            "total_size": int(self.sizes.sum()),
            "max_size": self.max_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "world_size": self.world_size,
        }

    def _generator(self, epoch: int, trial: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, trial])

    def _order(self, epoch: int, trial: int) -> np.ndarray:
        return self._generator(epoch, trial).permutation(len(self.sizes))

    def _pack(self, order: np.ndarray) -> list[np.ndarray]:
        """Cuts an order where the next graph would not fit any more."""
        ends = np.cumsum(self.sizes[order])
        cuts, filled = [0], 0
        while cuts[-1] < len(order):
            # Graphs of size zero fit everywhere.
            cut = int(np.searchsorted(ends, filled + self.max_size, side="right"))
            filled = int(ends[cut - 1])
            cuts.append(cut)
        return [order[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _split(self, batches: list[np.ndarray], number: int) -> list[np.ndarray]:
        """Halves batches of the most graphs until there are so many."""
        while len(batches) < number:
            most = max(range(len(batches)), key=lambda index: len(batches[index]))
            batch = batches[most]
            middle = len(batch) // 2
            batches[most : most + 1] = [batch[:middle], batch[middle:]]
        return batches

r"""The data of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset, Subset

from .loader import GraphLoader
from .sampler import SizeBatchSampler
from .sizes import graph_sizes

Source = Callable[[], Dataset]


class GraphDataModule(LightningDataModule):
    r"""Batches of the graphs of any dataset, of :mod:`e2former_pyg.data` or of
    :mod:`torch_geometric.datasets`, each bounded by one of :obj:`max_atoms`, :obj:`max_edges` and
    :obj:`batch_size`.

    Datasets are given as functions that make them, such as
    :obj:`lambda: NPZDataset("molecules.npz")`, so that one process processes or downloads files
    before the others read them; a dataset itself, or a list of graphs, serves as well. Without
    :obj:`val` or :obj:`test`, these can be taken from the training set at random.

    Args:
        train (callable or Dataset, optional): The training set. (default: :obj:`None`)
        val (callable or Dataset, optional): The validation set. (default: :obj:`None`)
        test (callable or Dataset, optional): The test set. (default: :obj:`None`)
        predict (callable or Dataset, optional): What to predict.
            (default: :obj:`None`, the test set)
        train_size (int or float, optional): How many graphs of :obj:`train` to train on, or which
            part of them. (default: :obj:`None`, all others)
        val_size (int or float, optional): How many, or which part, to validate on.
            (default: :obj:`0`)
        test_size (int or float, optional): How many, or which part, to test on.
            (default: :obj:`0`)
        max_atoms (int, optional): The most atoms in a batch of one process.
            (default: :obj:`None`)
        max_edges (int, optional): The most edges in a batch of one process. The graphs must have
            edges. (default: :obj:`None`)
        batch_size (int, optional): The number of graphs in a batch of one process.
            (default: :obj:`None`)
        eval_factor (float, optional): How many times larger batches are in validation, tests and
            predictions, which keep less. (default: :obj:`1.0`)
        seed (int, optional): Seed of the split and of the order. (default: :obj:`0`)
        num_workers (int, optional): Processes that load data. (default: :obj:`0`)
        pin_memory (bool, optional): If set to :obj:`True`, copies batches to pinned memory.
            (default: :obj:`False`)
    """

    def __init__(
        self,
        train: Source | Dataset | None = None,
        val: Source | Dataset | None = None,
        test: Source | Dataset | None = None,
        predict: Source | Dataset | None = None,
        *,
        train_size: int | float | None = None,
        val_size: int | float = 0,
        test_size: int | float = 0,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        batch_size: int | None = None,
        eval_factor: float = 1.0,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        bounds = {"atoms": max_atoms, "edges": max_edges, "graphs": batch_size}
        given = {count: bound for count, bound in bounds.items() if bound is not None}
        if len(given) != 1:
            raise ValueError(
                "one of `max_atoms`, `max_edges` and `batch_size` must be given, "
                f"got {len(given)} of them"
            )
        ((self.count, self.bound),) = given.items()
        if train_size is not None and not train_size > 0:
            raise ValueError(f"`train_size` must be positive, got {train_size}")
        for name, source, size in (("val", val, val_size), ("test", test, test_size)):
            if source is not None and size:
                raise ValueError(f"`{name}_size` must be 0 with `{name}`, got {size}")
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.split_sizes = {"val": val_size, "test": test_size, "train": train_size}
        self.eval_factor = eval_factor
        self.seed = seed
        self.options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "persistent_workers": num_workers > 0,
        }
        self.datasets: dict[str, Any] = {}
        self.loaders: list[GraphLoader] = []

    def prepare_data(self) -> None:
        # On one process of each machine. What this makes stays on the disk alone, and is of use
        # if there are other processes.
        if self.trainer is not None and self.trainer.world_size == 1:
            return
        for source in self.sources.values():
            _made(source)

    def setup(self, stage: str) -> None:
        if self.datasets:
            return
        for name, source in self.sources.items():
            if source is not None:
                self.datasets[name] = _made(source)
        parts = {name: size for name, size in self.split_sizes.items() if size}
        if parts:
            if "train" not in self.datasets:
                raise ValueError(f"`train` must be given with sizes of parts of it, got {parts}")
            self.datasets.update(split(self.datasets["train"], parts, self.seed))
        self.datasets.setdefault("predict", self.datasets.get("test"))

    def train_dataloader(self) -> GraphLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> GraphLoader | list:
        # Training needs no validation.
        return self._loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> GraphLoader:
        return self._loader("test")

    def predict_dataloader(self) -> GraphLoader:
        return self._loader("predict")

    def _loader(self, name: str, shuffle: bool = False) -> GraphLoader:
        dataset = self.datasets.get(name)
        if dataset is None:
            raise ValueError(f"`{name}` must be given, found no such dataset")
        sizes = graph_sizes(dataset, self.count)
        bound = self.bound if shuffle else int(self.bound * self.eval_factor)
        trainer = self.trainer
        sampler = SizeBatchSampler(
            sizes,
            bound,
            shuffle=shuffle,
            seed=self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )
        self.loaders.append(GraphLoader(dataset, sampler, keep_place=shuffle, **self.options))
        return self.loaders[-1]

    def teardown(self, stage: str) -> None:
        while self.loaders:
            self.loaders.pop().close()


def _made(source: Any) -> Any:
    """The dataset that a source makes or is."""
    return source() if callable(source) and not isinstance(source, Dataset) else source


def split(dataset: Any, sizes: dict[str, int | float], seed: int) -> dict[str, Subset]:
    r"""Cuts a dataset into disjoint parts at random.

    Args:
        dataset (Dataset): The graphs.
        sizes (dict): How many graphs, or which part of them, each gets. A :obj:`"train"` that is
            missing gets all others.
        seed (int): Seed of the draw.
    """
    total = len(dataset)
    counts = {
        name: round(size * total) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    counts.setdefault("train", total - sum(counts.values()))
    if min(counts.values()) < 1 or sum(counts.values()) > total:
        raise ValueError(
            "`train_size`, `val_size` and `test_size` must leave graphs for each part and not be "
            f"more than the {total} there are, got {counts}"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    parts, start = {}, 0
    for name, count in counts.items():
        parts[name] = Subset(dataset, sorted(order[start : start + count]))
        start += count
    return parts

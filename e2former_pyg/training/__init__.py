r"""Training with Lightning. Needs :obj:`pip install 'e2former-pyg[train]'`.

The command :obj:`e2former fit --config file.yaml` does all of it; here are its parts, for use in
programs. A run can be stopped or killed at any step and goes on from its last checkpoint as if it
had not been: with the same weights, averages, moments, order of the data and random numbers.
"""

try:
    import lightning as lightning
except ImportError as error:
    raise ImportError(
        "`lightning` is needed for training; install it by `pip install 'e2former-pyg[train]'`"
    ) from error

from .checkpoints import BestCheckpoint, LastCheckpoint, load_model
from .datamodule import GraphDataModule
from .ema import ExponentialAverage
from .loader import GraphLoader
from .module import E2FormerModule
from .predictions import PredictionWriter
from .property_module import E2FormerPropertyModule
from .sampler import SizeBatchSampler
from .traced_module import TracedE2FormerModule

__all__ = [
    "BestCheckpoint",
    "E2FormerModule",
    "E2FormerPropertyModule",
    "ExponentialAverage",
    "GraphDataModule",
    "GraphLoader",
    "LastCheckpoint",
    "PredictionWriter",
    "SizeBatchSampler",
    "TracedE2FormerModule",
    "load_model",
]

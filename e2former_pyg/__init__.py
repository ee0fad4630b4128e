r"""PyTorch Geometric layers for E2Former-V2: equivariant attention and convolution for atomistic
graphs, with cost and memory on the nodes.
"""

from . import data as data
from . import functional as functional
from . import graph as graph
from . import models as models
from . import nn as nn
from . import radial as radial
from . import so3 as so3
from . import tracing as tracing
from . import transforms as transforms
from ._version import __version__
from .models import E2Former, E2FormerPotential, E2FormerProperty, PotentialOutput
from .nn import E2FormerAttention, E2FormerBlock, E2FormerConv

__all__ = [
    "E2Former",
    "E2FormerAttention",
    "E2FormerBlock",
    "E2FormerConv",
    "E2FormerPotential",
    "E2FormerProperty",
    "PotentialOutput",
    "__version__",
]

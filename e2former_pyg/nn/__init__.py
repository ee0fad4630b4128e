r"""Equivariant layers for PyG models."""

from .attention import E2FormerAttention
from .block import E2FormerBlock
from .convolution import E2FormerConv
from .feed_forward import GatedFeedForward
from .invariants import BilinearInvariants
from .linear import DegreeLinear, PathLinear
from .norm import RMSNorm

__all__ = [
    "BilinearInvariants",
    "DegreeLinear",
    "E2FormerAttention",
    "E2FormerBlock",
    "E2FormerConv",
    "GatedFeedForward",
    "PathLinear",
    "RMSNorm",
]

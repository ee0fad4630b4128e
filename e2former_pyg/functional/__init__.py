r"""Operations on graphs: attention and convolution with node-sized memory."""

from .aggregation import aggregate
from .attention import equivariant_attention
from .convolution import equivariant_convolution
from .paths import Coupling, Path, coupling

__all__ = [
    "Coupling",
    "Path",
    "aggregate",
    "coupling",
    "equivariant_attention",
    "equivariant_convolution",
]

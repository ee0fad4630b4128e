r"""Models: backbone, potentials and properties."""

from .e2former import E2Former
from .inference import InferencePotential
from .potential import E2FormerPotential, PotentialOutput
from .property import E2FormerProperty
from .references import ElementReferences, ReferenceFit
from .repulsion import ZBLRepulsion

__all__ = [
    "E2Former",
    "E2FormerPotential",
    "E2FormerProperty",
    "ElementReferences",
    "InferencePotential",
    "PotentialOutput",
    "ReferenceFit",
    "ZBLRepulsion",
]

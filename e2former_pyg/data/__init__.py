r"""Datasets in PyG's style: graphs of atoms without edges, in eV and Å, read from files.

All check what they read: a record with shapes that disagree or with values that are not finite
raises a :class:`DamagedDataError` that names the file and the index of the record, or is skipped
and counted with :obj:`skip_damaged=True`. Processed files are written under a temporary name and
renamed, so that an interruption leaves none half-written. :class:`NPZDataset` and
:class:`ASEDataset` go on with long processing from what was done at most a minute before the
interruption, :class:`OMol25Dataset` looks for damage from the file that it was at, and
:class:`SPICEDataset` starts its check again. Edges are made by
:class:`~e2former_pyg.transforms.RadiusGraph`, as :obj:`transform` or :obj:`pre_transform`.
"""

from .ase_file import ASEDataset
from .npz import MD17_KEYS, REVISED_MD17_KEYS, NPZDataset
from .omol25 import OMol25Dataset
from .record import DamagedDataError
from .spice import SPICEDataset

__all__ = [
    "MD17_KEYS",
    "REVISED_MD17_KEYS",
    "ASEDataset",
    "DamagedDataError",
    "NPZDataset",
    "OMol25Dataset",
    "SPICEDataset",
]

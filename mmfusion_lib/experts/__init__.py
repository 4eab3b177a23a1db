"""Experts: what frozen networks see in a picture, as label maps (Prismer section 3.2, Table 1).

``labels`` says what a map is and keeps it on disk, ``geometry`` crops, flips and shifts a picture
and its maps together, ``tensors`` makes a batch, ``painting`` paints it on the device with the
vectors of ``label_table``, and ``from_scenes`` reads exact maps off generated scenes.
"""

from .geometry import Geometry
from .label_table import LabelTable
from .labels import EXPERTS, Expert, Kind, LabelMap, read_labels, write_labels
from .painting import low, paint
from .tensors import batch, host_bytes, to

__all__ = [
    "EXPERTS",
    "Expert",
    "Geometry",
    "Kind",
    "LabelMap",
    "LabelTable",
    "batch",
    "host_bytes",
    "low",
    "paint",
    "read_labels",
    "to",
    "write_labels",
]

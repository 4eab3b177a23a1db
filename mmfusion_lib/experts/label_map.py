"""Label maps: what an expert says about each pixel of a picture, and how that is checked.

Low-level experts measure (depth, normals, edges); semantic experts name (segmentation, detection,
words). Every map holds 8-bit integers: they travel so and are stored so. In semantic maps 255 is
"nothing".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

NOTHING = 255  # in semantic maps and in instance ids


@dataclass(frozen=True)
class Kind:
    """What the maps of an expert hold: integers 0 to 255.

    Attributes:
        semantic: True: numbers of classes or words, 0 to 254. False (low-level): measurements.
        meaning: of a value, in words.
        channels: 1, or 3 for normals.
        nothing: the value of a pixel of which nothing is known.
        classes: how many classes there are; None: the expert's name does not tell.
    """

    semantic: bool
    meaning: str
    channels: int = 1
    nothing: int = NOTHING
    classes: int | None = None


_SEGMENTATION = Kind(True, "number of a class")
EXPERTS = {
    "depth": Kind(False, "inverse depth from 0 = farthest to 255 = nearest", nothing=0),
    "normal": Kind(False, "(n + 1) / 2 of the unit normal n, from 0 to 255", 3, nothing=128),
    "edge": Kind(False, "0 = edge to 255 = no edge: dark lines on white"),
    "saliency": Kind(False, "0 = ignored to 255 = looked at", nothing=0),
    "seg_coco": Kind(True, "number of a COCO panoptic class", classes=133),
    "seg_ade": Kind(True, "number of an ADE20K class", classes=150),
    "seg_scenes": Kind(True, "number of a kind of object in generated scenes", classes=20),
    "obj_detection": Kind(True, "number of a class, and beside it the number of an instance"),
    "ocr_detection": Kind(True, "number of a word of this picture"),
}


def kind_of(expert: str) -> Kind:
    """What the named expert's maps hold; any name with "seg" in it is a segmentation.

    Raises:
        InputError: no such expert.
    """
    if expert in EXPERTS:
        return EXPERTS[expert]
    if "seg" in expert:
        return _SEGMENTATION
    raise InputError(
        f"There is no expert {expert!r}: use one of {', '.join(EXPERTS)}, or a name with 'seg'."
    )


class Expert(Protocol):
    """A frozen network (or an exact source) that turns pictures into label maps.

    Attributes:
        name: of the expert, as in ``EXPERTS``.
        model, licence: what runs, and on which terms.
        megabytes: memory that it needs.
    """

    name: str
    model: str
    licence: str
    megabytes: float

    def __call__(self, images: list[Image]) -> list[LabelMap]:
        """RGB pictures -> one map each, of the picture's own size."""
        ...


@dataclass(frozen=True, eq=False)
class LabelMap:
    """What one expert says about one picture.

    Attributes:
        expert: its name, see ``kind_of``.
        map: (H, W) uint8, or (H, W, 3) for normals. Of a detection the classes: uint16, with 65535
            as nothing, where a class number is above 254.
        instances: (H, W) uint8, only and always of a detection: instance ids, 255 = none.
        names: what the numbers stand for: class of each id of ``map``, text of each word; of a
            detection, class of each id of ``instances``. Always given for words.

    Raises:
        InputError: unknown expert, wrong type or shape, or instances where none belong. The values
            are looked at by ``check``.
    """

    expert: str
    map: np.ndarray = field(repr=False)
    instances: np.ndarray | None = field(default=None, repr=False)
    names: dict[int, str] | None = None

    def __post_init__(self):
        kind, found = kind_of(self.expert), np.asarray(self.map)
        detection = self.expert == "obj_detection"
        where = f"The map of {self.expert}"
        if found.dtype != np.uint8 and not (detection and found.dtype == np.uint16):
            span = f", {found.min()} to {found.max()}" if found.size else ""
            raise InputError(f"{where} holds {found.dtype}{span}: give uint8, 0 to 255.")
        tail = (3,) if kind.channels == 3 else ()
        if found.ndim != 2 + len(tail) or found.shape[2:] != tail or found.size == 0:
            shape = "(H, W, 3)" if tail else "(H, W)"
            raise InputError(f"{where} has shape {found.shape}: give {shape}.")
        if detection != (self.instances is not None):
            raise InputError(
                f"{where} comes {'without' if detection else 'with'} instances: give them for "
                "obj_detection, and for nothing else."
            )
        if detection and (self.instances.dtype, self.instances.shape) != (np.uint8, found.shape):
            raise InputError(
                f"{where} has shape {found.shape} but its instances are {self.instances.dtype} of "
                f"{self.instances.shape}: give uint8 of the same shape."
            )
        if self.expert == "ocr_detection" and self.names is None:
            raise InputError(f"{where} comes without names: give the text of each word, or {{}}.")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.map.shape[1], self.map.shape[0]


def nothing(expert: str, size: tuple[int, int] = (1, 1)) -> LabelMap:
    """The map, (width, height), of an expert that has nothing to say."""
    kind = kind_of(expert)
    shape = (size[1], size[0], 3) if kind.channels == 3 else (size[1], size[0])
    instances = np.full(shape, NOTHING, np.uint8) if expert == "obj_detection" else None
    names = {} if expert in ("obj_detection", "ocr_detection") else None
    return LabelMap(expert, np.full(shape, kind.nothing, np.uint8), instances, names)


def check(
    labels: LabelMap,
    image_size: tuple[int, int] | None = None,
    classes: int | None = None,
    where: str = "",
) -> None:
    """Look at the values of a map.

    Args:
        labels: the map.
        image_size: (width, height) of its picture; None: not compared.
        classes: how many classes there are; None: as many as ``kind_of`` knows of.
        where: what an error calls the map; a file, say.

    Raises:
        InputError: another size than the picture's, a class that does not exist, an id without a
            name, or instances at odds with the classes.
    """
    kind, where = kind_of(labels.expert), where or f"The map of {labels.expert}"
    if image_size is not None and labels.size != tuple(image_size):
        raise InputError(
            f"{where} is {labels.size[0]} x {labels.size[1]} pixels but its picture is "
            f"{image_size[0]} x {image_size[1]}: make the labels anew from this picture."
        )
    if not kind.semantic:
        return
    empty = np.iinfo(labels.map.dtype).max
    ids = np.unique(labels.map[labels.map != empty])
    known = kind.classes if classes is None else classes
    if known is not None and labels.expert != "ocr_detection" and ids.size and ids[-1] >= known:
        raise InputError(
            f"{where} holds class {ids[-1]} but {labels.expert} has {known} classes: use 0 to "
            f"{known - 1}, and 255 for nothing."
        )
    if labels.instances is not None:
        ids = _instances(labels, empty, where)
    for number in ids.tolist() if labels.names is not None else ():
        if number not in labels.names:
            what = "instance" if labels.instances is not None else "number"
            raise InputError(
                f"{where} holds {what} {number}, which has no name: add one, or make it 255."
            )


def class_of_instance(labels: LabelMap) -> dict[int, int]:
    """Class number of each instance that has a pixel, by instance id, ascending."""
    there = labels.instances != NOTHING
    ids, first = np.unique(labels.instances[there], return_index=True)
    return dict(zip(ids.tolist(), labels.map[there][first].tolist()))


def _instances(labels: LabelMap, empty: int, where: str) -> np.ndarray:
    """The instance ids of a detection, each of which must have one class."""
    pairs = np.unique(labels.instances.astype(np.int32) << 16 | labels.map)
    ids, classes = pairs >> 16, pairs & 0xFFFF
    odd = ids[(ids == NOTHING) != (classes == empty)]
    odd = odd if odd.size else ids[1:][ids[1:] == ids[:-1]]
    if odd.size:
        raise InputError(
            f"{where}: the pixels of instance {odd[0]} have more than one class, or none: give "
            "each instance one class, and 255 in both maps where there is nothing."
        )
    return ids[ids != NOTHING]

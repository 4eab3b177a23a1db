"""Crop, flip and shift of a picture and its label maps together, in relative units.

All lengths are shares of the picture's width and height, so a picture of 480 pixels and maps of 224
stay aligned. (The official code takes a shift in pixels of the picture and applies it to the maps:
at 480 pixels they slide apart. Crop scale, ratio, flip and size of the shift are its values.)

What comes in from outside when a map is shifted is "nothing" as ``Kind.nothing`` has it: no edge is
drawn there, and no normal points anywhere. The official code fills with 0, which in its inverted
edge maps means "edge". A mirrored surface faces the other way, so a flip negates the x of normals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from .labels import NOTHING, LabelMap, kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

SHIFT = 79 / 480  # 79 pixels of 480: the official code's shift at magnitude 5 of 10


@dataclass(frozen=True)
class Geometry:
    """One draw: what is cut out, whether it is mirrored, how far it is then shifted.

    Attributes:
        box: (left, top, right, bottom) of what is kept, from 0 to 1.
        flip: mirror left and right.
        shift: (x, y), as a share of the result's width and height; positive is right and down.

    Raises:
        InputError: a box that is empty or leaves the picture, or a shift of 1 or more.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"Geometry: box={self.box} must have 0 <= left < right <= 1 and 0 <= top < bottom "
                "<= 1."
            )
        if max(abs(self.shift[0]), abs(self.shift[1])) >= 1:
            raise InputError(f"Geometry: shift={self.shift} must lie between -1 and 1.")


def sample(
    generator: torch.Generator,
    aspect: float = 1.0,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    shift: float = SHIFT,
    shift_chance: float = 0.2,
) -> Geometry:
    """Draw a geometry; the same state of the generator gives the same one.

    The defaults are the published ones. Shifts along x and along y are two of ten operations of
    which two are drawn for a picture, hence a chance of 1 in 5 for each.

    Args:
        generator: a CPU generator.
        aspect: width / height of the picture.
        scale: range of the share of its area that is kept.
        ratio: range of the crop's width / height in pixels, drawn evenly on a logarithmic scale.
        flip: probability of a mirror image: 0 where left and right, or letters, carry the answer.
        shift: size of a shift, to either side.
        shift_chance: probability of one, along each axis.
    """
    u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    area = scale[0] + u[0] * (scale[1] - scale[0])
    shape = math.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0])) / aspect
    width, height = min(1.0, math.sqrt(area * shape)), min(1.0, math.sqrt(area / shape))
    left, top = u[2] * (1 - width), u[3] * (1 - height)
    box = (left, top, min(1.0, left + width), min(1.0, top + height))
    shifts = [
        math.copysign(shift, u[side] - 0.5) if u[chance] < shift_chance else 0.0
        for chance, side in ((5, 6), (7, 8))
    ]
    return Geometry(box, u[4] < flip, (shifts[0], shifts[1]))


def apply(
    geometry: Geometry,
    image: Image | np.ndarray,
    labels: Mapping[str, LabelMap],
    image_size: tuple[int, int] | None = None,
    label_size: tuple[int, int] | None = None,
) -> tuple[Any, dict[str, LabelMap]]:
    """Do the same to a picture and to its maps, whatever the size of each.

    Args:
        geometry: what to do: crop, then flip, then shift.
        image: RGB, a PIL image or (H, W, 3) uint8.
        labels: its maps, by expert.
        image_size, label_size: (width, height) of the results; None: the size of what comes in.

    Returns:
        The picture (bicubic, black where nothing comes in), of the kind given, and the maps (each
        pixel is a pixel of the map that comes in: classes are never mixed).
    """
    return (
        transform_image(geometry, image, image_size),
        {name: transform_labels(geometry, each, label_size) for name, each in labels.items()},
    )


def transform_image(
    geometry: Geometry, image: Image | np.ndarray, size: tuple[int, int] | None = None
) -> Any:
    """The picture's half of ``apply``."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    width, height = size or picture.size
    left, top, right, bottom = geometry.box
    box = (
        left * picture.width,
        top * picture.height,
        right * picture.width,
        bottom * picture.height,
    )
    part = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    part = ImageOps.mirror(part) if geometry.flip else part
    result = Image.new(part.mode, part.size)
    result.paste(part, (round(geometry.shift[0] * width), round(geometry.shift[1] * height)))
    return np.array(result) if isinstance(image, np.ndarray) else result


def transform_labels(
    geometry: Geometry, labels: LabelMap, size: tuple[int, int] | None = None
) -> LabelMap:
    """The map's half of ``apply``: one nearest look-up for crop, flip, shift and resize."""
    (width, height), (left, top, right, bottom) = size or labels.size, geometry.box
    columns, x_inside = _source(
        width, labels.size[0], left, right, geometry.shift[0], geometry.flip
    )
    rows, y_inside = _source(height, labels.size[1], top, bottom, geometry.shift[1], False)
    inside = y_inside[:, None] & x_inside  # (height, width)

    def look_up(values: np.ndarray, fill: int) -> np.ndarray:
        found = values[rows[:, None], columns]  # (height, width) or (height, width, 3)
        if labels.expert == "normal" and geometry.flip:
            found[..., 0] = 255 - found[..., 0]  # x of (n + 1) / 2 * 255 -> x of -n
        found[~inside] = fill
        return found

    fill = kind_of(labels.expert).nothing
    if labels.map.dtype == np.uint16:
        fill = 0xFFFF
    instances = None if labels.instances is None else look_up(labels.instances, NOTHING)
    return replace(labels, map=look_up(labels.map, fill), instances=instances)


def resize(labels: LabelMap, size: tuple[int, int]) -> LabelMap:
    """The map at another (width, height), by the nearest pixel."""
    return labels if size == labels.size else transform_labels(Geometry(), labels, size)


def _source(
    length: int, old: int, low: float, high: float, shift: float, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: the old pixel under each new pixel's centre, and whether there is one.

    Returns:
        (length,) int and (length,) bool.
    """
    place = (np.arange(length) + 0.5) / length - shift  # in the part that was cut out, 0 to 1
    inside = (place >= 0) & (place < 1)
    place = 1 - place if flip else place
    index = np.floor((low + place * (high - low)) * old).astype(int)
    return index.clip(0, old - 1), inside

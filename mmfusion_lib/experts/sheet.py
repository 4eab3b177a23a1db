"""A picture sheet: one picture and what each expert says about it, names written in.

Low-level maps have a colour map of their own kind. Semantic maps lie in colour over the grey picture:
where the picture stays grey the expert says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from ..plots import CYCLE
from .labels import NOTHING, LabelMap, check, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLOUR_MAPS = {"depth": "viridis", "edge": "gray", "saliency": "magma"}  # of low-level maps
OPACITY = 0.6  # of colour over the grey picture
MOST_NAMES = 12  # written into a panel: those of the largest regions
LETTERS = 0x250  # letters beyond Latin are shown as "?": fonts at hand rarely have them


def sheet(image: Image, labels: Mapping[str, LabelMap], columns: int = 4) -> Figure:
    """The picture and one panel for each map, in rows of ``columns``.

    Args:
        image: the RGB picture.
        labels: expert -> its map of this picture, in the order of the panels.
        columns: panels a row.

    Raises:
        InputError: no maps, or one that is not of this picture's size or not in order.
    """
    if columns < 1:
        raise InputError(f"columns is {columns}: use 1 or more.")
    return _draw([(image, labels)], min(columns, 1 + len(labels)))


def gallery(images: Sequence[Image], labels: Sequence[Mapping[str, LabelMap]]) -> Figure:
    """One row a picture: the picture, then a panel for each map.

    Args:
        images: RGB pictures.
        labels: for each picture its maps, the same experts in the same order.

    Raises:
        InputError: as ``sheet``, or rows of different experts.
    """
    if len(images) != len(labels):
        raise InputError(f"{len(images)} pictures and {len(labels)} sets of maps: give one each.")
    for row, maps in enumerate(labels):
        if list(maps) != list(labels[0]):
            raise InputError(
                f"Row {row} has the experts {', '.join(maps)}, row 0 {', '.join(labels[0])}: give "
                "the same for all."
            )
    return _draw(list(zip(images, labels)), 1 + len(labels[0]) if labels else 0)


def save(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write the figure as a PNG, atomically.

    Raises:
        InputError: the name does not end in .png, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is no PNG: end the name in .png.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white")
    return path


def picture(labels: LabelMap, image: Image) -> np.ndarray:
    """What a panel shows, without names: uint8 (H, W, 3).

    Raises:
        InputError: the map is not of the picture's size, or not in order.
    """
    import matplotlib

    check(labels, image.size)
    if labels.map.ndim == 3:
        return labels.map
    if not kind_of(labels.expert).semantic:
        colours = matplotlib.colormaps[COLOUR_MAPS.get(labels.expert, "gray")]
        return colours(labels.map, bytes=True)[:, :, :3]  # (H, W) -> (H, W, 4) -> (H, W, 3)
    grey = np.asarray(image.convert("L"), np.float32)[:, :, None] * 0.5 + 90  # (H, W, 1)
    ids = _regions(labels)
    palette = np.array([_rgb(number) for number in range(NOTHING + 1)], np.float32)
    mixed = (1 - OPACITY) * grey + OPACITY * palette[ids]  # palette[ids]: (H, W, 3)
    shown = np.where((ids == NOTHING)[:, :, None], grey, mixed)
    return np.round(shown).clip(0, 255).astype(np.uint8)


def places(labels: LabelMap) -> list[tuple[int, int, str]]:
    """Where to write which name: x, y in pixels, largest region first, at most ``MOST_NAMES``.

    The place lies inside the region, where most of what is around it belongs to it too.
    """
    if not labels.names or not kind_of(labels.expert).semantic:
        return []
    ids = _regions(labels)
    numbers, counts = np.unique(ids[ids != NOTHING], return_counts=True)
    found = []
    for number in numbers[np.argsort(-counts, kind="stable")][:MOST_NAMES].tolist():
        x, y = _inside(ids == number)
        found.append((x, y, labels.names.get(number, str(number))))
    return found


def _inside(region: np.ndarray) -> tuple[int, int]:
    """x, y of a pixel well inside a region, bool (H, W), that has one pixel or more."""
    from PIL import Image, ImageFilter, ImageOps

    radius = max(1, min(region.shape) // 6)
    mask = ImageOps.expand(Image.fromarray(region.astype(np.uint8) * 255), radius, fill=0)
    around = np.asarray(mask.filter(ImageFilter.BoxBlur(radius)))  # (H + 2 r, W + 2 r)
    around = around[radius:-radius, radius:-radius]  # (H, W)
    y, x = np.nonzero(region & (around == around[region].max()))
    nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    return int(x[nearest]), int(y[nearest])


def _draw(rows: list[tuple[Image, Mapping[str, LabelMap]]], columns: int) -> Figure:
    from matplotlib.figure import Figure

    if not rows or not all(maps for _, maps in rows):
        raise InputError("There are no maps to draw: give those of one expert or more.")
    panels: list[tuple[Image, str, LabelMap | None]] = []
    for image, maps in rows:
        panels += [(image, "picture", None), *((image, name, maps[name]) for name in maps)]
    height = -(-len(panels) // columns)
    # inches of a row: its tallest panel at a width of 2, and a title
    tall = [
        max(each[0].height / each[0].width for each in panels[r * columns :][:columns])
        for r in range(height)
    ]
    ratios = [0.25 + 2 * min(max(ratio, 0.3), 1.4) for ratio in tall]
    figure = Figure((2.1 * columns, sum(ratios)), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (image, title, labels) in zip(grid.flat, panels):
        _panel(axes, image, labels)
        axes.set_title(title.replace("_", " "), fontsize=8, loc="center")
    return figure


def _panel(axes: Axes, image: Image, labels: LabelMap | None) -> None:
    axes.imshow(np.asarray(image) if labels is None else picture(labels, image))
    axes.grid(False)
    box: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for x, y, name in places(labels) if labels is not None else ():
        text = "".join(letter if ord(letter) < LETTERS else "?" for letter in name)
        side = "left" if x < image.width / 3 else "right" if x > image.width * 2 / 3 else "center"
        axes.text(
            x, y, text, fontsize=6, ha=side, va="center", bbox=box, parse_math=False, clip_on=True
        )


def _regions(labels: LabelMap) -> np.ndarray:
    """What is coloured: instances of a detection, else the map; uint8 (H, W)."""
    return labels.map if labels.instances is None else labels.instances


def _rgb(number: int) -> tuple[float, float, float]:
    """A colour for a number, 0..255 each; the book's eight, then mixtures of two of them."""
    from matplotlib.colors import to_rgb

    first, second = CYCLE[number % 7], CYCLE[(number // 7) % 7]  # black is left out
    mix = 0.0 if number < 7 else 0.5
    return tuple(255 * ((1 - mix) * a + mix * b) for a, b in zip(to_rgb(first), to_rgb(second)))

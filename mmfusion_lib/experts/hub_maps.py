"""Before and after the paper's experts: pictures to network input, network output to label maps.

Each network is trained for its own input (size, scale, mean, channel order), so each has one
function before it and one after it; `hub_experts` puts the network in between. Pillow and numpy
do the work: the libraries' own image processors need a torchvision that fits the installed torch.

Sizes are those of the official code (facts of the paper's appendix: 480 pixels), but for detection:
RT-DETR, which stands in for UniDet, is trained at 640.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .hub_boxes import paint_boxes
from .label_map import LabelMap

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 480  # pixels: depth, normals, edges; the long side of segmentation
SHORT = 479  # segmentation: of the short side, where the long one allows it
DETECTION_SIDE = 640
STRIDE = 32  # segmentation: sides are padded to a multiple
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and std, of values in 0..1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ROUNDING = 1e-5  # relative: a map whose spread is smaller is constant
BGR_MEAN = (103.939, 116.779, 123.68)  # edges: blue, green, red, of values in 0..255


def pixels(image: Image, size: tuple[int, int], mean_std, bicubic: bool = False) -> Tensor:
    """RGB picture -> float32 (3, height, width): resized, in 0..1, normalised.

    Args:
        image: RGB.
        size: (width, height).
        mean_std: per channel.
        bicubic: filter; False: bilinear. Both average over pixels when they shrink.
    """
    from PIL import Image

    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    values = np.asarray(image.resize(size, method), np.float32) / 255  # (h, w, 3)
    mean, std = (np.array(each, np.float32) for each in mean_std)
    return torch.from_numpy((values - mean) / std).permute(2, 0, 1).contiguous()  # (3, h, w)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, height, width), bilinear, on the CPU in float32. ``size``: (width, height)."""
    maps = maps.detach().float().cpu()[None]  # (1, C, h, w)
    return F.interpolate(maps, (size[1], size[0]), mode="bilinear", align_corners=False)[0]


def stretched(values: Tensor) -> np.ndarray:
    """Smallest to 0, largest to 255, as uint8; a constant map becomes 0 (erratum 25: not NaN).

    A spread that is nothing but the rounding of the resize counts as constant.
    """
    low, high = values.min(), values.max()
    span = high - low
    if not span > ROUNDING * torch.maximum(low.abs(), high.abs()):
        return np.zeros(tuple(values.shape), np.uint8)
    return ((values - low) / span * 255).round().to(torch.uint8).numpy()


# Depth: DPT


def depth_input(image: Image) -> Tensor:
    """RGB picture -> (3, 480, 480) in [-1, 1]; squashed, not cropped."""
    return pixels(image, (SIDE, SIDE), HALF, bicubic=True)


def depth_map(inverse: Tensor, size: tuple[int, int]) -> LabelMap:
    """Inverse depth (h, w) of any scale -> 0 = farthest to 255 = nearest of this picture."""
    return LabelMap("depth", stretched(resized(inverse[None], size)[0]))


# Normals: NLL-AngMF


def normal_input(image: Image) -> Tensor:
    """RGB picture -> (3, 480, 480), ImageNet's mean and std."""
    return pixels(image, (SIDE, SIDE), IMAGENET)


def normal_map(normals: Tensor, size: tuple[int, int]) -> LabelMap:
    """Normals (3, h, w), in the network's own axes -> (n + 1) / 2, unit length after resizing."""
    vectors = resized(normals, size)  # (3, H, W)
    vectors = vectors / vectors.norm(dim=0, keepdim=True).clamp_min(1e-6)
    values = ((vectors + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return LabelMap("normal", values.permute(1, 2, 0).contiguous().numpy())  # (H, W, 3)


# Edges: DexiNed


def edge_input(image: Image) -> Tensor:
    """RGB picture -> (3, 480, 480): blue, green, red in 0..255, less the mean of each."""
    values = pixels(image, (SIDE, SIDE), PLAIN).flip(0) * 255  # (3, 480, 480) now blue first
    return values - torch.tensor(BGR_MEAN)[:, None, None]


def edge_map(logits: Tensor, size: tuple[int, int]) -> LabelMap:
    """The fused map (h, w) before its sigmoid -> 0 = edge to 255 = none, dark lines on white."""
    return LabelMap("edge", 255 - stretched(resized(logits.sigmoid()[None], size)[0]))


# Segmentation: Mask2Former


def fitted(width: int, height: int) -> tuple[int, int]:
    """Size of a picture whose short side becomes 479, unless its long side would exceed 480."""
    scale = min(SHORT / min(width, height), SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def segmentation_input(image: Image) -> Tensor:
    """RGB picture -> (3, h, w): ImageNet's mean and std, zeros right and below to full strides."""
    values = pixels(image, fitted(*image.size), IMAGENET)  # (3, h, w)
    height, width = values.shape[1:]
    return F.pad(values, (0, -width % STRIDE, 0, -height % STRIDE))


def segmentation_map(
    classes: Tensor, masks: Tensor, size: tuple[int, int], names: dict[int, str]
) -> LabelMap:
    """Queries -> class of each pixel: the semantic reading of a panoptic model.

    Each query votes for its classes with the strength of its mask; the class "no object" has no
    vote. Classes are chosen at the network's resolution and carried to the picture's by nearest
    neighbour, so that a large picture does not need 133 float maps of its size.

    Args:
        classes: (Q, C + 1) logits, "no object" last.
        masks: (Q, h, w) logits over the padded input, at any resolution.
        size: (width, height) of the picture.
        names: of the classes.
    """
    width, height = fitted(*size)
    padded = (width + -width % STRIDE, height + -height % STRIDE)
    strength = resized(masks, padded).sigmoid()[:, :height, :width]  # (Q, height, width)
    chance = classes.detach().float().cpu().softmax(-1)[:, :-1]  # (Q, C)
    scores = torch.einsum("qc,qhw->chw", chance, strength)  # (C, height, width)
    best = scores.argmax(0).to(torch.uint8)[None, None]  # (1, 1, height, width)
    best = F.interpolate(best, (size[1], size[0]), mode="nearest-exact")[0, 0]
    return LabelMap("seg_coco", best.numpy(), names=names)


# Detection: RT-DETR


def detection_input(image: Image) -> Tensor:
    """RGB picture -> (3, 640, 640) in 0..1; squashed, no mean taken off."""
    return pixels(image, (DETECTION_SIDE, DETECTION_SIDE), PLAIN)


def detection_map(
    logits: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    names: dict[int, str],
    depth: LabelMap | None = None,
) -> LabelMap:
    """Queries -> boxes with instance ids; each query has one class, its best.

    Args:
        logits: (Q, C), one sigmoid a class.
        boxes: (Q, 4) relative centre, centre, width, height.
        size: (width, height) of the picture.
        names: of the classes.
        depth: of the same picture: says which of two boxes lies in front.
    """
    scores, classes = logits.detach().float().cpu().sigmoid().max(-1)  # (Q,), (Q,)
    nearer = None if depth is None else depth.map
    corners = boxes.detach().float().cpu().numpy()
    return paint_boxes(corners, classes.numpy(), scores.numpy(), size, names, nearer)

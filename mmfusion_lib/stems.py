"""Stems: a small convolutional network per kind of expert turns a label map into a grid of tokens.

Prismer section 3.2; sizes as in the official code. Four 3x3 convolutions with BatchNorm and ReLU, with D/8,
D/4, D/2 and D channels, then one 1x1 convolution. Low-level maps (depth, normals, edges) are halved
four times. Semantic maps are first shrunk to a quarter and then halved twice. Before that, both are
resized so that the grid is that of the image's patches: 224 pixels give 14 x 14 tokens beside
patches of 16, and 16 x 16 beside patches of 14.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .experts.label_map import kind_of
from .experts.painting import WIDTH


def stem_of(expert: str) -> str:
    """The stem that reads an expert's map; all segmentations share one.

    Raises:
        InputError: there is no such expert.
    """
    kind_of(expert)
    return "seg" if "seg" in expert else expert


def channels_of(expert: str) -> int:
    """Channels of what a stem reads: 1, 3 for normals, 64 where a map is painted with vectors."""
    kind = kind_of(expert)
    return WIDTH if kind.semantic else kind.channels


class Stem(nn.Module):
    """One expert's map -> tokens.

    Args:
        channels: see ``channels_of``.
        width: D.
        patch_size: of the image encoder, in pixels.
        semantic: the map is painted with label vectors.

    Raises:
        InputError: D is not a multiple of 8.
    """

    def __init__(self, channels: int, width: int, patch_size: int, semantic: bool):
        super().__init__()
        if width % 8:
            raise InputError(f"Stem: width={width} is not a multiple of 8: use a wider encoder.")
        self.channels = channels
        self.scale = (4 if semantic else 16) / patch_size
        strides = (2, 2, 1, 1) if semantic else (2, 2, 2, 2)
        widths = [channels, width // 8, width // 4, width // 2, width]
        steps: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], strides):
            steps += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.network = nn.Sequential(*steps, nn.Conv2d(width, width, 1, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, D, rows, columns).

        Raises:
            InputError: another number of channels.
        """
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            raise InputError(
                f"A map has shape {tuple(maps.shape)}: give (B, {self.channels}, h, w)."
            )
        if self.scale != 1:
            maps = F.interpolate(
                maps, scale_factor=self.scale, mode="bilinear", align_corners=False
            )
        return self.network(maps)

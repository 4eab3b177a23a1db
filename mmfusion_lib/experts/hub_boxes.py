"""Boxes of a detector to a label map: who is merged, who lies in front, and painting.

Prismer's rules (official code): a score of 0.5 at least; boxes with an IoU above 0.95 are one; a
box inside another lies in front of it; otherwise the one that is nearer by mean inverse depth.
"""

from __future__ import annotations

import numpy as np

from .label_map import NOTHING, LabelMap

THRESHOLD, SAME = 0.5, 0.95  # of the score, and of the intersection over union
MOST = 127  # instances of a picture: the instance table has as many rows for them


def iou(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs. (n, 4) left, top, right, bottom -> (n, n)."""
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])  # (n, n, 2)
    sides = np.clip(np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner, 0, None)
    shared = sides[..., 0] * sides[..., 1]  # (n, n)
    areas = area(boxes)
    return shared / np.maximum(areas[:, None] + areas[None, :] - shared, 1e-9)


def area(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) -> (n,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def keep(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which detections stay: indices, best score first, at most 127.

    Of boxes that are one and the same (IoU above 0.95), the best scored stays with its class.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,).
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= THRESHOLD]
    same, left = iou(boxes) > SAME, []
    for number in order:
        if not same[number, left].any():
            left.append(int(number))
    return np.array(left[:MOST], dtype=np.int64)


def back_to_front(boxes: np.ndarray, nearness: np.ndarray) -> list[int]:
    """The order in which to paint: farther first, but no box before one that holds it.

    Args:
        boxes: (n, 4).
        nearness: (n,) larger is nearer; of equals the larger box is painted first.
    """
    low = (boxes[:, None, :2] >= boxes[None, :, :2]).all(-1)  # (n, n): i begins inside j
    high = (boxes[:, None, 2:] <= boxes[None, :, 2:]).all(-1)
    areas = area(boxes)
    inside = low & high & (areas[:, None] < areas[None, :])  # (n, n): i lies in j
    order, waiting = [], set(range(len(boxes)))
    while waiting:
        free = [i for i in waiting if not any(inside[i, j] for j in waiting)]
        first = min(free, key=lambda i: (nearness[i], -areas[i], i))
        order.append(first)
        waiting.remove(first)
    return order


def to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Relative centre, centre, width, height (n, 4) -> whole pixels left, top, right, bottom.

    Boxes are cut at the picture's edge; each keeps one pixel at least.
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    size = np.array([width, height])
    low = np.clip(np.rint((centre - half) * size), 0, size - 1)
    high = np.clip(np.rint((centre + half) * size), low + 1, size)
    return np.concatenate([low, high], 1).astype(np.int64)  # (n, 4)


def paint_boxes(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    size: tuple[int, int],
    names: dict[int, str],
    depth: np.ndarray | None = None,
) -> LabelMap:
    """A detection's label map.

    Args:
        boxes: (n, 4) relative centre, centre, width, height, as DETR's family gives them.
        classes: (n,) class numbers, 0 to 254.
        scores: (n,) in 0..1.
        size: (width, height) of the picture.
        names: of the classes.
        depth: (height, width) inverse depth, larger is nearer; None: the smaller of two boxes that
            overlap lies in front.

    Returns:
        Classes, instance ids by falling score, and the class name of each id. A picture without
        detections gives a map of nothing but 255.
    """
    width, height = size
    pixels = to_pixels(boxes, width, height)
    kept = keep(boxes_as_corners(boxes), scores)
    pixels, classes = pixels[kept], classes[kept]
    nearness = np.zeros(len(kept))
    if depth is not None:
        means = [depth[top:bottom, left:right].mean() for left, top, right, bottom in pixels]
        nearness = np.array(means, dtype=np.float64)
    ids = np.full((height, width), NOTHING, np.uint8)
    found = np.full((height, width), NOTHING, np.uint8)
    for number in back_to_front(pixels, nearness):
        left, top, right, bottom = pixels[number]
        ids[top:bottom, left:right] = number
        found[top:bottom, left:right] = classes[number]
    texts = {number: names[int(label)] for number, label in enumerate(classes)}
    return LabelMap("obj_detection", found, ids, texts)


def boxes_as_corners(boxes: np.ndarray) -> np.ndarray:
    """Relative centre, centre, width, height -> left, top, right, bottom; (n, 4) both."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)

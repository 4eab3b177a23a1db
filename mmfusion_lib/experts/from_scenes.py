"""Exact experts: the six label maps of a generated scene, and a dial that spoils them.

The maps follow the published conventions: depth is inverse and stretched over the picture, edges
are dark on white, normals are (n + 1) / 2, and a detection is painted as boxes, not outlines.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..data.scene_objects import KINDS, WORDS
from ..data.scenes import Scene
from ..errors import InputError
from .label_map import NOTHING, LabelMap, kind_of, nothing

NOISES = ("blur", "dropout", "wrong", "noise")
_BLUR = 1 / 8  # of the shorter side: the spread of a full blur
_CELLS = 8  # a side: low-level maps lose whole cells
_FIRST = 100  # ids of invented instances and words start here; scenes have five objects at most


def from_scene(scene: Scene) -> dict[str, LabelMap]:
    """Depth, normals, segmentation, edges, detection and words of a scene, all exact.

    Returns:
        By expert, in the order of the paper's configuration: ``depth``, ``normal``, ``seg_scenes``
        (classes: index into ``KINDS``), ``edge``, ``obj_detection`` (instances: the object's id in
        the graph) and ``ocr_detection`` (the boards of signs), each of the scene's size.
    """
    kinds = dict(enumerate(KINDS))
    maps = [
        LabelMap("depth", _inverse(scene.depth)),
        LabelMap("normal", np.rint((scene.normal + 1) * 127.5).astype(np.uint8)),
        LabelMap("seg_scenes", scene.classes, names=kinds),
        LabelMap("edge", 255 - scene.edges),
        _detection(scene),
        _words(scene),
    ]
    return {labels.expert: labels for labels in maps}


def noisy(
    labels: Mapping[str, LabelMap], kind: str, amount: float, seed: int
) -> dict[str, LabelMap]:
    """Spoil the maps of a scene. Amount 0 changes nothing; with a larger one more goes wrong.

    But for "blur", whatever goes wrong at one amount also does at any larger one.

    Args:
        labels: maps of ``from_scene``, by expert; pass some of them to spoil only those.
        kind: what goes wrong, and what amount 1 means:

            - "blur": low-level maps lose detail (Gaussian blur); in semantic maps each pixel takes
              the label of a random neighbour, at Gaussian distance. 1: a spread of 1/8 of the side.
            - "dropout": each class, instance or word, and each of 8 x 8 cells of a low-level map,
              is lost with this probability. 1: nothing is left of any map.
            - "wrong": each class, instance or word is taken for another with this probability. 1:
              none is right. Low-level maps name nothing and stay as they are.
            - "noise": this share of the pixels is replaced by uniform noise: any value, class or
              word. 1: the map has nothing to do with the picture.
        amount: from 0 to 1.
        seed: the same seed spoils the same map alike, whatever other maps are there. Give each
            picture its own.

    Raises:
        InputError: unknown kind, or an amount outside [0, 1].
    """
    if kind not in NOISES:
        raise InputError(f"There is no noise {kind!r}: use one of {', '.join(NOISES)}.")
    if not 0 <= amount <= 1:
        raise InputError(f"Noise of amount {amount} is asked for: use 0 to 1.")
    if amount == 0:
        return dict(labels)
    spoil = {"blur": _blur, "dropout": _dropout, "wrong": _wrong, "noise": _noise}[kind]
    result = {}
    for name, each in labels.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"{kind} {name}".encode())])
        result[name] = spoil(each, amount, rng)
    return result


# Exact maps.


def _inverse(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) in metres -> inverse depth from 0 = farthest to 255 = nearest; constant: 0."""
    near = 1 / depth.astype(np.float64)
    span = near.max() - near.min()
    if span == 0:
        return np.zeros(depth.shape, np.uint8)
    return np.rint((near - near.min()) / span * 255).astype(np.uint8)


def _detection(scene: Scene) -> LabelMap:
    """Boxes, the nearer over the farther, and a box inside another over that one."""
    items = sorted(scene.graph["objects"], key=lambda item: -item["distance"])
    inside = [item for item in items if any(_within(item["box"], o["box"]) for o in items)]
    classes, instances = (np.full(scene.classes.shape, NOTHING, np.uint8) for _ in range(2))
    for item in [*items, *inside]:
        x0, y0, x1, y1 = item["box"]
        classes[y0:y1, x0:x1] = KINDS.index(item["kind"])
        instances[y0:y1, x0:x1] = item["id"]
    names = {item["id"]: item["kind"] for item in scene.graph["objects"]}
    return LabelMap("obj_detection", classes, instances, names)


def _within(box: list[int], other: list[int]) -> bool:
    """Whether a box lies inside another one."""
    return box != other and all(
        (box[0] >= other[0], box[1] >= other[1], box[2] <= other[2], box[3] <= other[3])
    )


def _words(scene: Scene) -> LabelMap:
    """The boards of signs: the rows in which a sign is wide (its pole and its foot are narrow)."""
    found, names = nothing("ocr_detection", scene.classes.shape[::-1]).map, {}
    for item in scene.graph["objects"]:
        if item["word"]:
            mask = scene.instances == item["id"]
            wide = mask.sum(1) > 0.6 * mask.sum(1).max()  # (H,)
            found[mask & wide[:, None]] = len(names)
            names[len(names)] = item["word"]
    return LabelMap("ocr_detection", found, names=names)


# Spoilt maps.


def _blur(labels: LabelMap, amount: float, rng: np.random.Generator) -> LabelMap:
    from PIL import Image, ImageFilter

    height, width = labels.map.shape[:2]
    spread = amount * _BLUR * min(height, width)
    if not kind_of(labels.expert).semantic:
        blurred = Image.fromarray(labels.map).filter(ImageFilter.GaussianBlur(spread))
        return replace(labels, map=np.array(blurred))
    step = np.rint(spread * rng.standard_normal((2, height, width))).astype(int)
    rows = (np.arange(height)[:, None] + step[0]).clip(0, height - 1)  # (H, W)
    columns = (np.arange(width) + step[1]).clip(0, width - 1)  # (H, W)
    instances = None if labels.instances is None else labels.instances[rows, columns]
    return replace(labels, map=labels.map[rows, columns], instances=instances)


def _dropout(labels: LabelMap, amount: float, rng: np.random.Generator) -> LabelMap:
    if not kind_of(labels.expert).semantic:
        height, width = labels.map.shape[:2]
        lost = rng.random((_CELLS, _CELLS)) < amount
        rows, columns = np.arange(height) * _CELLS // height, np.arange(width) * _CELLS // width
        gone = lost[rows[:, None], columns][(...,) + (None,) * (labels.map.ndim - 2)]
        return replace(
            labels, map=np.where(gone, np.uint8(kind_of(labels.expert).nothing), labels.map)
        )
    lost = rng.random(NOTHING + 1) < amount  # by class, instance or word
    if labels.instances is None:
        return replace(labels, map=np.where(lost[labels.map], np.uint8(NOTHING), labels.map))
    gone = lost[labels.instances]
    classes = np.where(gone, np.uint8(NOTHING), labels.map)
    return replace(
        labels, map=classes, instances=np.where(gone, np.uint8(NOTHING), labels.instances)
    )


def _wrong(labels: LabelMap, amount: float, rng: np.random.Generator) -> LabelMap:
    if not kind_of(labels.expert).semantic:
        return labels
    mistaken = rng.random(NOTHING + 1) < amount  # by class, instance or word
    words = labels.expert == "ocr_detection"
    known = list(WORDS) if words else list(KINDS)
    shift = rng.integers(1, len(known), NOTHING + 1)  # never 0: another one of the list

    if labels.expert == "seg_scenes":
        other = (np.arange(NOTHING + 1) + shift) % len(known)
        other = np.where(mistaken, other, np.arange(NOTHING + 1)).astype(np.uint8)
        other[NOTHING] = NOTHING
        return replace(labels, map=other[labels.map])
    names = {
        number: known[(known.index(name) + shift[number]) % len(known)]
        if mistaken[number]
        else name
        for number, name in labels.names.items()
    }
    if words:
        return replace(labels, names=names)
    classes = np.full(NOTHING + 1, NOTHING, np.uint8)
    for number, name in names.items():
        classes[number] = known.index(name)
    return replace(labels, map=classes[labels.instances], names=names)


def _noise(labels: LabelMap, amount: float, rng: np.random.Generator) -> LabelMap:
    height, width = labels.map.shape[:2]
    noisy_here = rng.random((height, width)) < amount
    if not kind_of(labels.expert).semantic:
        values = rng.integers(0, 256, labels.map.shape, np.uint8)
        noisy_here = noisy_here[(...,) + (None,) * (labels.map.ndim - 2)]
        return replace(labels, map=np.where(noisy_here, values, labels.map))
    known = WORDS if labels.expert == "ocr_detection" else KINDS
    values = rng.integers(0, len(known), (height, width), np.uint8)
    if labels.expert == "seg_scenes":
        return replace(labels, map=np.where(noisy_here, values, labels.map))
    names = {**labels.names, **{_FIRST + number: name for number, name in enumerate(known)}}
    if labels.instances is None:  # a word of each kind
        found = np.where(noisy_here, values + np.uint8(_FIRST), labels.map)
        return replace(labels, map=found, names=names)
    instances = np.where(noisy_here, values + np.uint8(_FIRST), labels.instances)
    return replace(
        labels, map=np.where(noisy_here, values, labels.map), instances=instances, names=names
    )

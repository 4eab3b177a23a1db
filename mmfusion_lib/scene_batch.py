"""Scenes as the batch that Prismer's encoder reads: pictures, and exact maps that may be spoilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import checkpoints
from .data import scenes
from .data.scene_objects import KINDS
from .experts import from_scenes, tensors
from .experts.label_map import LabelMap
from .experts.label_table import LabelTable

Labels = dict[str, LabelMap]
Spoil = Callable[[Labels, int], Labels]


def batch(
    rows: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Tensor],
    experts: Sequence[str] = (),
    *,
    size: int = 112,
    spoil: Spoil | None = None,
) -> dict[str, Any]:
    """Rows of ``scenes.load`` as ``Prismer.encode`` takes them.

    Args:
        rows: B rows.
        transform: of the image encoder.
        experts: which exact maps are given; () for the picture alone.
        size: pixels a side of the maps.
        spoil: (maps of a scene, its place in ``rows``) -> spoilt maps.

    Returns:
        ``"rgb"`` (B, 3, H, W) and the maps by expert, see ``tensors.batch``.

    Raises:
        InputError: an unknown expert.
    """
    from PIL import Image

    pictures, samples = [], []
    for place, row in enumerate(rows):
        scene = scenes.decode(row)
        pictures.append(transform(Image.fromarray(scene.image)))
        if experts:
            known = from_scenes.from_scene(scene)
            maps = {name: label for name, label in known.items() if name in experts}
            samples.append(maps if spoil is None else spoil(maps, place))
    found: dict[str, Any] = {"rgb": torch.stack(pictures)}  # B x (3, H, W) -> (B, 3, H, W)
    if experts:
        found |= tensors.batch(samples, size, tables(), experts)
    return found


@lru_cache(maxsize=1)
def tables() -> dict[str, Any]:
    """Label vectors of scenes' classes, and the table through which words go."""
    table = LabelTable.fit(checkpoints.load_text_encoder(), checkpoints.load_tokenizer())
    kinds = table.vectors(list(KINDS))
    return {"seg_scenes": kinds, "obj_detection": kinds, "ocr_detection": table}

"""Scenes as training data of Prismer: pictures and exact maps, with captions or with questions.

The caption that is learnt lists what stands on the table, nearest first (``data.scene_captions``); the
question's answer is a word or two. Label maps come from the generator and may be spoilt on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import expert_task
from .data import scene_tasks, scenes
from .data.images import ImageTransform
from .experts import from_scenes, tensors
from .prismer_text import CAPTION_PROMPT, clean_caption
from .prismer_training import PrismerItems
from .tokenizer import Tokenizer

Spoil = Callable[[expert_task.Labels, int], expert_task.Labels]


def scene_batch(
    rows: Sequence[Mapping[str, Any]],
    transform: ImageTransform,
    experts: Sequence[str] = (),
    *,
    size: int = 112,
    spoil: Spoil | None = None,
) -> dict[str, Any]:
    """Rows of ``scenes.load`` as the batch that ``Prismer.encode`` takes.

    Args:
        rows: B rows.
        transform: of the image encoder.
        experts: which exact maps are given; () for the picture alone.
        size: pixels a side of the maps.
        spoil: (maps of a scene, its place in ``rows``) -> spoilt maps.
    """
    from PIL import Image

    pictures, samples = [], []
    for number, row in enumerate(rows):
        scene = scenes.decode(row)
        pictures.append(transform(Image.fromarray(scene.image)))
        if experts:
            maps = from_scenes.from_scene(scene)
            maps = {name: maps[name] for name in experts if name in maps}
            samples.append(maps if spoil is None else spoil(maps, number))
    batch: dict[str, Any] = {"rgb": torch.stack(pictures)}  # B x (3, H, W) -> (B, 3, H, W)
    if experts:
        batch |= tensors.batch(samples, size, expert_task._tables(), experts)
    return batch


def caption_items(
    split: str,
    count: int,
    transform: ImageTransform,
    tokenizer: Tokenizer,
    experts: Sequence[str] = (),
    **options: Any,
) -> tuple[PrismerItems, list[dict]]:
    """The first ``count`` scenes of a split with the caption that lists what is there, and their graphs.

    Args:
        options: of ``scene_batch``.
    """
    table = scenes.load(split, count)
    graphs = [json.loads(text) for text in table["graph"]]
    texts = [[listing(graph)] for graph in graphs]
    batch = scene_batch(table, transform, experts, **options)
    prompts = [CAPTION_PROMPT] * count
    return PrismerItems(batch, prompts, texts, tokenizer, table["id"]), graphs


def listing(graph: dict) -> str:
    """The caption of a scene that lists its things, as it follows "A picture of"."""
    text = clean_caption(scene_tasks.captions(graph)[0])
    return text.removeprefix(f"{CAPTION_PROMPT} ")


def question_items(
    split: str,
    count: int,
    transform: ImageTransform,
    tokenizer: Tokenizer,
    experts: Sequence[str] = (),
    *,
    limit: int | None = None,
    **options: Any,
) -> tuple[PrismerItems, list[dict]]:
    """Balanced questions about the first ``count`` scenes of a split, and their rows.

    Args:
        limit: at most this many questions of a type, see ``scene_tasks.vqa``.
        options: of ``scene_batch``.
    """
    table = scenes.load(split, count)
    asked = scene_tasks.vqa([json.loads(text) for text in table["graph"]], limit=limit)
    used = sorted({row["index"] for row in asked})
    place = {index: number for number, index in enumerate(used)}
    batch = scene_batch([table[i] for i in used], transform, experts, **options)
    rows = torch.tensor([place[row["index"]] for row in asked])
    pictures = expert_task.ExpertItems(batch, torch.arange(len(used)), [""] * len(used)).take(rows)
    items = PrismerItems(
        pictures.experts,
        [row["question"] for row in asked],
        [[row["answer"]] for row in asked],
        tokenizer,
        [row["scene"] for row in asked],
    )
    return items, asked

"""Scenes as training data of Prismer: pictures and exact maps, with captions or with questions.

The caption that is learnt lists what stands on the table, nearest first (``data.scene_captions``); the
question's answer is a word or two. Label maps come from the generator and may be spoilt on the way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from . import scene_batch
from .data import scene_tasks, scenes
from .data.images import ImageTransform
from .expert_task import ExpertItems
from .prismer_text import CAPTION_PROMPT, clean_caption
from .prismer_training import PrismerItems
from .tokenizer import Tokenizer


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
        options: of ``scene_batch.batch``.
    """
    table = scenes.load(split, count)
    graphs = [json.loads(text) for text in table["graph"]]
    texts = [[listing(graph)] for graph in graphs]
    batch = scene_batch.batch(table, transform, experts, **options)
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
        options: of ``scene_batch.batch``.
    """
    table = scenes.load(split, count)
    asked = scene_tasks.vqa([json.loads(text) for text in table["graph"]], limit=limit)
    used = sorted({row["index"] for row in asked})
    place = {index: number for number, index in enumerate(used)}
    batch = scene_batch.batch([table[i] for i in used], transform, experts, **options)
    rows = torch.tensor([place[row["index"]] for row in asked])
    pictures = ExpertItems(batch, torch.arange(len(used)), [""] * len(used)).take(rows)
    items = PrismerItems(
        pictures.experts,
        [row["question"] for row in asked],
        [[row["answer"]] for row in asked],
        tokenizer,
        [row["scene"] for row in asked],
    )
    return items, asked

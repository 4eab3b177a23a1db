"""Scenes as training data of Prismer: pictures and exact maps, with captions or with questions.

The caption that is learnt lists what stands on the table, nearest first (``data.scene_captions``); the
question's answer is a word or two. Label maps come from the generator and may be spoilt on the way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import scene_batch
from .data import scene_tasks, scenes
from .data.images import ImageTransform
from .prismer_text import CAPTION_PROMPT, clean_caption
from .prismer_training import PrismerItems
from .tokenizer import Tokenizer


def scene_items(
    split: str,
    count: int,
    transform: ImageTransform,
    tokenizer: Tokenizer,
    experts: Sequence[str] = (),
    *,
    limit: int | None = None,
    **options: Any,
) -> tuple[PrismerItems, list[dict], list[dict]]:
    """Captions as in ``caption_items``, and behind them balanced questions about the same pictures.

    Args:
        limit: at most this many questions of a type, see ``scene_tasks.vqa``; 0 for none.
        options: of ``scene_batch.batch``.

    Returns:
        ``count`` captions and Q questions with their answers as items, the graphs, and the Q rows of
        ``scene_tasks.vqa``.
    """
    table = scenes.load(split, count)
    graphs = [json.loads(text) for text in table["graph"]]
    asked = [] if limit == 0 else scene_tasks.vqa(graphs, limit=limit)
    batch = scene_batch.batch(table, transform, experts, **options)
    names = table["id"]
    items = PrismerItems(
        batch,
        [CAPTION_PROMPT] * count + [row["question"] for row in asked],
        [[listing(graph)] for graph in graphs] + [[row["answer"]] for row in asked],
        tokenizer,
        [*names, *(row["scene"] for row in asked)],
        rows=[*range(count), *(row["index"] for row in asked)],
    )
    return items, graphs, asked


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
    items, graphs, _ = scene_items(split, count, transform, tokenizer, experts, limit=0, **options)
    return items, graphs


def listing(graph: dict) -> str:
    """The caption of a scene that lists its things, as it follows "A picture of"."""
    text = clean_caption(scene_tasks.captions(graph)[0])
    return text.removeprefix(f"{CAPTION_PROMPT} ")

"""Scenes as training data of Prismer: pictures and exact maps, with captions or with questions.

The caption that is learnt lists what stands on the table, nearest first (``data.scene_captions``); the
question's answer is a word or two. Label maps come from the generator and may be spoilt on the way.
``SceneTalk`` reads a picture once for a caption and a question: the encoder is the dear part of a step.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import scene_batch
from .data import scene_tasks, scenes
from .data.images import ImageTransform
from .errors import InputError
from .prismer import Prismer
from .prismer_text import CAPTION_PROMPT, clean_caption
from .prismer_training import PrismerItems, text_loss
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


class SceneTalk:
    """Pictures, each with its caption and with one of its questions, drawn whenever it is read.

    Args:
        items: of ``scene_items``, captions first.
        chosen: numbers of the captions that are kept; None: all. Their questions are kept too. A
            picture without any gets one of another, with weight 0, so that batches have one shape.

    Raises:
        InputError: none of the pictures has a question.
    """

    def __init__(self, items: PrismerItems, chosen: Sequence[int] | None = None):
        count = len(items.pictures)
        self.items = items
        self.chosen = list(range(count) if chosen is None else chosen)
        self.asked: dict[int, list[int]] = defaultdict(list)  # picture -> numbers of questions
        for number in range(count, len(items)):
            self.asked[items.places[number]].append(number)
        known = [number for row in self.chosen for number in self.asked[row]]
        if not known:
            raise InputError("No picture has a question: use more scenes, or a higher limit.")
        self.other = known[0]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.chosen[i]
        own = self.asked[row]
        number = own[int(torch.randint(len(own), ()))] if own else self.other
        caption, question = self.items[row], self.items[number]
        experts = caption.pop("experts")
        question.pop("experts")
        if not own:
            question["weight"] = torch.zeros(())
        return {"experts": experts, "caption": caption, "question": question}


def talk_objective(model: Prismer, batch: Mapping[str, Any]) -> Tensor:
    """The loss of captions plus that of answers, for a batch of ``SceneTalk``: pictures are read once."""
    latents = model.encode(batch["experts"])  # (B, L, D)
    return text_loss(model, latents, **batch["caption"]) + text_loss(
        model, latents, **batch["question"]
    )


def listing(graph: dict) -> str:
    """The caption of a scene that lists its things, as it follows "A picture of"."""
    text = clean_caption(scene_tasks.captions(graph)[0])
    return text.removeprefix(f"{CAPTION_PROMPT} ")

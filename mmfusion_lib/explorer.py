"""What a Prismer says of some pictures, for widgets to show: maps, captions, answers. No interface here.

``Explorer`` computes one thing at a time while a kernel runs. ``still`` gives all that a page without a
kernel can show: each picture with all experts, with none, and with each one left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import caption_tree, prismer_text
from .caption_tree import LIMITS, Writing
from .errors import InputError
from .experts.label_map import LabelMap, kind_of
from .explorer_pictures import Noise, Picture, drawn, opened, scene_pictures, spoilt, uri

if TYPE_CHECKING:
    from .prismer import Prismer

__all__ = ["Explorer", "Noise", "Picture", "Writing", "scene_pictures"]

MOST_BYTES = 3_000_000  # of what one still widget carries
SHOWN = 8  # answers that are shown of a ranking


class Explorer:
    """Captions and answers of one model, with what it weighed up and where it looked.

    Args:
        model: a Prismer with tokenizer and transform; it is put into evaluation mode.
        pictures: one or more; ``add`` appends to them.
        trained_on: what the model was trained on, in words that end a sentence: "6,000 generated
            scenes", "nothing yet".
        questions: asked in a page without a kernel.
        answers: that are ranked.
        writing: of captions.
        prompt: put before each caption.

    Raises:
        InputError: no pictures, questions without answers, or a model without tokenizer or transform.
    """

    def __init__(
        self,
        model: Prismer,
        pictures: Sequence[Picture],
        *,
        trained_on: str,
        questions: Sequence[str] = (),
        answers: Sequence[str] = (),
        writing: Writing | None = None,
        prompt: str = prismer_text.CAPTION_PROMPT,
    ):
        for name in ("tokenizer", "transform"):
            if getattr(model, name) is None:
                raise InputError(f"This model has no {name}: set model.{name} first.")
        if not pictures:
            raise InputError("There are no pictures to explore: give one or more.")
        if questions and not answers:
            raise InputError("There are questions but no answers to choose from: give answers.")
        self.model, self.pictures = model.eval(), list(pictures)
        self.trained_on, self.answers = trained_on, list(answers)
        self.questions = [prismer_text.clean_question(question) for question in questions]
        self.writing = writing or Writing()
        ids, mask = prismer_text.prompt_ids(model.tokenizer, [prompt])
        self.start = ids[0][mask[0].bool()].tolist()  # ids of the prompt, begin mark first
        self.prompt = model.tokenizer.decode(self.start).strip()
        self._known: dict[tuple, Tensor] = {}

    # What is computed, one thing at a time

    def experts(self, picture: int) -> tuple[str, ...]:
        """Experts that the model reads and that have a map of this picture."""
        labels = self._picture(picture).labels
        return tuple(name for name in self.model.config.experts if name in labels)

    def subsets(self, picture: int) -> list[tuple[str, ...]]:
        """All experts, none, and each one left out; each once."""
        every = self.experts(picture)
        fewer = [tuple(name for name in every if name != gone) for gone in every]
        return list(dict.fromkeys([every, (), *fewer]))

    def add(self, source: Any, name: str) -> int:
        """Open a picture, run the model's suppliers on it, and return its number.

        Args:
            source: anything that ``open_image`` takes.
            name: any string; letters that cannot be shown are left out.

        Raises:
            InputError: the picture cannot be opened.
        """
        self.pictures.append(opened(self.model, source, name, self.trained_on))
        return len(self.pictures) - 1

    @torch.no_grad()
    def latents(self, picture: int, experts: Sequence[str], noise: Noise | None = None) -> Tensor:
        """What the decoder reads, (1, L, D): patches, then latents if there are experts.

        Raises:
            InputError: no such picture, expert or noise.
        """
        from .experts import tensors
        from .prismer_input import MAP_SIZE, label_table

        chosen = tuple(name for name in self.experts(picture) if name in experts)
        for name in experts:
            if name not in chosen:
                raise InputError(f"There is no map of {name!r} for this picture: leave it out.")
        key = (picture, chosen, noise)
        if key not in self._known:
            model, transform = self.model, self.model.transform
            batch: dict[str, Any] = {"rgb": transform(self.pictures[picture].image)[None]}
            if chosen:
                labels = self._labels(picture, noise)
                tables = {name: label_table(model) for name in chosen if kind_of(name).semantic}
                size = min(MAP_SIZE, transform.size)
                batch |= tensors.batch([labels], size, tables, chosen)
            if len(self._known) > 200:
                self._known.clear()
            self._known[key] = model.encode(tensors.to(batch, model.encoder.positions.device))
        return self._known[key]

    def caption(
        self,
        picture: int,
        experts: Sequence[str],
        *,
        noise: Noise | None = None,
        writing: Writing | None = None,
        prefix: Sequence[int] = (),
        branches: bool = False,
    ) -> dict[str, Any]:
        """The tree of a caption as JSON, see ``caption_tree.stored``.

        Args:
            picture: its number.
            experts: whose maps are read.
            noise: how these are spoilt.
            writing: None: that of the explorer.
            prefix: token ids behind the prompt that a reader chose.
            branches: follow the words that were not taken, too.

        Raises:
            InputError: as ``latents`` and ``caption_tree.grow``, or a token outside the vocabulary.
        """
        latents = self.latents(picture, experts, noise)
        nodes = caption_tree.grow(
            self.model, latents, self.start, writing or self.writing, prefix=prefix,
            branches=branches,
        )  # fmt: skip
        return caption_tree.stored(nodes, self.model)

    def answer(
        self,
        picture: int,
        experts: Sequence[str],
        question: str,
        *,
        noise: Noise | None = None,
    ) -> dict[str, Any]:
        """The question as it was asked, and ``[answer, score]`` of the best answers, best first.

        Raises:
            InputError: an empty question, no answers, or as ``latents``.
        """
        model, asked = self.model, prismer_text.clean_question(question)
        choices = prismer_text.answer_ids(model.tokenizer, self.answers)
        latents = self.latents(picture, experts, noise)
        ids, mask = prismer_text.prompt_ids(model.tokenizer, [asked])
        ids, mask = ids.to(latents.device), mask.to(latents.device)
        scores = model.rank(latents, ids, choices, attention_mask=mask)[0]  # (K,)
        best = scores.topk(min(SHOWN, len(choices)))
        pairs = zip(best.indices.tolist(), best.values.tolist())
        return {
            "question": asked,
            "ranked": [[self.answers[number], round(score, 4)] for number, score in pairs],
        }

    # What is shown

    def shown(self, picture: int) -> dict[str, Any]:
        """A picture as JSON: number, name, words, the picture as the model sees it, and its maps."""
        chosen = self._picture(picture)
        return {
            "number": picture,
            "name": chosen.name,
            "alt": chosen.alt or chosen.name,
            "note": chosen.note,
            "scene": chosen.scene,
            "image": uri(self.model.transform.resize(chosen.image), "JPEG"),
            "maps": self.maps(picture),
        }

    def maps(self, picture: int, noise: Noise | None = None) -> list[dict[str, str]]:
        """Each map in colour, and what it says in words, in the order of ``experts``."""
        small = self.model.transform.resize(self._picture(picture).image)
        labels = self._labels(picture, noise)
        return [drawn(labels[name], small) for name in self.experts(picture)]

    def front(self, kind: str) -> dict[str, Any]:
        """What either form of a widget begins with. ``kind``: "caption" or "ask"."""
        config = self.model.config
        side = self.model.transform.size // config.image.patch_size
        limits = {name: list(ends) for name, ends in LIMITS.items()}
        limits["length"][0] = len(self.start) + 1  # a word behind the prompt
        return {
            "kind": kind,
            "grid": side,
            "prompt": self.prompt,
            "trained": self.trained_on,
            "writing": {**vars(self.writing)},
            "limits": limits,
            "questions": self.questions,
            "pictures": [self.shown(number) for number in range(len(self.pictures))],
        }

    def still(self, kind: str) -> dict[str, Any]:
        """All that the widget can show without a kernel, by picture and set of experts.

        Raises:
            InputError: it takes more than 3 MB, or there are no questions to ask.
        """
        if kind == "ask" and not self.questions:
            raise InputError("There are no questions for the still page: give Explorer some.")
        stored = []
        for number in range(len(self.pictures)):
            sets = {"+".join(names): names for names in self.subsets(number)}
            if kind == "caption":
                found = {
                    key: self.caption(number, names, branches=True) for key, names in sets.items()
                }
            else:
                found = {
                    key: [self.answer(number, names, question) for question in self.questions]
                    for key, names in sets.items()
                }
            stored.append(found)
        payload = {**self.front(kind), "stored": stored}
        size = len(json.dumps(payload))
        if size > MOST_BYTES:
            raise InputError(
                f"The still page would take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}: "
                "show fewer pictures or shorter captions."
            )
        return payload

    def _picture(self, number: int) -> Picture:
        if not 0 <= number < len(self.pictures):
            raise InputError(f"There is no picture {number}: use 0 to {len(self.pictures) - 1}.")
        return self.pictures[number]

    def _labels(self, picture: int, noise: Noise | None) -> dict[str, LabelMap]:
        chosen = self._picture(picture)
        return dict(chosen.labels) if noise is None else spoilt(chosen, noise, seed=picture)

"""Training Prismer on texts: captions, answers and class names are one objective.

A text follows a prompt: "A picture of" and a caption, a question and its answer, "A photo of a" and the
name of a class. The decoder predicts each token of the text and its end mark from what stands before;
the prompt is read but not learnt (official code). ``PrismerItems`` holds pictures, label maps and texts
for ``train.fit``, ``objective`` is the loss, ``captions`` and ``answers`` write and choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from . import prismer_text
from .errors import InputError
from .expert_task import ExpertItems
from .experts import tensors
from .prismer import Prismer
from .tokenizer import Tokenizer

IGNORED = -100  # of labels: nothing is learnt there


class PrismerItems:
    """Pictures with the maps of experts, each with a prompt and one or more texts that may follow it.

    Args:
        experts: a batch of all U pictures as ``Prismer.encode`` takes it, with ``"rgb"``.
        prompts: N beginnings, or questions; "" for none.
        texts: N lists of texts; one of a list is drawn whenever the item is read.
        tokenizer: of the decoder.
        groups: N names: what a bootstrap draws.
        weights: N weights of the loss, such as how many people gave an answer; None: 1 each.
        max_length: tokens of prompt, text and end mark together.
        rows: N numbers of pictures; None: N = U and each item has its own.

    Raises:
        InputError: counts differ, a picture is not there, an item has no text, or a text is longer than
            ``max_length``.
    """

    def __init__(
        self,
        experts: Mapping[str, Any],
        prompts: Sequence[str],
        texts: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        groups: Sequence[str],
        weights: Tensor | None = None,
        max_length: int = 64,
        rows: Sequence[int] | None = None,
    ):
        count = len(experts["rgb"])
        places = list(range(count) if rows is None else rows)
        what = "pictures" if rows is None else "rows"
        found = {"prompts": len(prompts), "texts": len(texts), "groups": len(groups)}
        for name, number in found.items():
            if number != len(places):
                raise InputError(
                    f"There are {number} {name} for {len(places)} {what}: give one each."
                )
        if strange := [place for place in places if not 0 <= place < count]:
            raise InputError(
                f"An item has picture {strange[0]} of {count}: number them from 0 to {count - 1}."
            )
        self.pictures = ExpertItems(experts, torch.arange(count), [""] * count)
        self.places = places
        self.prompts, self.texts = list(prompts), [list(each) for each in texts]
        self.groups, self.tokenizer = list(groups), tokenizer
        self.weights = torch.ones(len(prompts)) if weights is None else weights
        self.rows: list[list[tuple[list[int], int]]] = []  # per item: (ids, tokens of the prompt)
        known: dict[str, list[int]] = {}
        for number, (prompt, several) in enumerate(zip(prompts, texts)):
            if not several:
                raise InputError(f"Item {number} has no text: give one or drop the item.")
            if prompt not in known:
                known[prompt] = prompt_tokens(tokenizer, prompt)
            start = known[prompt]
            found = [start + ids for ids in prismer_text.answer_ids(tokenizer, several)]
            longest = max(len(ids) for ids in found)
            if longest > max_length:
                raise InputError(
                    f"Item {number} has {longest} tokens with its prompt, more than "
                    f"max_length={max_length}: shorten the text or raise max_length."
                )
            self.rows.append([(ids, len(start)) for ids in found])
        self.length = max(len(ids) for row in self.rows for ids, _ in row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        chosen = int(torch.randint(len(row), ())) if len(row) > 1 else 0
        ids, prompt = row[chosen]
        padded = torch.full((self.length,), self.tokenizer.pad_id)
        padded[: len(ids)] = torch.tensor(ids)
        mask = (torch.arange(self.length) < len(ids)).long()
        labels = padded.masked_fill(mask == 0, IGNORED)
        labels[:prompt] = IGNORED
        return {
            "experts": self.pictures[self.places[i]]["experts"],
            "ids": padded,
            "mask": mask,
            "labels": labels,
            "weight": self.weights[i],
        }

    def take(self, rows: Sequence[int]) -> PrismerItems:
        """Some of the items; no picture is copied."""
        return PrismerItems(
            self.pictures.experts,
            [self.prompts[i] for i in rows],
            [self.texts[i] for i in rows],
            self.tokenizer,
            [self.groups[i] for i in rows],
            self.weights[torch.as_tensor(rows)],
            rows=[self.places[i] for i in rows],
        )

    def without(self, experts: Sequence[str]) -> PrismerItems:
        """The same items without the maps of some experts."""
        kept = {k: v for k, v in self.pictures.experts.items() if k not in experts}
        return PrismerItems(
            kept,
            self.prompts,
            self.texts,
            self.tokenizer,
            self.groups,
            self.weights,
            rows=self.places,
        )

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """The pictures and maps of some items, as ``Prismer.encode`` takes them."""
        return self.pictures.take([self.places[i] for i in rows]).experts


def objective(model: Prismer, batch: Mapping[str, Any]) -> Tensor:
    """``text_loss`` of a batch of ``PrismerItems``, pictures included."""
    latents = model.encode(batch["experts"])  # (B, L, D)
    return text_loss(model, latents, batch["ids"], batch["labels"], batch["mask"], batch["weight"])


def text_loss(
    model: Prismer,
    latents: Tensor,
    ids: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Token losses summed over each text, times its weight, the mean over the batch (official code).

    The same as ``model.decode(ids, mask, latents, labels).loss``, but the vocabulary is compared only
    where something is learnt: not at prompts and padding.

    Args:
        latents: (B, L, D) of ``Prismer.encode``.
        ids: (B, N_t) prompt, text, end mark, padding.
        labels: (B, N_t) the ids, ``IGNORED`` where nothing is learnt.
        mask: (B, N_t), 0 at padding; not needed where padding is behind the text.
        weight: (B,), None: all 1.
    """
    longest = int((labels != IGNORED).nonzero()[:, 1].max())  # nothing behind is computed
    ids, targets = ids[:, :longest], labels[:, 1 : longest + 1]  # (B, longest) each
    mask = None if mask is None else mask[:, :longest]
    tokens = model.decoder.advance(ids, model.decoder.start(latents), mask)  # (B, longest, D)
    learnt = targets != IGNORED  # (B, longest), T of them
    losses = F.cross_entropy(
        model.decoder.logits(tokens[learnt]).float(),  # (T, D) -> (T, V)
        targets[learnt],
        reduction="none",
        label_smoothing=model.config.label_smoothing,
    )
    if weight is not None:
        losses = losses * weight[:, None].expand(learnt.shape)[learnt]  # (B,) -> (T,)
    return losses.sum() / len(ids)


def captions(
    model: Prismer, items: PrismerItems, batch_size: int = 32, **options: Any
) -> list[str]:
    """A text for each item, written after its prompt.

    Args:
        options: of ``Prismer.generate``; lengths count the prompt.
    """
    options = {"max_length": 40, "num_beams": 3, "min_length": 8} | options
    found = []
    for latents, rows in _encoded(model, items, batch_size):
        prompts = [items.prompts[i] for i in rows]
        ids, mask = _prompts(items.tokenizer, prompts, latents.device)
        written = model.generate(latents, ids, attention_mask=mask, **options)  # (B, N)
        for line in written[:, ids.shape[1] :]:
            found.append(prismer_text.sentence(items.tokenizer.decode(line)))
    return found


def answers(
    model: Prismer,
    items: PrismerItems,
    candidates: Sequence[str],
    batch_size: int = 32,
    **options: Any,
) -> list[str]:
    """The best of ``candidates`` for each item, by ``Prismer.rank`` (paper section 3.4)."""
    choices = prismer_text.answer_ids(items.tokenizer, candidates)
    found = []
    for latents, rows in _encoded(model, items, batch_size):
        ids, mask = _prompts(items.tokenizer, [items.prompts[i] for i in rows], latents.device)
        scores = model.rank(latents, ids, choices, attention_mask=mask, **options)  # (B, K)
        found += [candidates[int(best)] for best in scores.argmax(1)]
    return found


@torch.no_grad()
def mean_loss(
    model: Prismer,
    items: Any,
    batch_size: int = 32,
    collate: Callable[[list], Any] = default_collate,
) -> float:
    """``objective`` over all items of a data set, such as ``PrismerItems`` (the first text of each)."""
    device, total = model.encoder.positions.device, 0.0
    model.eval()
    for start in range(0, len(items), batch_size):
        rows = range(start, min(start + batch_size, len(items)))
        batch = collate([items[i] for i in rows])
        total += float(objective(model, tensors.to(batch, device))) * len(rows)
    return total / len(items)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Begin mark and the words of a prompt; "" gives the begin mark alone."""
    ids, mask = prismer_text.prompt_ids(tokenizer, [prompt])
    return ids[0][mask[0].bool()].tolist()


def _prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    ids, mask = prismer_text.prompt_ids(tokenizer, prompts)
    return ids.to(device), mask.to(device)


@torch.no_grad()
def _encoded(model: Prismer, items: PrismerItems, batch_size: int):
    """Latents (B, L, D) of all items, batch by batch, with their numbers."""
    device = model.encoder.positions.device
    model.eval()
    for start in range(0, len(items), batch_size):
        rows = list(range(start, min(start + batch_size, len(items))))
        batch = items.batch(rows)
        yield model.encode(tensors.to(batch, device)), rows

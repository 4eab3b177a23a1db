"""Reading signs: a task on scenes that tells what label maps are worth to Prismer's encoder.

One sign stands in the scene; which of 24 words is on it? A few pixels high, the word is hard to see for an
encoder of patches and easy to tell for an expert that reads. ``sign_items`` holds pictures, maps and
answers; ``ExpertClassifier`` is Prismer's encoder with a linear answer on the mean of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import scene_batch
from .data import scenes
from .data.images import ImageTransform
from .data.scene_objects import WORDS
from .errors import InputError
from .experts import tensors
from .prismer_encoder import PrismerEncoder
from .scene_batch import Labels

Batch = dict[str, Any]


class ExpertItems:
    """Pictures with the maps of some experts, and one label each, as training data.

    Args:
        experts: a batch of all N pictures as ``PrismerEncoder`` takes it, with ``"rgb"``.
        labels: (N,) class.
        groups: what the bootstrap draws, one name an item.
    """

    def __init__(self, experts: Mapping[str, Any], labels: Tensor, groups: Sequence[str]):
        self.experts = _own_tables(dict(experts), len(labels))
        self.labels = labels
        self.groups = list(groups)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        return {"experts": _at(self.experts, i), "labels": self.labels[i]}

    def take(self, rows: Sequence[int]) -> ExpertItems:
        """Some of the items."""
        rows = torch.as_tensor(rows)
        groups = [self.groups[i] for i in rows.tolist()]
        return ExpertItems(_at(self.experts, rows), self.labels[rows], groups)


def sign_items(
    split: str,
    count: int,
    transform: ImageTransform,
    experts: Sequence[str],
    *,
    spoil: Callable[[Labels, int], Labels] | None = None,
    size: int = 112,
) -> ExpertItems:
    """Scenes with exactly one sign, the word on it as the class.

    Args:
        split, count: of ``scenes.load``; about a fifth of the scenes have one sign.
        transform: of the image encoder.
        experts: which maps are given; () for none.
        spoil: (maps of a scene, its number) -> spoilt maps.
        size: pixels a side of the scenes and of the maps.

    Raises:
        InputError: no scene has exactly one sign, or an unknown expert.
    """
    table = scenes.load(split, count, size)
    words = [
        [item["word"] for item in json.loads(g)["objects"] if item["word"]] for g in table["graph"]
    ]
    rows = [row for row, found in enumerate(words) if len(found) == 1]
    if not rows:
        raise InputError(f"None of the {count} {split} scenes has exactly one sign: use more.")
    spoilt = None if spoil is None else lambda labels, place: spoil(labels, rows[place])
    batch = scene_batch.batch(
        [table[row] for row in rows], transform, experts, size=size, spoil=spoilt
    )
    labels = torch.tensor([list(WORDS).index(words[row][0]) for row in rows])
    return ExpertItems(batch, labels, [table[row]["id"] for row in rows])


class ExpertClassifier(nn.Module):
    """Prismer's encoder, the mean of its tokens, a linear answer.

    Args:
        encoder: with or without experts.
        num_classes: C.
    """

    def __init__(self, encoder: PrismerEncoder, num_classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.image.width, num_classes)

    def forward(self, experts: Mapping[str, Any]) -> Tensor:
        """A batch of experts -> logits (B, C)."""
        return self.head(self.encoder(experts).mean(dim=1))  # (B, L, D) -> (B, D) -> (B, C)


def objective(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of a batch of ``ExpertItems``."""
    return nn.functional.cross_entropy(model(batch["experts"]), batch["labels"])


@torch.no_grad()
def logits(model: nn.Module, items: ExpertItems, batch_size: int = 64) -> Tensor:
    """Answers to all items: (N, C), on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(items), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(items)))
        parts.append(model.eval()(tensors.to(_at(items.experts, rows), device)).float().cpu())
    return torch.cat(parts)


def _own_tables(experts: Any, count: int) -> Any:
    """Tables that all pictures share, as one for each (a view): then every tensor has N rows."""
    found = {}
    for name, value in experts.items():
        if isinstance(value, Mapping):
            value = _own_tables(value, count)
        elif name == "table" and value.ndim == 2:
            value = value.expand(count, -1, -1)  # (K, 64) -> (N, K, 64)
        found[name] = value
    return found


def _at(experts: Any, rows: Any) -> Any:
    """The same rows of every tensor."""
    if isinstance(experts, Tensor):
        return experts[rows]
    return {name: _at(value, rows) for name, value in experts.items()}

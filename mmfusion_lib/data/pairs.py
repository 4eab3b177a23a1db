"""Image-text pairs with labels, in one form: what every fusion method of chapter 3 trains on.

A picture that occurs in many pairs (a scene with several hypotheses) is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError


class Pairs(NamedTuple):
    """N pairs of one split, over U different pictures."""

    images: Sequence[Any]  # U pictures, as open_image takes them
    rows: Tensor  # (N,) picture of each pair
    texts: Sequence[str]  # N
    labels: Tensor  # (N,) class indices; or (N, C) 0 and 1 where an item has several labels
    groups: Sequence[str]  # N names; pairs of one group are drawn together in a bootstrap
    classes: tuple[str, ...]

    @property
    def several(self) -> bool:
        """True where a pair may have several labels."""
        return self.labels.ndim == 2

    def take(self, pairs: Sequence[int]) -> Pairs:
        """The given pairs only, with the pictures that they use."""
        index = torch.as_tensor(pairs, dtype=torch.long)
        used, rows = self.rows[index].unique(return_inverse=True)
        return Pairs(
            [self.images[i] for i in used.tolist()],
            rows,
            [self.texts[i] for i in index.tolist()],
            self.labels[index],
            [self.groups[i] for i in index.tolist()],
            self.classes,
        )


def check(train: Pairs, **others: Pairs) -> None:
    """Refuse splits that cannot be compared.

    Args:
        train: the training split.
        others: validation and test by name.

    Raises:
        InputError: classes differ, or a class of another split never occurs in training.
    """
    for name, part in others.items():
        if part.classes != train.classes:
            raise InputError(f"The classes of {name} are not those of train: use one class list.")
        missing = present(part) - present(train)
        if missing:
            raise InputError(
                f"Class {train.classes[min(missing)]!r} occurs in {name} and never in train: add "
                "training items, or leave the class out."
            )


def present(pairs: Pairs) -> set[int]:
    """Classes that occur."""
    if pairs.several:
        return set(pairs.labels.any(0).nonzero().flatten().tolist())
    return set(pairs.labels.unique().tolist())

"""Weights that make rare classes count as much as common ones.

PMF weights the loss by inverse class frequency on Food-101 and MM-IMDB (so a summary of the paper
says; its formula was not to be had). The two below are the usual readings: for one label an item,
inverse frequency scaled so that balanced classes weigh 1; for several labels, the factor of the
positive term that MMBT's published training script uses.

Shapes: N pairs, C classes, n_c pairs that carry class c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .pairs import Pairs


def inverse_frequency(pairs: Pairs) -> Tensor:
    """N / (C n_c) for cross-entropy, float32 (C,); take them from the training split.

    Raises:
        InputError: the pairs have several labels, or a class never occurs.
    """
    if pairs.several:
        raise InputError("These pairs have several labels each: use pos_weight, not class weights.")
    counts = _counts(pairs, torch.bincount(pairs.labels, minlength=len(pairs.classes)))
    return len(pairs.labels) / (len(pairs.classes) * counts)


def pos_weight(pairs: Pairs) -> Tensor:
    """N / n_c for the positive term of binary cross-entropy, float32 (C,).

    It is the argument of ``binary_cross_entropy_with_logits`` of the same name. The common other
    choice is (N - n_c) / n_c, smaller by 1.

    Raises:
        InputError: the pairs have one label each, or a class never occurs.
    """
    if not pairs.several:
        raise InputError("These pairs have one label each: use inverse_frequency, not pos_weight.")
    return len(pairs.labels) / _counts(pairs, pairs.labels.sum(0))


def _counts(pairs: Pairs, counts: Tensor) -> Tensor:
    """Float32 counts (C,), none of them 0."""
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise InputError(
            f"Class {pairs.classes[absent[0]]!r} never occurs, so it has no weight: give it "
            "training items, or leave the class out."
        )
    return counts.float()

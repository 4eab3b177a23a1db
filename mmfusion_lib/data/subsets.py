"""Seeded stratified subsets: fewer rows, the same mix of classes, the same rows everywhere."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from ..errors import InputError


def stratified(labels: Sequence[Hashable], size: int, seed: int = 0) -> list[int]:
    """Choose ``size`` rows so that every class keeps its share, and at least one row where possible.

    Python's own generator is used: its shuffles are the same on every machine and version.

    Args:
        labels: class of each row.
        size: how many rows to choose, exactly.
        seed: another seed chooses other rows, with the same number per class.

    Returns:
        Row numbers in ascending order.

    Raises:
        InputError: ``size`` is negative or larger than the number of rows.
    """
    if not 0 <= size <= len(labels):
        raise InputError(
            f"A subset of {size} rows was asked for, but there are {len(labels)}: ask for between "
            f"0 and {len(labels)}."
        )
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    # Sorting makes the answer independent of the order in which classes appear.
    classes = sorted(rows, key=lambda label: (str(type(label)), label))
    chosen = []
    generator = random.Random(seed)
    for label, count in zip(classes, _shares([len(rows[label]) for label in classes], size)):
        chosen += generator.sample(rows[label], count)
    return sorted(chosen)


def _shares(counts: list[int], size: int) -> list[int]:
    """Split ``size`` over classes: one each first, then by largest remainder, never above a count.

    >>> _shares([50, 30, 1], 8)   # ideal 4.94, 2.96, 0.10
    [4, 3, 1]
    """
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    shares = [0] * len(counts)
    for c in order[: min(size, len(counts))]:
        shares[c] = 1
    total = max(1, sum(counts))
    while sum(shares) < size:
        # Give the next row to the class that is furthest below its ideal share.
        open_classes = [c for c in order if shares[c] < counts[c]]
        neediest = max(open_classes, key=lambda c: counts[c] * size / total - shares[c])
        shares[neediest] += 1
    return shares

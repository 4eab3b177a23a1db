"""Stratified subsets: exact size, fair shares, the same rows everywhere."""

from __future__ import annotations

from collections import Counter

import pytest

from mmfusion_lib.data.subsets import stratified
from mmfusion_lib.errors import InputError

LABELS = ["a"] * 50 + ["b"] * 30 + ["c"]


def test_shares_worked_by_hand():
    # 8 of 81: ideal shares are 4.94, 2.96 and 0.10. One each first; then the furthest below its
    # share: a 3.94, a 2.94, b 1.96, a 1.94, b 0.96 or a 0.94 -> b. So a 4, b 3, c 1.
    rows = stratified(LABELS, 8, seed=0)
    assert Counter(LABELS[row] for row in rows) == {"a": 4, "b": 3, "c": 1}
    assert rows == sorted(set(rows)) and len(rows) == 8


def test_every_size_is_exact():
    for size in range(len(LABELS) + 1):
        rows = stratified(LABELS, size, seed=size)
        assert len(set(rows)) == size
        assert len({LABELS[row] for row in rows}) == min(size, 3)


def test_same_rows_on_every_machine():
    assert stratified([0, 1] * 10, 6, seed=3) == [3, 4, 6, 11, 15, 16]
    assert stratified(LABELS, 8, seed=1) != stratified(LABELS, 8, seed=2)


def test_order_of_classes_does_not_matter():
    counts = [
        Counter(labels[r] for r in stratified(labels, 5))
        for labels in ([1, 1, 1, 0, 0, 2], [2, 0, 0, 1, 1, 1])
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("size", [-1, 82])
def test_impossible_size(size):
    with pytest.raises(InputError, match=r"81"):
        stratified(LABELS, size)

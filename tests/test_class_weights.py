"""Weights of classes, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mmfusion_lib.data.class_weights import inverse_frequency, pos_weight
from mmfusion_lib.data.pairs import Pairs
from mmfusion_lib.errors import InputError


def pairs(labels: list) -> Pairs:
    n = len(labels)
    names = [str(i) for i in range(n)]
    return Pairs(names, torch.arange(n), names, torch.tensor(labels), names, ("a", "b", "c"))


def test_inverse_frequency():
    # N = 6, C = 3, counts 3, 2, 1: 6/(3x3), 6/(3x2), 6/(3x1).
    weights = inverse_frequency(pairs([0, 0, 0, 1, 1, 2]))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1.0, 2.0]))
    # Every class then carries the same total weight, and all together N.
    assert torch.equal(inverse_frequency(pairs([0, 1, 2])), torch.ones(3))


def test_pos_weight():
    # N = 4, counts 4, 2, 1: 4/4, 4/2, 4/1.
    labels = [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    weights = pos_weight(pairs(labels))
    assert torch.equal(weights, torch.tensor([1.0, 2.0, 4.0])) and weights.dtype == torch.float32


def test_refusals():
    with pytest.raises(InputError, match="Class 'c' never occurs"):
        inverse_frequency(pairs([0, 1, 1]))
    with pytest.raises(InputError, match="Class 'b' never occurs"):
        pos_weight(pairs([[1.0, 0.0, 1.0]]))
    with pytest.raises(InputError, match="several labels each: use pos_weight"):
        inverse_frequency(pairs([[1.0, 1.0, 1.0]]))
    with pytest.raises(InputError, match="one label each: use inverse_frequency"):
        pos_weight(pairs([0, 1, 2]))

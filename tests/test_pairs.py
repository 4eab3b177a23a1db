"""Pairs of image and text: subsets, checks between splits, and the problems that have them."""

from __future__ import annotations

import pytest
import torch

from mmfusion_lib import InputError
from mmfusion_lib.data import pair_problems, pairs
from mmfusion_lib.data.pairs import Pairs
from mmfusion_lib.recipes.entailment import controls


def make(labels, classes=("a", "b", "c")) -> Pairs:
    """Pair i uses picture i % 3."""
    count = len(labels)
    return Pairs(
        ["p0", "p1", "p2"],
        torch.arange(count) % 3,
        [f"text {i}" for i in range(count)],
        torch.tensor(labels),
        [f"g{i % 3}" for i in range(count)],
        classes,
    )


def test_take_keeps_the_pictures_that_are_used_once():
    part = make([0, 1, 2, 0, 1, 2]).take([5, 2, 0])  # pictures p2, p2, p0
    assert part.images == ["p0", "p2"] and part.rows.tolist() == [1, 1, 0]
    assert part.texts == ["text 5", "text 2", "text 0"]
    assert part.labels.tolist() == [2, 2, 0] and part.groups == ["g2", "g2", "g0"]


def test_several_labels_are_told_from_one():
    assert not make([0, 1, 2]).several
    several = make([[1.0, 0, 1], [0, 0, 1], [1, 0, 0]])
    assert several.several and pairs.present(several) == {0, 2}


def test_controls_change_one_side_and_nothing_else():
    labels = torch.arange(20) % 3
    texts = [f"text {i}" for i in range(20)]
    true = Pairs(list("abcdefghijklmnopqrst"), torch.arange(20), texts, labels, texts, tuple("abc"))
    found = controls(true, seed=0)
    for name, part in found.items():
        assert torch.equal(part.labels, true.labels) and part.groups == true.groups, name
        same_text, same_image = part.texts == texts, torch.equal(part.rows, true.rows)
        assert (same_text, same_image) == (name.endswith("image"), name.endswith("text")), name
    shuffled = found["pmf-shuffled-image"], found["pmf-shuffled-text"]
    assert shuffled[0].rows.sort().values.tolist() == list(range(20))
    assert sorted(shuffled[1].texts) == sorted(texts)
    assert set(found["pmf-no-text"].texts) == {""}
    grey = found["pmf-no-image"]
    assert len(grey.images) == 1 and not grey.rows.any()
    assert grey.images[0].getcolors() == [(112 * 112, (128, 128, 128))]


def test_a_class_that_never_trains_is_named():
    with pytest.raises(InputError, match="'c' occurs in test and never in train"):
        pairs.check(make([0, 1, 0]), test=make([0, 2, 1]))
    with pytest.raises(InputError, match="classes of validation are not those"):
        pairs.check(make([0, 1, 0]), validation=make([0, 1, 0], classes=("x", "y", "z")))
    pairs.check(make([0, 1, 2]), test=make([0, 2, 2]))


def test_unknown_problem_and_unknown_family_are_named(monkeypatch):
    with pytest.raises(InputError, match="no problem 'cats'"):
        pair_problems.load("cats", "train")


@pytest.mark.parametrize("name", ["presence", "entailment"])
def test_scene_problems_share_pictures_and_are_balanced(name):
    pytest.importorskip("embreex", reason="the extra `scenes` is not installed")
    found = pair_problems.load(name, "train", 60)
    counts = torch.bincount(found.labels)
    assert (counts == counts[0]).all() and len(found.images) == 60 < len(found.labels)
    only = pair_problems.load(name, "train", 60, types=["colour"])
    assert 0 < len(only.labels) < len(found.labels)
    with pytest.raises(InputError, match="No sentence has the type 'smell'"):
        pair_problems.load(name, "train", 60, types=["smell"])


def test_figures_are_one_picture_a_pair(data_root):
    found = pair_problems.load("figures", "train", 44, words=2)
    assert found.rows.tolist() == list(range(44)) and len(found.classes) == 11
    assert max(len(text.split()) for text in found.texts) <= 2

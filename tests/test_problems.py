"""Classification problems: the same form from scenes and from figures."""

import pytest

from mmfusion_lib import InputError
from mmfusion_lib.data import problems


def test_unknown_problem(cache):
    with pytest.raises(InputError, match=r"Unknown problem 'birds'"):
        problems.load("birds", "train")


def test_scenes_and_crops_have_one_label_a_picture(cache):
    pytest.importorskip("embreex")
    scenes = problems.load("scenes", "train", 8)
    assert len(scenes.images) == len(scenes.captions) == len(scenes.labels) == 8
    assert len(set(scenes.groups)) == 8
    assert all(len(text.split()) == 2 for text in scenes.texts(2))
    crops = problems.load("crops", "train", 8)
    assert len(crops.images) == 8
    assert all(0 <= label < len(crops.classes) for label in crops.labels.tolist())
    taken = crops.take([3, 1])
    assert taken.labels.tolist() == [crops.labels[3], crops.labels[1]]
    assert taken.groups == [crops.groups[3], crops.groups[1]]


def test_figures_groups_never_cross_splits(data_root, cache):
    train = problems.load("figures", "train")
    test = problems.load("figures", "test")
    assert not set(train.groups) & set(test.groups)
    small = problems.load("figures", "train", 50, seed=1)
    assert len(small.labels) == 50
    assert set(small.labels.tolist()) == set(range(11))  # stratified: every class is there

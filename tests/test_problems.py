"""Classification problems: the same form from scenes and from figures."""

import pytest

from mmfusion_lib import InputError
from mmfusion_lib.data import problems
from mmfusion_lib.data.images import open_image


def test_unknown_problem(cache):
    with pytest.raises(InputError, match=r"no problem 'birds'.*birds\.csv"):
        problems.load("birds", "train")


def test_a_table_of_ones_own_is_a_problem(cache, tmp_path, monkeypatch):
    from PIL import Image

    folder = tmp_path / "data" / "soup"
    folder.mkdir(parents=True)
    lines = ["image,text,label,split"]
    for i, split in enumerate(["train", "train", "val", "val", "test", "test"]):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,soup number {i},{'hot' if i % 2 else 'cold'},{split}")
    (folder / "soup.csv").write_text("\n".join(lines))
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path / "data"))
    test = problems.load("soup", "test")
    assert test.texts(2) == ["soup number", "soup number"]
    assert test.classes == ("cold", "hot")
    assert test.labels.tolist() == [0, 1]  # rows 4 and 5
    assert open_image(test.images[1]).getpixel((0, 0)) == (5, 0, 0)


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
